"""The prefix cache on real gangs: fewer tokens are computed, and no answer is another one, also after a kill -9."""
import os
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402

N_TOKEN = 60
SYSTEM = [(7 * i) % 400 + 10 for i in range(130)]  # four pages and two tokens
# Turns of conversations that begin alike, twice the same one, one that is the beginning alone, one that is nobody's.
PROMPTS = [SYSTEM + [20 + i, 30 + i] for i in range(4)] + [SYSTEM + [20, 30], SYSTEM[:128], [9, 8, 7]]
JOBS = [(p, 50 + i, 0.8 if i % 2 else 0.0) for i, p in enumerate(PROMPTS)]


def answers(server, together=False, on_token=None):
    results = [None] * len(JOBS)

    def one(i):
        prompt, seed, temperature = JOBS[i]
        results[i] = server.generate(prompt, N_TOKEN, seed=seed, temperature=temperature, on_token=on_token)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(JOBS))]
    for t in threads:
        t.start()
        if not together:
            t.join(120)
    for t in threads:
        t.join(120)
    return results


class Prefix(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with harness.Server(split="1", args=["--no-prefix-cache"]) as server:
            cls.expected = answers(server)
            assert all(r[2].usage.cached_tokens == 0 for r in cls.expected)

    def compare(self, results):
        for i, r in enumerate(results):
            self.assertIsNotNone(r, f"stream {i}")
            self.assertEqual(r[0], self.expected[i][0], f"stream {i}")

    def test_cached_tokens(self):
        for split in ("1", "2:1/1"):
            with harness.Server(split=split) as server:
                results = answers(server)
                self.compare(results)
                self.assertEqual([r[2].usage.cached_tokens for r in results], [0, 128, 128, 128, 128, 96, 0])
                self.compare(answers(server, together=True))

    def test_kill(self):
        with harness.Server(split="2:1/1") as server:
            def killed(gang):
                results = answers(server, together=True, on_token=harness.killer(gang.rank[1].pid, 10))
                self.compare(results)
                return any(r[2].usage.resumed for r in results)

            server.until_resumed(killed)


if __name__ == "__main__":
    harness.main()
