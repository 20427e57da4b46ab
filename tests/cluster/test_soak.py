"""Many clients at once, rude ones, and a worker that keeps dying: the server answers, forgets nobody, and leaks no place."""
import concurrent.futures
import os
import signal
import socket
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402


def request(text="O", n=400):
    return pb.GenerateRequest(text=text, max_tokens=n, ignore_end=True)


class Soak(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server(split="1:1", args=["--queue", "600"])

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def settle(self, seconds=30):
        """All places are free again, and an ordinary request is served."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.server.status()
            if not status.running and not status.waiting:
                break
            time.sleep(0.05)
        self.assertEqual((status.running, status.waiting), (0, 0))
        self.assertEqual(len(self.server.generate("KING", 10)[0]), 10)

    def test_500_slow_readers(self):
        calls = [self.server.generate_call(request(str(i), 24), timeout=60) for i in range(500)]
        firsts = [next(c) for c in calls]  # everybody is in; nobody reads on
        self.assertEqual(len({f.request_id for f in firsts}), 500)
        quick = self.server.generate("KING", 10)[0]
        self.assertEqual(len(quick), 10)
        for call in calls:
            last = list(call)[-1]
            self.assertEqual((last.finish, last.usage.completion_tokens), (pb.FINISH_LENGTH, 24))
        self.settle()

    def test_200_cancel_at_once(self):
        def rude(i):
            call = self.server.generate_call(request(str(i)), timeout=60)
            if i % 2:
                next(call)
            call.cancel()

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(rude, range(200)))
        self.settle()

    def test_clients_that_vanish(self):
        """Processes that are killed in the middle of a stream."""
        script = ("import sys, grpc, time\n"
                  "call = grpc.insecure_channel(sys.argv[1]).unary_stream('/muster.v1.Muster/Generate')\n"
                  "it = call(bytes.fromhex(sys.argv[2]))\n"
                  "next(it); print('on', flush=True); time.sleep(60)\n")
        import subprocess
        clients = [subprocess.Popen(["/usr/bin/python3", "-c", script, self.server.address, request(str(i)).SerializeToString().hex()],
                                    stdout=subprocess.PIPE, text=True) for i in range(8)]
        for c in clients:
            self.assertEqual(c.stdout.readline(), "on\n")
        for c in clients:
            c.kill()
            c.wait()
            c.stdout.close()
        self.settle()

    def test_malformed_bytes(self):
        methods = ["Generate", "Tokenize", "Detokenize", "ModelStatus", "ClusterStatus"]
        garbage = [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x02\xc3\x28", b"\x0a\x03a\x00b", b"\x08", b"\x1a\x05\x0a\xff", os.urandom(2000)]
        for method in methods:
            for raw in garbage:
                call = self.server.channel.unary_stream(f"/muster.v1.Muster/{method}")
                try:
                    list(call(raw, timeout=20))
                except grpc.RpcError as e:
                    self.assertIn(e.code(), (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), f"{method} {raw[:20]} {e.details()}")
        host, port = self.server.address.rsplit(":", 1)
        for raw in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100, b""):
            with socket.create_connection((host, int(port)), timeout=5) as s:
                s.sendall(raw)
        self.settle()

    def test_flood_beyond_the_queue(self):
        """Requests that are long for the gang and a queue that is short for them, so that it overflows however slow the client is."""
        with harness.Server(split="1:1", args=["--queue", "20", "--parallel", "2"]) as server:
            calls = [server.generate_call(request(str(i), 300), timeout=100) for i in range(200)]
            busy = served = 0
            for call in calls:
                try:
                    served += list(call)[-1].usage.completion_tokens == 300
                except grpc.RpcError as e:
                    self.assertEqual(e.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, e.details())
                    self.assertRegex(e.details(), r"busy: 20 requests are waiting and \d+ running")
                    busy += 1
            self.assertEqual(busy + served, 200)
            self.assertGreaterEqual(served, 20)
            self.assertGreater(busy, 0)
            self.assertEqual(server.status().running, 0)


def worker_pid(server):
    for pid in server.processes():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if b"\0worker\0" in f.read():
                    return pid
        except FileNotFoundError:
            pass
    return None


class Worker(unittest.TestCase):
    def test_killed_again_and_again(self):
        """Every half second for ten seconds: no stream fails, none has a wrong token."""
        with harness.Server(split="1:1") as server:
            jobs = [(f"SCENE {i}\n", 300, i) for i in range(4)]
            expected = [server.generate(p, n, seed=s)[0] for p, n, s in jobs]
            stop, errors, done = threading.Event(), [], [0]

            def keep_asking(i):
                prompt, n, seed = jobs[i]
                while not stop.is_set():
                    try:
                        if server.generate(prompt, n, seed=seed)[0] != expected[i]:
                            errors.append(f"stream {i} is wrong")
                        done[0] += 1
                    except grpc.RpcError as e:
                        errors.append(e.details())

            threads = [threading.Thread(target=keep_asking, args=(i,)) for i in range(4)]
            for t in threads:
                t.start()
            for _ in range(20):
                time.sleep(0.5)
                pid = worker_pid(server)
                if pid:
                    os.kill(pid, signal.SIGKILL)
            stop.set()
            for t in threads:
                t.join(60)
            self.assertEqual(errors, [])
            self.assertGreaterEqual(done[0], 4)
            print(f"  {done[0]} streams whole, {server.gang().relaunches} relaunches")

    def test_stopped(self):
        """A worker that is stopped is replaced; streams go on; to wake it would be too late, and harmless."""
        with harness.Server(split="1:1") as server:
            expected = server.generate("KING", 450, seed=1)[0]
            gang, stopped = server.gang(), []

            def stop_it(n):
                if n >= 3 and not stopped:
                    stopped.append(worker_pid(server))
                    os.kill(stopped[0], signal.SIGSTOP)

            self.assertEqual(server.generate("KING", 450, seed=1, on_token=stop_it)[0], expected)
            server.wait_ready(epoch_after=gang.epoch, seconds=20)
            self.assertFalse(harness.alive(stopped[0]))
            self.assertNotEqual(worker_pid(server), stopped[0])
            self.assertEqual(server.generate("KING", 450, seed=1)[0], expected)

    def test_stopped_and_woken(self):
        for who in (worker_pid, lambda server: server.gang().mpirun_pid):
            with harness.Server(split="1:1") as server:
                expected = server.generate("KING", 100, seed=1)[0]
                pid = who(server)
                os.kill(pid, signal.SIGSTOP)
                self.assertEqual(server.generate("KING", 100, seed=1)[0], expected)
                time.sleep(1)
                os.kill(pid, signal.SIGCONT)
                self.assertEqual(server.generate("KING", 100, seed=1)[0], expected)
                self.assertEqual(server.gang().relaunches, 0)

    def test_shutdown_while_stopped(self):
        for who in (worker_pid, lambda server: server.gang().mpirun_pid):
            with harness.Server(split="1:1") as server:
                os.kill(who(server), signal.SIGSTOP)
                self.assertEqual(server.stop(seconds=5), [])
                self.assertEqual(server.process.returncode, 0)


if __name__ == "__main__":
    harness.main()
