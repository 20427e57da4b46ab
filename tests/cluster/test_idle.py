"""A gang with nothing to do sleeps, and is awake at once.

    MUSTER_TEST_IDLE_S=30 MUSTER_TEST_IDLE_GAP_S=10 MUSTER_TEST_IDLE_N=20 ctest --test-dir build-release -R test_idle_served -V

Processor time of all processes of a server without requests, and the time from a request's admission to its first token after so long a
pause, beside that of a gang that has just worked: what is more is what waking costs. The bounds are wide, because other work on the
machine wakes late too; docs/operating.md has what a quiet machine gives.
"""
import os
import statistics
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402

IDLE_S = float(os.environ.get("MUSTER_TEST_IDLE_S", "4"))
GAP_S = float(os.environ.get("MUSTER_TEST_IDLE_GAP_S", "0.5"))
N = int(os.environ.get("MUSTER_TEST_IDLE_N", "9"))
CPU_BOUND = 0.10  # of a core, all processes together
WAKE_BOUND_MS = 20


def cpu_seconds(pids):
    """User and system time of these processes so far, finer than clock ticks where the kernel tells."""
    total = 0.0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as f:
                total += int(f.read().split()[0]) * 1e-9
    return total


class Idle(unittest.TestCase):
    def one(self, split):
        with harness.Server(split=split, args=["--threads", "1"]) as server:
            asked = iter(range(10 ** 6))

            def first_token_ms():
                return server.generate(f"{next(asked):06}: to be, or not to be", 2)[2].usage.first_token_ms

            for _ in range(5):
                first_token_ms()
            pids = [p for p in server.processes() if harness.alive(p)]
            time.sleep(1)
            began, before = time.monotonic(), cpu_seconds(pids)
            time.sleep(IDLE_S)
            share = (cpu_seconds(pids) - before) / (time.monotonic() - began)
            warm = [first_token_ms() for _ in range(N + 3)][3:]
            cold = []
            for _ in range(N):
                time.sleep(GAP_S)
                cold.append(first_token_ms())
            self.assertEqual(server.gang().relaunches, 0)
        wake = statistics.median(cold) - statistics.median(warm)
        print(f"\n  {split}: idle for {IDLE_S:.0f} s, {len(pids)} processes: {100 * share:.2f}% of a core; first token after {statistics.median(cold):.2f} ms when "
              f"idle for {GAP_S:g} s, {statistics.median(warm):.2f} ms when warm: waking costs {wake:.2f} ms (medians of {N})", flush=True)
        self.assertLess(share, CPU_BOUND)
        self.assertLess(wake, WAKE_BOUND_MS)

    def test_one_rank(self):
        self.one("1")

    def test_three_ranks(self):
        self.one("2:1/1")


if __name__ == "__main__":
    harness.main()
