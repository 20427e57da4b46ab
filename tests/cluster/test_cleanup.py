"""However a server ends, nothing of it is left five seconds later; and what cannot start says why."""
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import pb  # noqa: E402


@contextlib.contextmanager
def ignored(sig):
    """What is started meanwhile ignores it."""
    before = signal.signal(sig, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(sig, before)


class Cleanup(unittest.TestCase):
    def ends_with(self, sig, busy):
        with harness.Server(split="2:1/1") as server:
            if busy:
                call = server.generate_call(pb.GenerateRequest(text="O", max_tokens=500, ignore_end=True), timeout=60)
                next(call)
            pids = server.processes()
            self.assertGreaterEqual(len(pids), 6)  # serve, worker, mpirun, three ranks
            left = server.stop(sig, seconds=5)
            self.assertEqual(left, [], "still running: " + repr([open(f"/proc/{p}/cmdline").read() for p in left if harness.alive(p)]))
            return server

    def test_interrupt(self):
        self.assertEqual(self.ends_with(signal.SIGINT, busy=False).process.returncode, 0)

    def test_terminate_while_busy(self):
        self.assertEqual(self.ends_with(signal.SIGTERM, busy=True).process.returncode, 0)

    def test_kill_the_coordinator(self):
        self.ends_with(signal.SIGKILL, busy=True)

    def test_hangup_that_is_ignored(self):
        """As nohup has it."""
        with tempfile.TemporaryDirectory() as tmp, ignored(signal.SIGHUP):
            server = harness.Server(split="1:1")
            worker = subprocess.Popen([harness.MUSTER, "worker", "--listen", f"unix:{tmp}/w"], stderr=subprocess.PIPE, text=True)
            self.addCleanup(worker.stderr.close)
            self.addCleanup(worker.kill)
            while "listening" not in worker.stderr.readline():
                self.assertIsNone(worker.poll())
        with server:
            for process in (server.process, worker):
                process.send_signal(signal.SIGHUP)
                with self.assertRaises(subprocess.TimeoutExpired):
                    process.wait(1)
            self.assertEqual(len(server.generate("O", 3)[0]), 3)
            worker.terminate()
            self.assertEqual(worker.wait(5), 0)
            self.assertEqual(server.stop(), [])
            self.assertEqual(server.process.returncode, 0)

    def test_a_worker_that_runs_on(self):
        """The end of the server is no failure of the gang, idle or busy."""
        with tempfile.TemporaryDirectory() as tmp, open(tmp + "/log", "w+") as log:
            worker = subprocess.Popen([harness.MUSTER, "worker", "--listen", f"unix:{tmp}/w"], stderr=log)
            self.addCleanup(worker.kill)
            while not os.path.exists(tmp + "/w"):
                self.assertIsNone(worker.poll())
                time.sleep(0.01)
            for busy in (False, False, False, True, True):
                with harness.Server(split="1:1", args=["--worker", f"unix:{tmp}/w"]) as server:
                    if busy:
                        next(server.generate_call(pb.GenerateRequest(text="O", n=8, max_tokens=500, ignore_end=True), timeout=60))
                    self.assertEqual(server.stop(), [])
                    self.assertEqual(server.process.returncode, 0)
            worker.terminate()
            self.assertEqual(worker.wait(5), 0)
            log.seek(0)
            self.assertNotIn(" error ", log.read())

    def test_worker_dies_where_nobody_waits_for_children(self):
        """What started the server has the system reap its children unseen, and the server inherits that."""
        with ignored(signal.SIGCHLD):
            server = harness.Server(split="1:1")
        with server:
            epoch = server.gang().epoch
            os.kill(server.status().node[0].worker_pid, signal.SIGKILL)
            server.wait_ready(epoch_after=epoch)
            self.assertEqual(len(server.generate("O", 3)[0]), 3)
            self.assertEqual(server.stop(), [])
            self.assertEqual(server.process.returncode, 0)

    def test_run_folders_are_removed(self):
        with tempfile.TemporaryDirectory() as tmp:
            with harness.Server(split="1:1", env={"TMPDIR": tmp, "XDG_RUNTIME_DIR": tmp}) as server:
                self.assertEqual(server.stop(), [])
            self.assertEqual([e for e in os.listdir(tmp) if e.startswith("muster-") or e.startswith("ompi")], [])


    def test_run_folders_of_the_killed_are_swept(self):
        def folders(*parents):
            return {os.path.join(p, e) for p in parents for e in os.listdir(p) if e.startswith("muster-")}

        with tempfile.TemporaryDirectory() as tmp:
            env = {"TMPDIR": tmp, "XDG_RUNTIME_DIR": tmp}
            with harness.Server(split="1:1", env=env) as server:
                old = folders(tmp)
                self.assertEqual(len(old), 2, old)  # serve's and the worker's
                pids = server.processes()
                harness.kill(pids)
                self.assertEqual(harness.wait_gone(pids, 5), [])
            self.assertNotEqual(folders(tmp) & old, set(), "nothing was left behind that could be swept")
            with harness.Server(split="1:1", env=env) as other:
                self.assertEqual(folders(tmp) & old, set())
                self.assertEqual(len(folders(tmp)), 2)  # a second server does not touch a living one's
                with harness.Server(split="1:1", env=env):
                    self.assertEqual(len(folders(tmp)), 4)
                self.assertEqual(len(other.generate("O", 3)[0]), 3)
            self.assertEqual(folders(tmp), set())

    def test_out_of_descriptors(self):
        """gRPC would never accept again: the server ends and says why, so that it is started again."""
        with harness.Server(split="1:1") as server:
            n_open = len(os.listdir(f"/proc/{server.process.pid}/fd"))
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (n_open + 20, n_open + 20))
            host, port = server.address.split(":")
            connections = [socket.create_connection((host, int(port))) for _ in range(60)]
            try:
                self.assertEqual(server.process.wait(20), 1)
            finally:
                for c in connections:
                    c.close()
            said = [line for line in server.logged().splitlines() if line.startswith("muster serve: ")]
            self.assertEqual(len(said), 1, server.logged())
            for word in ("accepted", "Too many open files", "ulimit"):
                self.assertIn(word, said[0])

    def test_what_hangs_is_ended(self):
        """Servers, the worker's as well as serve's, that hang when they are stopped."""
        with tempfile.TemporaryDirectory() as tmp:
            with harness.Server(split="1:1", env={"TMPDIR": tmp, "XDG_RUNTIME_DIR": tmp, "MUSTER_FAULT": "rpc.stop:1=sleep"}) as server:
                self.assertEqual(server.stop(seconds=8), [])
                self.assertEqual(server.process.returncode, 1)
                self.assertIn("muster serve: the end hangs", server.logged())
            worker = subprocess.Popen([harness.MUSTER, "worker", "--listen", f"unix:{tmp}/w"], stderr=subprocess.PIPE, text=True,
                                      env=dict(os.environ, TMPDIR=tmp, MUSTER_FAULT="rpc.stop:1=sleep"))
            self.addCleanup(worker.stderr.close)
            self.addCleanup(worker.kill)
            while "listening" not in worker.stderr.readline():
                self.assertIsNone(worker.poll())
            worker.terminate()
            self.assertEqual(worker.wait(8), 1)
            self.assertIn("muster worker: the end hangs", worker.stderr.read())


class Loading(unittest.TestCase):
    """Clients that come, and a signal that comes, before the model is loaded."""

    def start(self, *args, wait=True, **env):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
        process = subprocess.Popen([harness.MUSTER, "serve", harness.BARD, "--split", "2:1/1", "--listen", address, *args], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env=dict(os.environ, **env))
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        for _ in range(2000):  # gRPC itself would wait a second before it tries again
            try:
                socket.create_connection(("127.0.0.1", int(address.split(":")[1])), timeout=1).close()
                break
            except ConnectionRefusedError:
                if not wait or process.poll() is not None:
                    break
                time.sleep(0.005)
        channel = harness.grpc.insecure_channel(address)
        self.addCleanup(channel.close)
        status = channel.unary_unary("/muster.v1.Muster/ModelStatus", request_serializer=pb.ModelStatusRequest.SerializeToString,
                                     response_deserializer=pb.ModelStatusReply.FromString)
        generate = channel.unary_stream("/muster.v1.Muster/Generate", request_serializer=pb.GenerateRequest.SerializeToString,
                                        response_deserializer=pb.GenerateReply.FromString)
        return process, status, generate

    def test_requests_wait_for_the_model(self):
        process, status, generate = self.start("--stall-ms", "60000", MUSTER_FAULT="rank.load@1:1=stop")  # until it is told to go on
        replies = generate(pb.GenerateRequest(text="ROMEO:\n", max_tokens=20, ignore_end=True), timeout=60, wait_for_ready=True)
        self.assertTrue(next(replies).request_id)
        stopped = []
        while not stopped:
            self.assertIsNone(process.poll())
            time.sleep(0.05)
            stopped = [pid for pid in harness.descendants(process.pid) if harness.state(pid) == "T"]
        self.assertFalse(status(pb.ModelStatusRequest(), timeout=10).ready)
        os.kill(stopped[0], signal.SIGCONT)
        usage = list(replies)[-1].usage
        self.assertEqual(usage.completion_tokens, 20)
        self.assertGreater(usage.queue_ms, 20)
        self.assertTrue(status(pb.ModelStatusRequest(), timeout=10).ready)
        process.terminate()
        self.assertEqual(process.wait(5), 0)

    def test_signal_while_loading(self):
        process, status, generate = self.start(MUSTER_FAULT="rank.load@1:1=sleep")
        replies = generate(pb.GenerateRequest(text="ROMEO:\n", max_tokens=20), timeout=60, wait_for_ready=True)
        next(replies)
        time.sleep(1)
        pids = harness.descendants(process.pid)
        self.assertGreaterEqual(len(pids), 6)
        begin = time.monotonic()
        process.terminate()
        with self.assertRaises(harness.grpc.RpcError) as caught:
            list(replies)
        self.assertEqual(caught.exception.code(), harness.grpc.StatusCode.UNAVAILABLE)
        self.assertIn("stopping", caught.exception.details())
        self.assertEqual(process.wait(5), 0)
        self.assertEqual(harness.wait_gone(pids, 5 - (time.monotonic() - begin)), [])

    def test_signal_at_once(self):
        for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
            process, _, _ = self.start(wait=False)
            time.sleep(delay)
            pids = harness.descendants(process.pid)
            process.send_signal(signal.SIGINT)
            self.assertIn(process.wait(5), (0, -signal.SIGINT))  # before main() the signal is the system's
            self.assertEqual(harness.wait_gone(pids, 5), [])


class CannotStart(unittest.TestCase):
    """Each ends with one clear sentence and a status other than 0."""

    def fails(self, args, words, env=None):
        done = harness.run("serve", *args, env=env, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        said = [line for line in done.stderr.splitlines() if line.startswith("muster serve: ")]
        self.assertEqual(len(said), 1, done.stderr)
        for word in words:
            self.assertIn(word, said[0])
        return done

    def test_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            self.fails([harness.BARD, "--listen", f"127.0.0.1:{port}"], [str(port), "in use", "--listen"])

    def test_no_mpirun(self):
        with tempfile.TemporaryDirectory() as empty:
            self.fails([harness.BARD, "--listen", "127.0.0.1:0", "--split", "1:1"], ["mpirun", "openmpi-bin"], env={"PATH": empty})

    def test_no_threads(self):
        """serve's n-th gRPC thread cannot be started; the worker, which inherits the fault, starts fewer."""
        for n in (1, 2, 3):
            self.fails([harness.BARD, "--listen", "127.0.0.1:0", "--split", "1:1"], ["thread for gRPC", "ulimit"],
                       env={"MUSTER_FAULT": f"rpc.thread:{n}"})

    def test_little_address_space(self):
        """Whatever fails then, gRPC itself included, nothing hangs: it serves, or ends and says something."""
        for kb in (60000, 80000, 100000, 360000):
            with tempfile.TemporaryDirectory() as tmp, tempfile.TemporaryFile(mode="w+") as log:
                process = subprocess.Popen(["sh", "-c", f"ulimit -v {kb}; exec \"$0\" serve \"$1\" --split 1:1 --listen 127.0.0.1:0", harness.MUSTER,
                                            harness.BARD], stdout=subprocess.PIPE, stderr=log, text=True,
                                           env=dict(os.environ, TMPDIR=tmp, XDG_RUNTIME_DIR=tmp))
                self.addCleanup(process.stdout.close)
                self.addCleanup(process.kill)
                try:
                    self.assertNotEqual(process.wait(15), 0)
                    log.seek(0)
                    self.assertNotEqual(log.read().strip(), "", kb)
                except subprocess.TimeoutExpired:
                    pids = harness.descendants(process.pid)
                    process.terminate()
                    process.wait(8)
                    self.assertEqual(harness.wait_gone(pids, 8), [])

    def test_bad_split(self):
        self.fails([harness.BARD, "--listen", "127.0.0.1:0", "--split", "2:/1"], ["split '2:/1'", "position"])

    def test_more_stages_than_layers(self):
        self.fails([harness.BARD, "--listen", "127.0.0.1:0", "--split", "1/1/1/1/1"], ["4 layers"])

    def test_no_such_model(self):
        self.fails(["/nowhere/model.gguf", "--listen", "127.0.0.1:0"], ["/nowhere/model.gguf"])

    def test_path_not_utf8(self):
        with tempfile.TemporaryDirectory() as tmp:
            model = os.path.join(tmp, os.fsdecode(b"mod\xe8le.gguf"))
            os.symlink(harness.BARD, model)
            self.fails([model, "--listen", "127.0.0.1:0"], ["the model's path", "mod?le.gguf", "UTF-8", "rename"])
            runs = os.path.join(tmp, os.fsdecode(b"\xe9t\xe9"))
            os.mkdir(runs, 0o700)
            self.fails([harness.BARD, "--listen", "127.0.0.1:0"], ["XDG_RUNTIME_DIR", "UTF-8"], env={"XDG_RUNTIME_DIR": runs})
            cwd = os.getcwd()
            os.chdir(runs)
            self.addCleanup(os.chdir, cwd)
            os.symlink(harness.BARD, "here.gguf")
            self.fails(["here.gguf", "--listen", "127.0.0.1:0"], ["the model's path", "?t?", "UTF-8"])

    def test_context_too_long(self):
        self.fails([harness.BARD, "--listen", "127.0.0.1:0", "--ctx", "1000"], ["512"])

    def test_no_memory(self):
        # 4096 sequences are fine, since pages are what counts; a model that cannot fit is made by lying about nothing: a synthetic giant.
        with tempfile.TemporaryDirectory() as tmp:
            giant = os.path.join(tmp, "giant.gguf")
            made = harness.run("synth", "--layers", "2", "--d-model", "256", "--d-ff", "512", "--heads", "256", "--kv-heads", "256", "--d-head", "512",
                               "--vocab", "512", "--ctx", "16000000", "--type", "Q8_0", "--out", giant, timeout=120)
            self.assertEqual(made.returncode, 0, made.stderr)
            self.fails([giant, "--listen", "127.0.0.1:0", "--ctx", "16000000"], ["does not fit", "GB", "--ctx"])


if __name__ == "__main__":
    harness.main()
