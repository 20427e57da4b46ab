"""However a server ends, nothing of it is left five seconds later; and what cannot start says why."""
import os
import signal
import socket
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import pb  # noqa: E402


class Cleanup(unittest.TestCase):
    def ends_with(self, sig, busy):
        server = harness.Server(split="2:1/1")
        if busy:
            call = server.generate_call(pb.GenerateRequest(text="O", max_tokens=500, ignore_end=True), timeout=60)
            next(call)
        pids = server.processes()
        self.assertGreaterEqual(len(pids), 6)  # serve, worker, mpirun, three ranks
        left = server.stop(sig, seconds=5)
        self.assertEqual(left, [], "still running: " + repr([open(f"/proc/{p}/cmdline").read() for p in left if harness.alive(p)]))
        server.__exit__(None, None, None)
        return server

    def test_interrupt(self):
        self.assertEqual(self.ends_with(signal.SIGINT, busy=False).process.returncode, 0)

    def test_terminate_while_busy(self):
        self.assertEqual(self.ends_with(signal.SIGTERM, busy=True).process.returncode, 0)

    def test_kill_the_coordinator(self):
        self.ends_with(signal.SIGKILL, busy=True)

    def test_run_folders_are_removed(self):
        with tempfile.TemporaryDirectory() as tmp:
            server = harness.Server(split="1:1", env={"TMPDIR": tmp, "XDG_RUNTIME_DIR": tmp})
            self.assertEqual(server.stop(), [])
            server.__exit__(None, None, None)
            self.assertEqual([e for e in os.listdir(tmp) if e.startswith("muster-") or e.startswith("ompi")], [])


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

    def test_bad_split(self):
        self.fails([harness.BARD, "--listen", "127.0.0.1:0", "--split", "2:/1"], ["split '2:/1'", "position"])

    def test_more_stages_than_layers(self):
        self.fails([harness.BARD, "--listen", "127.0.0.1:0", "--split", "1/1/1/1/1"], ["4 layers"])

    def test_no_such_model(self):
        self.fails(["/nowhere/model.gguf", "--listen", "127.0.0.1:0"], ["/nowhere/model.gguf"])

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
