"""A served model: one answer whatever shares the gang, clients that come and go, status, health, limits."""
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402

PROMPTS = ["ROMEO:\n", "To be, or not", "KING", "What light", "\n", "First Citizen:\nWe are accounted poor", "O", "JULIET:\nAy me! " * 5]


class Serve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server(split="2:1/1")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def test_same_as_one_process(self):
        """Greedy over three ranks is what `muster run` gives in one process."""
        _, text, last = self.server.generate("ROMEO:\n", 60)
        alone = harness.run("run", harness.BARD, "ROMEO:\n", "--raw", "-n", "60", "--ignore-end", "--quiet")
        self.assertEqual(alone.returncode, 0, alone.stderr)
        self.assertEqual(alone.stdout, text + "\n")
        self.assertEqual(last.finish, pb.FINISH_LENGTH)
        self.assertEqual(last.usage.completion_tokens, 60)

    def test_64_streams_as_one_after_another(self):
        jobs = [(PROMPTS[i % len(PROMPTS)] + str(i), 5 + (i * 7) % 60, i, 0.0 if i % 3 else 0.9) for i in range(64)]

        def one(job):
            prompt, n, seed, temperature = job
            return self.server.generate(prompt, n, seed=seed, temperature=temperature)[0]

        alone = [one(j) for j in jobs]
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            together = list(pool.map(one, jobs))
        for i, (a, b) in enumerate(zip(alone, together)):
            self.assertEqual(len(a), jobs[i][1])
            self.assertEqual(a, b, f"stream {i}")

    def test_text_is_the_ids(self):
        ids, text, _ = self.server.generate("What light", 40, seed=3, temperature=1.0)
        reply = self.server.unary("Detokenize", pb.DetokenizeRequest(ids=ids), pb.DetokenizeReply)
        self.assertEqual(reply.text, text)
        back = self.server.unary("Tokenize", pb.TokenizeRequest(text="What light", add_bos=True), pb.TokenizeReply)
        self.assertGreater(len(back.ids), 1)

    def test_seed_is_told_and_repeats(self):
        request = pb.GenerateRequest(text="KING", max_tokens=20, return_ids=True, sampling=pb.Sampling(temperature=1.0))
        replies = list(self.server.generate_call(request, timeout=60))
        self.assertTrue(replies[0].request_id)
        seed = replies[0].seed
        ids = [i for r in replies for i in r.ids]
        again, _, _ = self.server.generate("KING", 20, seed=seed, temperature=1.0)
        self.assertEqual(ids, again[:len(ids)])

    def test_truncated_sampling_repeats(self):
        request = pb.GenerateRequest(text="KING", max_tokens=30, return_ids=True, ignore_end=True,
                                     sampling=pb.Sampling(temperature=0.9, top_k=5, top_p=0.9, seed=5))
        first, second = ([i for r in self.server.generate_call(request, timeout=60) for i in r.ids] for _ in range(2))
        self.assertEqual(first, second)
        self.assertEqual(len(first), 30)

    def test_stop_string_over_tokens(self):
        _, whole, _ = self.server.generate("ROMEO:\n", 60)
        stop = whole[20:27]
        _, text, last = self.server.generate("ROMEO:\n", 60, stop=[stop])
        self.assertEqual(text, whole[:whole.index(stop)])
        self.assertEqual(last.finish, pb.FINISH_STOP)

    def test_cancel_frees_the_slot(self):
        call = self.server.generate_call(pb.GenerateRequest(text="O", max_tokens=400, ignore_end=True), timeout=60)
        next(call)
        next(call)
        call.cancel()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.server.status().running:
            time.sleep(0.05)
        self.assertEqual(self.server.status().running, 0)

    def test_deadline(self):
        with self.assertRaises(grpc.RpcError) as caught:
            for _ in range(100):  # a model this small may finish once or twice in time
                self.server.generate("O", 500, timeout=0.05)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

    def refused(self, code, words, **fields):
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.server.generate_call(pb.GenerateRequest(**fields), timeout=20))
        self.assertEqual(caught.exception.code(), code)
        for word in words:
            self.assertIn(word, caught.exception.details())

    def test_bad_requests(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        self.refused(invalid, ["prompt"], max_tokens=1)
        self.refused(grpc.StatusCode.OUT_OF_RANGE, ["512", "context"], text="word " * 2000)
        self.refused(invalid, ["vocabulary"], ids=pb.Ids(id=[5, 99999]))
        self.refused(invalid, ["vocabulary"], ids=pb.Ids(id=[-1]))
        self.refused(invalid, ["temperature"], text="a", sampling=pb.Sampling(temperature=-1))
        self.refused(invalid, ["temperature"], text="a", sampling=pb.Sampling(temperature=float("nan")))
        self.refused(invalid, ["stop"], text="a", stop=[""])
        self.refused(invalid, ["stop"], text="a", stop=["x"] * 17)
        self.refused(grpc.StatusCode.NOT_FOUND, ["llama9"], text="a", model="llama9")
        self.refused(invalid, ["messages_json"], chat=pb.Chat())
        self.refused(invalid, ["messages_json", "line 1"], chat=pb.Chat(messages_json="[{]"))
        self.refused(invalid, ["array"], chat=pb.Chat(messages_json='{"role": "user"}'))
        self.refused(invalid, ["tools_json"], chat=pb.Chat(messages_json="[]", tools_json="["))
        self.refused(invalid, ["4 MiB"], chat=pb.Chat(messages_json="[%s]" % (" " * (4 << 20))))

    def test_chat(self):
        """The model's own template: the prompt is what `muster template` prints, with one BOS."""
        messages = json.dumps([{"role": "user", "content": "What light is this? é"}])
        prompt = harness.run("template", harness.BARD, stdin=messages).stdout
        want = list(self.server.unary("Tokenize", pb.TokenizeRequest(text=prompt, parse_special=True), pb.TokenizeReply).ids)
        by_ids, text, _ = self.server.generate(want, 20)
        request = pb.GenerateRequest(chat=pb.Chat(messages_json=messages), max_tokens=20, return_ids=True, ignore_end=True)
        replies = list(self.server.generate_call(request, timeout=60))
        self.assertEqual([i for r in replies for i in r.ids], by_ids)
        self.assertEqual("".join(r.text for r in replies), text)
        self.assertEqual(replies[-1].usage.prompt_tokens, len(want))

    def test_context_is_filled_and_not_passed(self):
        prompt = [5] * 500
        ids, _, last = self.server.generate(prompt, 400)
        self.assertEqual(len(ids), 12)
        self.assertEqual(last.finish, pb.FINISH_LENGTH)

    def test_status(self):
        gang = self.server.gang()
        self.assertEqual((gang.state, gang.split, len(gang.rank)), ("ready", "2:1/1", 3))
        self.assertEqual([r.leader for r in gang.rank], [False, False, True])
        self.assertEqual(sum(r.heads for r in gang.rank if r.stage == 0), 8)
        model = self.server.unary("ModelStatus", pb.ModelStatusRequest(), pb.ModelStatusReply)
        self.assertEqual((model.architecture, model.context, model.ready), ("llama", 512, True))
        listed = harness.run("ps", "--server", self.server.address)
        self.assertEqual(listed.returncode, 0, listed.stderr)
        self.assertIn("2:1/1", listed.stdout)

    def test_run_from_the_server(self):
        _, text, _ = self.server.generate("ROMEO:\n", 30)
        for more in ([], ["--priority", "batch"], ["--priority", "interactive"]):
            done = harness.run("run", "default", "ROMEO:\n", "--raw", "-n", "30", "--ignore-end", "--server", self.server.address, *more)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stdout, text + "\n")

    def test_health(self):
        hp = harness.health_pb
        check = self.server.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=hp.HealthCheckRequest.SerializeToString,
                                                response_deserializer=hp.HealthCheckResponse.FromString)
        for service in ("", "muster.v1.Muster"):
            self.assertEqual(check(hp.HealthCheckRequest(service=service), timeout=10).status, hp.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            check(hp.HealthCheckRequest(service="nobody"), timeout=10)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_javascript_client(self):
        if not shutil.which("node") or not shutil.which("npm"):
            self.skipTest("node and npm are not installed")
        here = os.path.dirname(os.path.abspath(__file__))
        work = os.path.join(os.environ["MUSTER_BINARY_DIR"], "js-client")
        os.makedirs(work, exist_ok=True)
        shutil.copy(os.path.join(here, "js", "package.json"), work)
        shutil.copy(os.path.join(here, "js", "client.js"), work)
        if not os.path.isdir(os.path.join(work, "node_modules", "@grpc", "grpc-js")):
            try:
                subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=work, capture_output=True, text=True, timeout=120, check=True)
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as e:
                shutil.rmtree(os.path.join(work, "node_modules"), ignore_errors=True)
                self.skipTest(f"npm install did not work: {e}; {str(e.stderr)[-200:]}")
        _, text, _ = self.server.generate("ROMEO:\n", 30)
        done = subprocess.run(["node", "client.js", self.server.address, os.path.join(harness.SOURCE, "proto")], cwd=work, capture_output=True, text=True,
                              timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        self.assertIn("all fine", done.stdout)
        self.assertIn(repr(len(text)), done.stdout)


class ChatTemplates(unittest.TestCase):
    """A template from the command line, and a model that has none."""

    def ask(self, server, **chat):
        request = pb.GenerateRequest(chat=pb.Chat(**chat), max_tokens=8, return_ids=True, ignore_end=True)
        replies = list(server.generate_call(request, timeout=60))
        return [i for r in replies for i in r.ids], replies[-1].usage.prompt_tokens

    def test_template_from_a_file(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as f:
            f.write("{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ m.content }}{% endfor %}"
                    "{{ x }}{% if add_generation_prompt %}:{% endif %}")
            f.flush()
            with harness.Server(split="1", args=["--template", f.name]) as server:
                ids, _, last = server.generate("ROMEO:\n:", 8)
                self.assertEqual(self.ask(server, messages_json='[{"role": "user", "content": "ROMEO:\\n"}]'), (ids, last.usage.prompt_tokens))
                ids, _, last = server.generate("KING", 8)
                self.assertEqual(self.ask(server, messages_json='[{"role": "user", "content": "KI"}]', variables_json='{"x": "NG"}',
                                          no_generation_prompt=True), (ids, last.usage.prompt_tokens))
                self.assertEqual(self.ask(server, messages_json='[{"role": "assistant", "content": "KING"}]', continue_final=True),
                                 (ids, last.usage.prompt_tokens))
                with self.assertRaises(grpc.RpcError) as caught:
                    self.ask(server, messages_json='[{"role": "tool", "content": ""}]')
                self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
                self.assertIn("no tools here", caught.exception.details())

    def test_template_from_a_store(self):
        """A Jinja template in a store wins over the file's, as for `run` and `template`."""
        with tempfile.TemporaryDirectory() as tmp:
            env = {"MUSTER_MODELS": os.path.join(tmp, "store")}
            modelfile = f"FROM {harness.BARD}\nTEMPLATE {{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}};\n"
            made = subprocess.run([harness.MUSTER, "create", "mine", "-f", "-"], input=modelfile, env={**os.environ, **env}, capture_output=True, text=True)
            self.assertEqual(made.returncode, 0, made.stderr)
            with harness.Server("mine", split="1", env=env) as server:
                ids, _, last = server.generate("KING;", 8)
                self.assertEqual(self.ask(server, messages_json='[{"role": "user", "content": "KING"}]'), (ids, last.usage.prompt_tokens))

    def test_model_without_one(self):
        with tempfile.TemporaryDirectory() as tmp:
            model = os.path.join(tmp, "small.gguf")
            made = harness.run("synth", "--layers", "1", "--d-model", "256", "--d-ff", "256", "--vocab", "500", "--ctx", "128", "--out", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            with harness.Server(model, split="1") as server:
                with self.assertRaises(grpc.RpcError) as caught:
                    self.ask(server, messages_json="[]")
                self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
                self.assertIn("--template", caught.exception.details())
                self.assertEqual(len(server.generate([5, 6], 4)[0]), 4)


class WidePipeline(unittest.TestCase):
    """Residuals of megabytes between stages, also where shared memory cannot be read across processes: senders must keep them moving."""

    def test_long_prompt(self):
        with tempfile.TemporaryDirectory() as tmp:
            model = os.path.join(tmp, "wide.gguf")
            made = harness.run("synth", "--layers", "2", "--d-model", "2048", "--d-ff", "1024", "--vocab", "1000", "--ctx", "2048", "--out", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            prompt = [7 + i % 500 for i in range(1400)]
            found = []
            for split, copy in (("1", "cma"), ("1/1", "cma"), ("1/1", "none"), ("1:1/1", "none")):
                with harness.Server(model, split=split, env={"OMPI_MCA_btl_vader_single_copy_mechanism": copy}) as server:
                    ids, _, last = server.generate(prompt, 8)
                    self.assertEqual(last.usage.resumed, 0, server.logged())
                    found.append(ids)
            self.assertEqual(found, [found[0]] * len(found))


class StoppedClient(unittest.TestCase):
    """Ctrl-Z in `muster run --server` in the middle of a long answer, and fg some seconds later."""

    def test_it_goes_on(self):
        with tempfile.TemporaryDirectory() as tmp:
            model = os.path.join(tmp, "long.gguf")
            made = harness.run("synth", "--layers", "1", "--d-model", "64", "--d-ff", "64", "--vocab", "1000", "--ctx", "8192", "--out", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            with harness.Server(model, split="1", args=("--parallel", "1")) as server:
                command = ["run", "default", "x", "--raw", "--ignore-end", "-n", "8000", "--server", server.address]
                with subprocess.Popen([harness.MUSTER, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
                    first = os.read(client.stdout.fileno(), 100)
                    client.send_signal(signal.SIGSTOP)
                    time.sleep(11)  # connections of workers, for one, are given up after 8
                    client.send_signal(signal.SIGCONT)
                    text, said = client.communicate(timeout=120)
                self.assertEqual((client.returncode, said), (0, b""), server.logged())
                _, whole, last = server.generate("x", 8000)
                self.assertEqual(last.usage.completion_tokens, 8000)
                self.assertEqual((first + text).decode(), whole + "\n")


class Outgrown(unittest.TestCase):
    """A model with two sets of rotation factors, and a gang that dies after a stream has grown over their limit."""

    def test_same_ids_after_a_relaunch(self):
        with tempfile.TemporaryDirectory() as tmp:
            model = os.path.join(tmp, "phi3.gguf")
            made = harness.run("synth", "--arch", "phi3", "--type", "Q8_0", "--layers", "2", "--d-model", "192", "--d-ff", "256", "--heads", "2",
                               "--kv-heads", "2", "--d-head", "96", "--vocab", "400", "--ctx", "256", "--short-ctx", "40", "--out", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            alone = harness.run("run", model, "ROMEO:\n", "-n", "200", "--ignore-end", "--quiet", "--raw")
            self.assertEqual(alone.returncode, 0, alone.stderr)
            death = {"MUSTER_FAULT": "rank.step@1:180=abort"}  # a step for each id: far over the limit
            with harness.Server(model, split="1:1", args=("--no-speculation",), env=death) as server:
                _, text, last = server.generate("ROMEO:\n", 200)
                self.assertGreater(last.usage.resumed, 0)
                self.assertEqual(last.usage.completion_tokens, 200)
                self.assertEqual(alone.stdout, text + "\n")


class Cache(unittest.TestCase):
    """--kv reaches every rank: the text of a split is that of one process, and not the one that f16 gives."""

    def test_q8(self):
        ask = ("run", harness.BARD, "ROMEO:\n", "-n", "300", "--ignore-end", "--quiet", "--raw", "--temperature", "1", "--seed", "1")
        alone, f16 = harness.run(*ask, "--kv", "q8_0"), harness.run(*ask)
        self.assertEqual(alone.returncode, 0, alone.stderr)
        self.assertNotEqual(alone.stdout, f16.stdout)
        with harness.Server(harness.BARD, split="2:1/1", args=("--kv", "q8_0")) as server:
            _, text, _ = server.generate("ROMEO:\n", 300, seed=1, temperature=1.0)
        self.assertEqual(alone.stdout, text + "\n")


class Quantized(unittest.TestCase):
    """Matrices quantised by the ranks as they load, of a GGUF file and of a Hugging Face folder, give the text of one process."""

    def check(self, model, kind):
        alone = harness.run("run", model, "ROMEO:\n", "-n", "30", "--ignore-end", "--quiet", "--raw", "--quantize", kind)
        self.assertEqual(alone.returncode, 0, alone.stderr)
        with harness.Server(model, split="2:1/1", args=("--quantize", kind)) as server:
            _, text, _ = server.generate("ROMEO:\n", 30)
        self.assertEqual(alone.stdout, text + "\n")

    def test_file(self):
        with tempfile.TemporaryDirectory() as tmp:
            model = os.path.join(tmp, "f16.gguf")
            made = harness.run("synth", "--type", "F16", "--output-type", "F16", "--layers", "3", "--d-model", "256", "--d-ff", "512", "--heads", "4",
                               "--vocab", "600", "--ctx", "256", "--out", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            self.check(model, "q4_k")

    @unittest.skipUnless(os.path.isdir(os.path.join(harness.FIXTURES, "models", "llama3-hf")), "no fixtures")
    def test_folder(self):
        self.check(os.path.join(harness.FIXTURES, "models", "llama3-hf"), "q8_0")


class Owner(unittest.TestCase):
    @unittest.skipIf(os.geteuid() != 0, "not root")
    def test_root_reads_what_belongs_to_others(self):
        """As `sudo muster serve` of a model in a home that nobody else may enter."""
        with tempfile.TemporaryDirectory() as tmp:
            model = os.path.join(tmp, "home", "model.gguf")
            os.mkdir(os.path.dirname(model), 0o700)
            shutil.copy(harness.BARD, model)
            for path in (model, os.path.dirname(model)):
                os.chown(path, 12345, 12345)
            if subprocess.run(["unshare", "-n", "sh", "-c", "ip link set lo up && test -r \"$0\"", model]).returncode:
                self.skipTest("root may not everything here")
            with harness.Server(model, split="1:1") as server:
                self.assertEqual(len(server.generate("O", 3)[0]), 3)
                self.assertNotIn("NO PRIVATE NETWORK", server.logged())


class SharedMemory(unittest.TestCase):
    @unittest.skipIf(os.geteuid() != 0, "not root")
    def test_where_it_is_nearly_full(self):
        """Ranks share files elsewhere, where /dev/shm has less room than they need."""
        self.serve("3m")

    def test_without_a_limit(self):
        """Such a file system tells of no blocks at all, with which Open MPI would not begin."""
        self.serve("0")

    def serve(self, size):
        with tempfile.TemporaryDirectory() as tmp:
            program = os.path.join(tmp, "muster")
            with open(program, "w") as f:
                f.write('#!/bin/sh\n[ $# = 0 ] || exec unshare -m sh -c \'mount -t tmpfs -o size=' + size + ' none /dev/shm && exec "$0" "$@"\' '
                        f'"{harness.MUSTER}" "$@"\nexec unshare -m mount -t tmpfs none /dev/shm\n')
            os.chmod(program, 0o755)
            if subprocess.run([program], stderr=subprocess.DEVNULL).returncode:
                self.skipTest("nothing can be mounted here")
            with harness.Server(split="1:1", program=program) as server:
                self.assertEqual(len(server.generate("O", 3)[0]), 3)
                self.assertIn("share files in the run folder", server.logged())
                self.assertEqual(server.stop(), [])


class HostName(unittest.TestCase):
    @unittest.skipIf(os.geteuid() != 0, "not root")
    def test_long(self):
        """As the name of a container may be. mpirun would abort."""
        with tempfile.TemporaryDirectory() as tmp:
            program, name = os.path.join(tmp, "muster"), "a" * 64
            with open(program, "w") as f:
                f.write(f'#!/bin/sh\nexec unshare -u sh -c \'hostname {name} && exec "$0" "$@"\' "${{MUSTER:-{harness.MUSTER}}}" "$@"\n')
            os.chmod(program, 0o755)
            if subprocess.run([program], stderr=subprocess.DEVNULL, env=dict(os.environ, MUSTER="true")).returncode:
                self.skipTest("no namespaces here")
            with harness.Server(split="1:1", program=program) as server:
                self.assertEqual(len(server.generate("O", 3)[0]), 3)
                self.assertEqual([server.gang().rank[0].node, server.status().node[0].name], [name, name])


class Threads(unittest.TestCase):
    @unittest.skipIf(len(os.sched_getaffinity(0)) < 2, "one CPU")
    def test_helpers_of_the_leader_are_not_bound(self):
        """The pool's member has a CPU; gRPC's threads, the one that makes forms and all others go where there is room."""
        with harness.Server(split="1", args=["--threads", "1"]) as server:
            list(server.generate_call(pb.GenerateRequest(text="SCENE", max_tokens=5, json=True), timeout=60))
            leader = server.gang().rank[0].pid
            allowed = {}
            for task in os.listdir(f"/proc/{leader}/task"):
                try:
                    with open(f"/proc/{leader}/task/{task}/status") as f:
                        allowed[int(task)] = re.search(r"Cpus_allowed_list:\s*(\S+)", f.read())[1]
                except (FileNotFoundError, ProcessLookupError):
                    pass
        if not allowed[leader].isdigit():
            self.skipTest("ranks are not pinned here")
        self.assertGreater(len(allowed), 3)
        self.assertEqual([task for task, cpus in allowed.items() if cpus.isdigit()], [leader])


if __name__ == "__main__":
    harness.main()
