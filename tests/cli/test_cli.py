"""The muster command with good and bad input: one clear sentence, a status other than 0, no file half-written."""
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import signal
import time
import unittest

sys.path[:0] = (os.path.join(os.path.dirname(__file__), "..", folder) for folder in ("cluster", "model"))
import harness  # noqa: E402
import make_hf  # noqa: E402
from harness import BARD, run  # noqa: E402


def at_terminal(*args, term="xterm", columns=80):
    """Runs the command with a terminal as standard error; what that was shown."""
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(terminal, "rb", buffering=0) as f:
        done = subprocess.run([harness.MUSTER, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=end, timeout=60,
                              env=dict(os.environ, TERM=term))
        os.write(end, b"!")
        os.close(end)
        shown = b""
        while not shown.endswith(b"!"):
            shown += f.read(4096)
    assert done.returncode == 0, shown
    return shown[:-1].decode()


class Good(unittest.TestCase):
    def test_help_of_every_verb(self):
        listed = run("--help")
        self.assertEqual(listed.returncode, 0)
        for verb in ("serve", "run", "bench", "plan", "ps", "logits", "perplexity", "tokenize", "detokenize", "template", "synth", "worker",
                     "list", "show", "pull", "create", "cp", "rm", "embed"):
            self.assertIn(verb, listed.stdout)
            one = run(verb, "--help")
            self.assertEqual(one.returncode, 0)
            self.assertIn("Example", one.stdout)
            self.assertEqual(run("help", verb).stdout, one.stdout)
            # An example is a whole command where a terminal's 80 columns end it.
            wide = run(verb, "--help", env={"ARGP_HELP_FMT": "rmargin=250"}).stdout.splitlines()
            for line in wide:
                if line.startswith("  muster "):
                    self.assertLessEqual(len(line), 78, line)
        self.assertIn("3:1/1 is", run("plan", "--help").stdout)  # where an error of a split sends to

    def test_tokenize_and_back(self):
        text = "What light through yonder window breaks? é 🙂"
        ids = json.loads(run("tokenize", BARD, text).stdout)["ids"]
        back = run("detokenize", BARD, ",".join(map(str, ids)))
        self.assertEqual(json.loads(back.stdout)["text"], text)
        self.assertEqual(json.loads(run("tokenize", BARD, "").stdout)["ids"], [])
        self.assertEqual(json.loads(run("tokenize", BARD, stdin=text).stdout)["ids"], ids)

    def test_template(self):
        """The rendering and nothing else; a file of messages or of a whole conversation; options win."""
        with tempfile.TemporaryDirectory() as d:
            source, chat, tools = (os.path.join(d, name) for name in ("t.jinja", "chat.json", "tools.json"))
            with open(source, "w") as f:
                f.write("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                        "{{ tools | tojson if tools }}{{ x }}{% if add_generation_prompt %}assistant:{% endif %}\n")
            with open(chat, "w") as f:
                json.dump({"messages": [{"role": "user", "content": "Zürich "}], "kwargs": {"x": 1}, "add_generation_prompt": True}, f)
            with open(tools, "w") as f:
                f.write("[2]")
            self.assertEqual(run("template", source, "-m", chat).stdout, "user: Zürich \n1assistant:")
            self.assertEqual(run("template", source, "-m", chat, "--bos", "<s>", "--tools", tools, "--var", "x=y", "--no-generation-prompt").stdout,
                             "<s>user: Zürich \n[2]y")
            self.assertEqual(run("template", source, "-m", chat, "--continue").stdout, "user: Zürich ")
            self.assertEqual(run("template", source, stdin='[{"role": "a", "content": null}]').stdout, "a: None\nassistant:")
            own = run("template", BARD, "-m", chat)
            self.assertEqual(own.returncode, 0, own.stderr)
            self.assertIn("Zürich", own.stdout)
            self.assertEqual(run("template", "/dev/stdin", "-m", chat, stdin="{{ messages[0].content }}").stdout, "Zürich ")

    def test_template_of_a_name_and_of_a_folder(self):
        chat = '[{"role": "user", "content": "Hail"}]'
        with tempfile.TemporaryDirectory() as d:
            env = {"MUSTER_MODELS": os.path.join(d, "store")}
            for name, lines in (("plain", ""), ("own", 'TEMPLATE """{% for m in messages %}{{ eos_token }}{{ m.content }}{% endfor %}"""\n')):
                made = run("create", name, "-f", "-", stdin=f"FROM {BARD}\n{lines}", env=env)
                self.assertEqual(made.returncode, 0, made.stderr)
            self.assertEqual(run("template", "plain", stdin=chat, env=env).stdout, run("template", BARD, stdin=chat).stdout)
            self.assertRegex(run("template", "own", stdin=chat, env=env).stdout, r"^<\|.*\|>Hail$")
            missing = run("template", "nowhere", stdin=chat, env=env)
            self.assertEqual(missing.returncode, 1)
            self.assertIn("there is no model and no file 'nowhere'", missing.stderr)

            file, folder = os.path.join(d, "m.gguf"), os.path.join(d, "m")
            run("synth", "--layers", "1", "--d-model", "64", "--d-ff", "64", "--vocab", "300", "--ctx", "64", "--type", "F16", "--out", file)
            make_hf.make(file, folder)
            marks = [chr(c) for span in (range(33, 127), range(161, 173), range(174, 256), range(256, 324)) for c in span]  # of the 256 bytes
            for name, text in (("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}"), ("tokenizer_config.json", '{"bos_token": "<s>"}'),
                               ("tokenizer.json", json.dumps({"model": {"type": "BPE", "vocab": {m: i for i, m in enumerate(marks)}, "merges": []},
                                                              "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
                                                              "added_tokens": [{"id": 256, "content": "<s>", "special": True}]}))):
                with open(os.path.join(folder, name), "w") as f:
                    f.write(text)
            self.assertEqual(run("template", folder, stdin=chat).stdout, "<s>Hail")
            self.assertEqual(run("template", os.path.join(folder, "config.json"), stdin=chat).stdout, "<s>Hail")
            self.assertEqual(run("template", os.path.join(folder, "chat_template.jinja"), stdin=chat).stdout, "Hail")

    def test_run_is_repeatable(self):
        a, b = (run("run", BARD, "ROMEO:\n", "--raw", "-n", "30", "--seed", "9", "--temperature", "1", "-t", t) for t in ("1", "2"))
        self.assertEqual(a.returncode, 0, a.stderr)
        self.assertTrue(a.stdout.strip())
        self.assertEqual(a.stdout, b.stdout)

    def test_run_parameters(self):
        """Options, and the same as PARAMETERs of a Modelfile."""
        def text(model, *args, env=None):
            done = run("run", model, "ROMEO:\n", "--raw", "-n", "40", "--ignore-end", "--quiet", *args, env=env)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

        options = {"temperature": 0.9, "seed": 4, "repeat_penalty": 1.4, "repeat_last_n": -1, "presence_penalty": 0.5, "frequency_penalty": 2,
                   "min_p": 0.05, "typical_p": 0.9, "min_tokens": 10, "logit_bias": "927=-1000"}
        args = [a for name, v in options.items() for a in ("--" + {"typical_p": "typical"}.get(name, name).replace("_", "-"), str(v))]
        shaped = text(BARD, *args)
        self.assertEqual(shaped, text(BARD, *args, "-t", "1"))
        plain, free = text(BARD), text(BARD, "-T", "0.9", "--seed", "4")
        for option, value in (("--repeat-penalty", "1.4"), ("--frequency-penalty", "2"), ("--presence-penalty", "2")):  # each of them matters
            self.assertNotEqual(text(BARD, option, value), plain, option)
        for option, value in (("--min-p", "0.5"), ("--typical", "0.3"), ("--logit-bias", "927=20")):
            self.assertNotEqual(text(BARD, "-T", "0.9", "--seed", "4", option, value), free, option)
        self.assertEqual(text(BARD, "--repeat-penalty", "1.4", "--repeat-last-n", "0"), plain)
        self.assertEqual(text(BARD, "-T", "0.9", "--seed", "4", "--top-p", "0"), plain)  # a share of 0 is the first token alone
        self.assertEqual(text(BARD, "-T", "0.9", "--seed", "4", "--typical", "0"), text(BARD, "-T", "0.9", "--seed", "5", "--typical", "0"))
        with tempfile.TemporaryDirectory() as store:
            env = {"MUSTER_MODELS": store}
            modelfile = f"FROM {BARD}\n" + "".join(f"PARAMETER {name} {v}\n" for name, v in options.items())
            made = run("create", "shaped", "-f", "-", stdin=modelfile, env=env)
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertEqual(text("shaped", env=env), shaped)
            self.assertNotEqual(text("shaped", "--repeat-penalty", "1", env=env), shaped)  # the command line wins

    def test_run_stop_string(self):
        whole = run("run", BARD, "ROMEO:\n", "--raw", "-n", "60", "--ignore-end").stdout
        stop = whole[25:31]
        cut = run("run", BARD, "ROMEO:\n", "--raw", "-n", "60", "--ignore-end", "--stop", stop).stdout
        self.assertEqual(cut, whole[:whole.index(stop)] + "\n")

    def test_full_context(self):
        """What helps is said as an option: there is no prompt for commands."""
        full = run("run", BARD, "Hail", "-c", "64", "--ignore-end")
        self.assertEqual(full.returncode, 0, full.stderr)
        self.assertIn("[the context of 64 tokens is full, the answer ends here; --ctx N gives it more]", full.stderr)

    def test_ctrl_c_stops_the_generation(self):
        p = subprocess.Popen([harness.MUSTER, "run", BARD, "O", "--raw", "--ignore-end", "-t", "1", "-n", "500"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        p.stdout.read(5)
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=20)
        self.assertEqual(p.returncode, 0)

    def test_ctrl_c_before_the_generation(self):
        """What is more than a pipe holds has been written once the program reads."""
        for args in ((), ("go on",)):
            p = subprocess.Popen([harness.MUSTER, "run", BARD, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            p.stdin.write(b"word " * 100000)
            p.stdin.flush()
            p.send_signal(signal.SIGINT)
            self.assertEqual(p.wait(20), -signal.SIGINT)
            self.assertNotIn(b"cannot", p.stderr.read())
            for f in (p.stdin, p.stdout, p.stderr):
                f.close()

    def test_embed(self):
        def rows(*args, **more):
            done = run("embed", BARD, *args, **more)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout
        texts = ["ROMEO:", "What light", "é 🙂"]
        json_rows = [json.loads(line) for line in rows(*texts).splitlines()]
        self.assertEqual(len(json_rows), 3)
        for row in json_rows:
            self.assertAlmostEqual(sum(v * v for v in row), 1, places=5)
        self.assertEqual([[float(v) for v in line.split(" ")] for line in rows(*texts, "-o", "text").splitlines()], json_rows)
        self.assertEqual(rows(stdin="\r\n".join(texts)), rows(*texts))
        self.assertEqual(rows("-f", "-", stdin="\n".join(texts) + "\n"), rows(*texts))
        with tempfile.TemporaryDirectory() as tmp:
            lines, out = os.path.join(tmp, "lines.txt"), os.path.join(tmp, "out.f32")
            with open(lines, "w", encoding="utf-8") as f:
                f.write("\n".join(texts * 20))
            self.assertEqual(rows("-f", lines, "-o", "f32", "--out", out, "--split", "2:1/1", "-t", "1", "--batch", "3", "--chunk", "5"), "")
            with open(out, "rb") as f:
                data = f.read()
            n = len(json_rows[0])
            self.assertEqual(len(data), 4 * 60 * n)
            for i in range(60):
                for a, b in zip(struct.unpack_from(f"<{n}f", data, 4 * n * i), json_rows[i % 3]):
                    self.assertAlmostEqual(a, b, places=7)
        ids = json.loads(run("tokenize", BARD, "--bos", "ROMEO:").stdout)["ids"]
        self.assertEqual(rows("--ids", ",".join(map(str, ids))), rows("ROMEO:"))
        self.assertNotEqual(rows("ROMEO:", "--pooling", "mean"), rows("ROMEO:"))
        self.assertEqual(rows("ROMEO:", "--pooling", "model"), rows("ROMEO:"))
        self.assertEqual(len(json.loads(rows("ROMEO:", "--dimensions", "7"))), 7)
        self.assertEqual(rows("word " * 2000, "--truncate"), rows("word " * 3000, "--truncate"))

    def test_plan(self):
        done = run("plan", BARD, "--split", "3:1/1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("stage 1", done.stdout)

    def test_bars(self):
        """The bar of a text whose last token is no chunk is wiped away; a terminal that obeys no codes is shown none."""
        with tempfile.NamedTemporaryFile("w") as ids:
            ids.write("5 " * 129)
            ids.flush()
            args = ("perplexity", BARD, ids.name, "--ids", "--chunk", "64")
            shown = at_terminal(*args)
            self.assertIn("scoring [", shown)
            self.assertTrue(shown.endswith("\r\033[K"), shown)
            self.assertEqual(at_terminal(*args, term="dumb"), "")
            narrow = at_terminal(*args, columns=32)  # a line that goes on below cannot be written over
            self.assertIn("scoring [", narrow)
            self.assertTrue(all(len(line.replace("\033[K", "")) < 32 for line in narrow.split("\r")), narrow)
            self.assertNotIn("scoring", at_terminal(*args, columns=12))

    def test_synth_then_run(self):
        with tempfile.TemporaryDirectory() as tmp:
            for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "Q2_K", "Q3_K", "Q5_K", "IQ4_XS", "MXFP4"):
                out = os.path.join(tmp, kind + ".gguf")
                made = run("synth", "--layers", "2", "--d-model", "256", "--d-ff", "512", "--vocab", "600", "--ctx", "128", "--type", kind, "--out", out)
                self.assertEqual(made.returncode, 0, made.stderr)
                said = run("run", out, "a", "-n", "4", "--ignore-end")
                self.assertEqual(said.returncode, 0, said.stderr)

    def test_a_signal_leaves_no_partial_file(self):
        with tempfile.TemporaryDirectory() as tmp, tempfile.NamedTemporaryFile("w") as lines:
            lines.write(("word " * 400 + "\n") * 3000)
            lines.flush()
            out = os.path.join(tmp, "out")
            for sig, args in ((signal.SIGINT, ("synth",)), (signal.SIGTERM, ("logits", BARD, "--ids", ",".join(["7"] * 500), "--all", "--batch", "64")),
                              (signal.SIGHUP, ("embed", BARD, "-f", lines.name))):
                p = subprocess.Popen([harness.MUSTER, *args, "--out", out], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                deadline = time.monotonic() + 60
                while not os.listdir(tmp) and p.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.005)
                self.assertEqual(os.listdir(tmp), [f"out.partial-{p.pid}"])
                p.send_signal(sig)
                self.assertEqual(p.wait(20), -sig)
                self.assertEqual(os.listdir(tmp), [], args[0])


class Bad(unittest.TestCase):
    def test_parameters(self):
        for args, words in ((("--min-p", "2"), ["min_p", "from 0 to 1"]), (("--typical", "x"), ["typical_p"]),
                            (("--repeat-penalty", "0.001"), ["repeat_penalty", "0.01"]),
                            (("--repeat-penalty", "101"), ["repeat_penalty must be 0 (off) or from 0.01 to 100"]), (("--seed", "1.5"), ["whole number from -1 to 9007199254740991"]),
                            (("--presence-penalty", "9"), ["from -2 to 2"]),
                            (("--logit-bias", "5"), ["ID=X"]), (("--logit-bias", "5=1e9"), ["-1000 to 1000"]), (("--repeat-last-n", "-2"), ["repeat_last_n"]),
                            (("--min-tokens", "-1"), ["min_tokens"])):
            done = run("run", BARD, "O", *args)
            self.assertEqual(done.returncode, 2, done.stderr)
            for word in words:
                self.assertIn(word, done.stderr)
        done = run("run", BARD, "O", "--raw", "-n", "1", "--logit-bias", "99999=1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("token 99999 is not in the vocabulary", done.stderr)

    def fails(self, args, words, status=1, **more):
        done = run(*args, **more)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        if status == 1:
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_usage(self):
        self.fails(["fly"], ["no verb 'fly'"], status=2)
        self.fails(["help", "fly"], ["no verb 'fly'"], status=2)
        self.fails(["detokenize", BARD, "1", "2"], ["the ids, in quotes"], status=2)
        self.fails([], ["Usage"], status=2)
        self.fails(["run"], ["MODEL"], status=2)
        self.fails(["run", "default", "a", "--server", "127.0.0.1:1", "--priority", "now"], ["--priority must be interactive, normal or batch"], status=2)
        self.fails(["run", BARD, "a", "--priority", "batch"], ["--priority is among the requests of a --server"], status=2)
        self.fails(["bench", BARD, "-p", "x"], ["whole number"], status=2)
        self.fails(["run", BARD, "a", "--temperature", "hot"], ["number"], status=2)
        self.fails(["show", BARD, "-o", "json", "--template"], ["-o json is of the whole"], status=2)
        self.fails(["tokenize", BARD, "-f", __file__, "TEXT"], ["not both"], status=2)
        self.fails(["run", BARD, "a", "--raw", "--system", "x"], ["leave out --system"], status=2)

    def test_files(self):
        with tempfile.TemporaryDirectory() as tmp:
            def path(name, data):
                p = os.path.join(tmp, name)
                with open(p, "wb") as f:
                    f.write(data)
                return p
            with open(BARD, "rb") as f:
                bard = f.read()
            self.fails(["run", tmp + "/none.gguf", "a"], ["none.gguf"])
            self.fails(["run", tmp, "a"], [tmp])
            self.fails(["run", path("file", b"") + "/m.gguf", "a"], ["file/m.gguf': Not a directory"])
            self.fails(["run", path("empty.gguf", b""), "a"], ["empty.gguf", "empty"])
            self.fails(["run", path("zip.gguf", b"PK\x03\x04" + bytes(100)), "a"], ["zip.gguf"])
            self.fails(["run", path("short.gguf", bard[:100000]), "a"], ["short.gguf", "expected", "found"])
            self.fails(["run", path("cut.gguf", bard[:-1000]), "a"], ["cut.gguf", "expected", "found"])
            self.fails(["run", path("v9.gguf", bard[:4] + struct.pack("<I", 9) + bard[8:]), "a"], ["v9.gguf", "version 2 or 3", "found 9"])
            self.fails(["run", path("many.gguf", bard[:8] + struct.pack("<Q", 1 << 60) + bard[16:]), "a"], ["many.gguf", "offset 8"])
            wrong = bard.replace(b"\x05\0\0\0\0\0\0\0llama\x15", b"\x05\0\0\0\0\0\0\0qwenX\x15", 1)
            if wrong == bard:
                wrong = bard.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qwenX", 1)
            self.fails(["run", path("arch.gguf", wrong), "a"], ["qwenX", "llama"])

    def test_prompts_and_ids(self):
        self.fails(["run", BARD, "word " * 2000], ["context", "512"])
        with tempfile.TemporaryDirectory() as tmp:
            out = os.path.join(tmp, "x.f32")
            for ids, words in (("1,2,x", ["IDS, character 5"]), ("99999", ["vocabulary"]), ("", ["no token ids"]), ("@" + tmp + "/none", ["none"]), (",".join(["1"] * 600), ["512"])):
                self.fails(["logits", BARD, "--ids", ids, "--out", out], words)
            self.fails(["logits", BARD, "--ids", "1", "--out", tmp + "/no/such/folder/x"], ["no/such/folder"])
            self.fails(["logits", BARD, "--ids", "1", "--out", out, "--split", "1/1/1/1/1/1"], ["layers"])
            self.fails(["logits", BARD, "--ids", "1", "--out", out, "--split", "a"], ["split 'a'", "position 1"])
            self.fails(["logits", BARD, "--ids", "1", "--out", out], ["MUSTER_KERNELS", "ref"], env={"MUSTER_KERNELS": "sse9"})
            self.assertEqual(os.listdir(tmp), [])

    def test_embed(self):
        self.fails(["embed", BARD, "a", ""], ["text 2 is empty"])
        self.fails(["embed", BARD, "-f", "-"], ["standard input", "no texts"], stdin="")
        self.fails(["embed", BARD], ["line 2 is empty"], stdin="a\n\nb\n")
        self.fails(["embed", BARD], ["NUL"], stdin="a\0b\n")
        self.fails(["embed", BARD, "a", "word " * 2000], ["text 2", "512", "--truncate"])
        self.fails(["embed", BARD, "--ids", "1,2", "1,x"], ["text 2", "character 3"])
        self.fails(["embed", BARD, "--ids", "@" + __file__], ["text 1", "'@'"])
        self.fails(["embed", BARD, "--ids", "1,2", "99999"], ["text 2", "99999"])
        self.fails(["embed", BARD, "a", "--dimensions", "4000"], ["4000"])
        self.fails(["embed", BARD, "a", "--ctx", "4000"], ["4000", "512"])
        self.fails(["embed", BARD, "a", "--pooling", "max"], ["--pooling", "mean", "last"], status=2)
        self.fails(["embed", BARD, "a", "-f", "b"], ["not both"], status=2)
        self.fails(["embed"], ["MODEL"], status=2)
        self.fails(["embed", BARD, "-f", "/nowhere/x"], ["/nowhere/x"])
        self.fails(["embed", BARD, "a", "--server", "127.0.0.1:1"], ["no server", "127.0.0.1:1"])
        with tempfile.TemporaryDirectory() as tmp:
            with open(os.path.join(tmp, "lines"), "w") as f:
                f.write("a\nb\n\n")
            self.fails(["embed", BARD, "-f", f.name], ["lines, line 3 is empty"])
            os.remove(f.name)
            out = os.path.join(tmp, "out")
            self.fails(["embed", BARD, "a", "word " * 2000, "--out", out], ["text 2"])
            self.assertEqual(os.listdir(tmp), [])

    def test_no_server(self):
        self.fails(["ps", "--server", "127.0.0.1:1"], ["127.0.0.1:1"], timeout=60)
        self.fails(["run", "default", "a", "--server", "127.0.0.1:1"], ["127.0.0.1:1"], timeout=60)
        for verb in (["run", "default", "a"], ["embed", "default", "a"], ["ps"], ["bench"]):
            self.fails([*verb, "--server", "127.0.0.1:99999"], ['"127.0.0.1:99999" is no server\'s address: expected HOST:PORT'], timeout=60)

    def test_no_worker(self):
        self.fails(["serve", BARD, "--listen", "127.0.0.1:0", "--worker", "unix:/nowhere/w"],
                   ["muster serve: no worker answers at unix:/nowhere/w: start one with 'muster worker --listen unix:/nowhere/w'"], timeout=60)

    def test_options_that_are_the_server_s(self):
        for verb, options in (("run", ("-t 2", "-c 64", "--split 1", "--device cpu", "--gpu-prompts rough", "--quantize q8_0", "--kv q8_0")),
                              ("embed", ("-t 2", "-c 64", "--split 1", "--batch 32", "--chunk 64", "--quantize q8_0", "--kv q8_0"))):
            for option in options:
                self.fails([verb, "default", "a", "--server", "127.0.0.1:1", *option.split()], ["a server has its own"], status=2)

    def test_out_of_memory(self):
        with tempfile.TemporaryDirectory() as tmp:
            big = os.path.join(tmp, "big.gguf")
            made = run("synth", "--layers", "4", "--d-model", "2048", "--type", "F16", "--vocab", "4096", "--out", big)
            self.assertEqual(made.returncode, 0, made.stderr)
            size = os.path.getsize(big)
            limit = size // 1024 + 200000  # the mapping fits, packed weights beside it do not
            done = subprocess.run(["sh", "-c", f"ulimit -v {limit}; exec \"$0\" run \"$1\" a -n 1", harness.MUSTER, big], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("memory", done.stderr)

    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "w") as full:
            for args in (["run", BARD, "a", "--raw", "-n", "3"], ["tokenize", BARD, "a"], ["detokenize", BARD, "5"], ["plan", BARD], ["--help"], ["--version"]):
                done = subprocess.run([harness.MUSTER, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
                self.assertEqual(done.returncode, 1, args)
                self.assertIn("standard output", done.stderr)
            with tempfile.NamedTemporaryFile("w") as text:  # more than what is held back until the end
                text.write("a " * 20000)
                text.flush()
                done = subprocess.run([harness.MUSTER, "tokenize", BARD, "-f", text.name], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
                self.assertIn("cannot write to standard output", done.stderr)
        self.fails(["logits", BARD, "--ids", "1", "--out", "/dev/null"], ["/dev/null", "name a file"])
        p = subprocess.Popen([harness.MUSTER, "run", BARD, "a", "--raw", "--ignore-end", "-t", "1", "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        p.stdout.read(3)
        p.stdout.close()  # the reader goes away: the generation stops
        self.assertEqual((p.stderr.read(), p.wait(20)), ("", 1))
        p.stderr.close()

    def test_reader_that_went_away(self):
        """Told by the status alone; what else is wrong is told."""
        r, w = os.pipe()
        os.close(r)
        with os.fdopen(w, "w") as gone, tempfile.TemporaryDirectory() as tmp:
            shutil.copy(BARD, tmp)
            for args in (["run", BARD, "a", "--raw", "-n", "3"], ["tokenize", BARD, "a"], ["detokenize", BARD, "5"], ["template", BARD], ["embed", BARD, "a"],
                         ["plan", BARD], ["show", BARD], ["show", BARD, "-o", "json"], ["show", BARD, "--template"], ["list"], ["list", "-o", "json"]):
                done = subprocess.run([harness.MUSTER, *args], input='[{"role":"user","content":"a"}]', stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60,
                                      env=dict(os.environ, LLAMA_CACHE=tmp, MUSTER_MODELS=tmp + "/none", HOME=tmp))
                self.assertEqual((done.stderr, done.returncode), ("", 1), args)
            done = subprocess.run([harness.MUSTER, "tokenize", tmp + "/none.gguf", "a"], stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60)
            self.assertIn("none.gguf", done.stderr)

    def test_closed_standard_error(self):
        """What is told there never becomes a part of a file that was opened in its place."""
        with tempfile.TemporaryDirectory() as tmp:
            model, out = os.path.join(tmp, "m.gguf"), os.path.join(tmp, "v.f32")
            made = run("synth", "--layers", "1", "--d-model", "96", "--heads", "4", "--d-ff", "128", "--vocab", "600", "--type", "F16", "--out", model)
            self.assertEqual(made.returncode, 0, made.stderr)
            embed = [harness.MUSTER, "embed", model, "a", "--quantize", "q4_k", "-o", "f32", "--dimensions", "4", "--out", out]
            told = subprocess.run(embed, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            self.assertIn("no multiple of 256", told.stderr)
            for closed in ("2>&-", "<&- 2>&-", "<&- >&- 2>&-"):
                done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *embed], timeout=60)
                self.assertEqual((done.returncode, os.path.getsize(out)), (0, 16), closed)

    def test_edges(self):
        with tempfile.TemporaryDirectory() as tmp:
            ids = os.path.join(tmp, "ids.txt")
            with open(ids, "w") as f:
                f.write("1 2 99999")
            self.fails(["perplexity", BARD, ids, "--ids"], ["99999", "vocabulary"])
            self.fails(["perplexity", BARD, ids, "--chunk", "800"], ["800", "512"])
        self.fails(["run", BARD, "a", "-c", "10000"], ["10000", "512"])
        self.fails(["plan", BARD, "-c", "10000"], ["10000", "512"])
        self.fails(["run", BARD, "a", "-T", "1e-45"], ["temperature"], status=2)
        self.fails(["run", BARD], ["no prompt"], stdin="")
        self.fails(["run", BARD], ["NUL"], stdin="a\0b")
        closed = subprocess.run(["sh", "-c", 'exec "$0" run "$1" <&-', harness.MUSTER, BARD], capture_output=True, text=True, timeout=60)
        self.assertEqual((closed.returncode, "standard input" in closed.stderr), (1, True), closed.stderr)
        self.assertIn("does not fit", run("plan", self.giant(), "--ctx", "16000000", "--split", "1:1").stdout)

    def giant(self):
        """A small file whose cache is enormous."""
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        path = os.path.join(self.dir.name, "giant.gguf")
        made = run("synth", "--layers", "2", "--d-model", "256", "--d-ff", "512", "--heads", "256", "--kv-heads", "256", "--d-head", "512", "--vocab", "512",
                   "--ctx", "16000000", "--type", "Q8_0", "--out", path)
        self.assertEqual(made.returncode, 0, made.stderr)
        return path

    def test_fault_name(self):
        self.fails(["ps"], ["nosuch"], env={"MUSTER_FAULT": "nosuch.point:1"})


if __name__ == "__main__":
    harness.main()
