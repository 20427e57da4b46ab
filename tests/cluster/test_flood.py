"""More than a server can do: ten thousand calls at once take bounded memory, each ends with an answer or an honest refusal,
and what is urgent still comes through. MUSTER_TEST_REDUCED: a thousand (for ThreadSanitizer)."""
import os
import re
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402

N_CALL, N_THREAD, GROWTH_MB = 1000 if os.environ.get("MUSTER_TEST_REDUCED") else 10000, 40, 300


def resident_mb(pid):
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1]) / 1024


class Flood(unittest.TestCase):
    def test_flood(self):
        with harness.Server(split="1", args=["--queue", "64", "--parallel", "4"]) as server:
            server.generate("warm", 2)
            before, peak, ended, refused, other = resident_mb(server.process.pid), [0], [0], [], []
            lock = threading.Lock()

            def ask(priority, n):
                request = pb.GenerateRequest(max_tokens=4, ignore_end=True, priority=priority, key=str(n % 7))
                request.ids.id.extend([9 + n % 50] * 200)
                return server.generate_call(request, timeout=120)

            def caller(at):
                # A window of calls a thread, all of them open at once.
                for first in range(at * N_CALL // N_THREAD, (at + 1) * N_CALL // N_THREAD, 250):
                    calls = [ask(pb.PRIORITY_BATCH, n) for n in range(first, min(first + 250, (at + 1) * N_CALL // N_THREAD))]
                    for call in calls:
                        try:
                            for _ in call:
                                pass
                            with lock:
                                ended[0] += 1
                        except grpc.RpcError as e:
                            with lock:
                                (refused if e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else other).append(e.details())

            threads = [threading.Thread(target=caller, args=(i,)) for i in range(N_THREAD)]
            for t in threads:
                t.start()
            urgent, n = [], 0
            while any(t.is_alive() for t in threads):
                peak[0] = max(peak[0], resident_mb(server.process.pid))
                begin = time.monotonic()
                for _ in ask(pb.PRIORITY_INTERACTIVE, n):
                    pass
                urgent.append(time.monotonic() - begin)
                n += 1
                time.sleep(0.2)
            print(f"  {ended[0]} answered, {len(refused)} refused, {before:.0f} MB before, {peak[0]:.0f} MB at most; "
                  f"{n} urgent ones took {sum(urgent) / n:.2f} s, {max(urgent):.2f} s at most")
            self.assertEqual(other, [])
            self.assertEqual(ended[0] + len(refused), N_CALL)
            self.assertGreater(ended[0], 48)
            self.assertGreater(len(refused), 100)
            for text in refused:
                self.assertRegex(text, r"busy.*try again later, in about \d+ s")
            self.assertLess(peak[0] - before, GROWTH_MB)
            self.assertEqual(server.status().waiting, 0)


if __name__ == "__main__":
    harness.main()
