"""Sampling from the client to the ranks: penalties, biases, cuts, choices and log probabilities are the same served and alone, and after
deaths in the middle."""
import array
import math
import os
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402

GOLDEN = 0x9E3779B97F4A7C15
SHAPED = dict(temperature=0.9, repeat_penalty=1.3, repeat_last_n=40, presence_penalty=0.5, frequency_penalty=0.3, min_tokens=20, min_p=0.02,
              typical_p=0.95, top_k=200)


class Sampling(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Two ranks share the last stage, so that one of them samples from what the leader's plans say alone.
        cls.server = harness.Server(split="1/2:1")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def generate(self, text, max_tokens, n=1, stop=(), ignore_end=True, on_token=None, **sampling):
        """For each choice its ids, text, log probabilities and finish; and the usage."""
        bias = [pb.LogitBias(id=i, bias=b) for i, b in sampling.pop("logit_bias", {}).items()]
        request = pb.GenerateRequest(text=text, max_tokens=max_tokens, n=n, stop=stop, return_ids=True, ignore_end=ignore_end,
                                     sampling=pb.Sampling(logit_bias=bias, **sampling))
        choices, usages = [dict(ids=[], text="", logprobs=[], finish=0) for _ in range(n)], []
        for reply in self.server.generate_call(request, timeout=120):
            c = choices[reply.index]
            c["ids"] += reply.ids
            c["text"] += reply.text
            c["logprobs"] += [(t.id, t.logprob, [(o.id, o.logprob) for o in t.top], t.piece) for t in reply.logprobs]
            self.assertFalse(c["finish"], "a choice goes on after its end")
            c["finish"] = reply.finish
            if reply.HasField("usage"):
                usages.append(reply.usage)
            if on_token:
                on_token(sum(len(c["ids"]) for c in choices))
        self.assertEqual(len(usages), 1)
        self.assertTrue(all(c["finish"] for c in choices))
        self.assertEqual(usages[0].completion_tokens, sum(len(c["ids"]) for c in choices))
        return choices, usages[0]

    def run_alone(self, *args, server=False):
        where = ["default", "--server", self.server.address] if server else [harness.BARD, "--quiet"]
        done = harness.run("run", where[0], *where[1:], "ROMEO:\n", "--raw", "-n", "60", "--ignore-end", *args)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_same_as_one_process(self):
        for args in (["--repeat-penalty", "1.3", "--presence-penalty", "0.5"],
                     ["-T", "0.9", "--seed", "7", "--repeat-penalty", "1.2", "--repeat-last-n", "-1", "--frequency-penalty", "0.4", "--min-p", "0.05",
                      "--typical", "0.9", "--logit-bias", "500=3", "--logit-bias", "20=-1000"],
                     ["-T", "1", "--seed", "8", "--min-p", "0.1", "--stop", "the", "--min-tokens", "25"]):
            self.assertEqual(self.run_alone(*args), self.run_alone(*args, server=True), args)
        self.assertNotEqual(self.run_alone(), self.run_alone("--repeat-penalty", "1.3"))

    def test_choices(self):
        """Choice i is what a request of its own with that choice's seed gives."""
        choices, usage = self.generate("KING", 40, n=3, seed=11, **SHAPED)
        for i, c in enumerate(choices):
            alone, single = self.generate("KING", 40, seed=(11 + i * GOLDEN) % 2**64, **SHAPED)
            self.assertEqual(alone[0]["ids"], c["ids"], f"choice {i}")
            self.assertEqual(alone[0]["text"], c["text"])
            self.assertEqual(single.prompt_tokens, usage.prompt_tokens)
        self.assertEqual(len({tuple(c["ids"]) for c in choices}), 3)

    def test_logprobs(self):
        """Of the raw logits, whatever shapes the sample: against `muster logits`."""
        (c,), _ = self.generate("What light", 30, seed=5, logprobs=True, top_logprobs=20, logit_bias={40: 50, 41: -100}, **SHAPED)
        plain, _ = self.generate("What light", 30, seed=5, logit_bias={40: 50, 41: -100}, **SHAPED)
        self.assertEqual(c["ids"], plain[0]["ids"])
        self.assertEqual([t[0] for t in c["logprobs"]], c["ids"])
        self.assertEqual(b"".join(t[3] for t in c["logprobs"]).decode(errors="replace"), c["text"])
        prompt = list(self.server.unary("Tokenize", pb.TokenizeRequest(text="What light", add_bos=True), pb.TokenizeReply).ids)
        with tempfile.NamedTemporaryFile() as f:
            done = harness.run("logits", harness.BARD, "--ids", ",".join(map(str, prompt + c["ids"])), "--all", "--out", f.name)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(f.name, "rb") as rows_file:
                rows = array.array("f", rows_file.read())
        n_vocab = len(rows) // len(prompt + c["ids"])
        for i, (token, logprob, top, _) in enumerate(c["logprobs"]):
            row = rows[(len(prompt) - 1 + i) * n_vocab:][:n_vocab]
            total = math.log(sum(math.exp(x - max(row)) for x in row)) + max(row)
            self.assertAlmostEqual(logprob, row[token] - total, places=4)
            order = sorted(range(n_vocab), key=lambda v: (-row[v], v))
            self.assertEqual([t[0] for t in top], order[:20])
            for other, value in top:
                self.assertAlmostEqual(value, row[other] - total, places=4)
            self.assertLess(sum(math.exp(t[1]) for t in top), 1.0001)
        (greedy,), _ = self.generate("What light", 10, logprobs=True, top_logprobs=1)
        for token, logprob, top, _ in greedy["logprobs"]:
            self.assertEqual((token, logprob), top[0])

    def test_stop_string_over_tokens(self):
        choices, _ = self.generate("ROMEO:\n", 60, n=2, seed=3, **SHAPED)
        stop = choices[0]["text"][-9:-3]
        stopped, _ = self.generate("ROMEO:\n", 60, n=2, seed=3, stop=[stop], logprobs=True, **SHAPED)
        at = choices[0]["text"].index(stop)
        if stopped[0]["finish"] == pb.FINISH_STOP:  # else it begins within min_tokens
            self.assertEqual(stopped[0]["text"], choices[0]["text"][:at])
        self.assertEqual(stopped[0]["ids"], choices[0]["ids"][:len(stopped[0]["ids"])])
        self.assertEqual(len(stopped[0]["logprobs"]), len(stopped[0]["ids"]))

    def test_min_tokens_and_bias(self):
        end = next(i for i in range(1024) if self.ends(i))
        (c,), _ = self.generate("O", 40, ignore_end=False, logit_bias={end: 1000}, min_tokens=12)
        self.assertEqual((len(c["ids"]), c["ids"][-1], c["finish"]), (13, end, pb.FINISH_END))
        self.assertNotIn(end, c["ids"][:12])
        (c,), _ = self.generate("O", 5, logit_bias={300: 1000})
        self.assertEqual(c["ids"], [300] * 5)

    def ends(self, token):
        """Whether generation ends at this id."""
        (c,), _ = self.generate("O", 2, ignore_end=False, logit_bias={token: 1000})
        return c["finish"] == pb.FINISH_END

    def test_refused(self):
        for words, sampling in ((["top_logprobs", "20"], dict(logprobs=True, top_logprobs=21)), (["min_p", "from 0 to 1"], dict(min_p=1.5)),
                                (["repeat_penalty"], dict(repeat_penalty=-1)), (["presence_penalty"], dict(presence_penalty=3)),
                                (["frequency_penalty"], dict(frequency_penalty=float("nan"))), (["vocabulary"], dict(logit_bias={5000: 1})),
                                (["more than 1024"], dict(logit_bias={i: 1 for i in range(1025)})), (["typical_p"], dict(typical_p=2)),
                                (["min_tokens"], dict(min_tokens=50))):
            with self.assertRaises(grpc.RpcError) as caught:
                self.generate("a", 10, **sampling)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            for word in words:
                self.assertIn(word, caught.exception.details())
        with self.assertRaises(grpc.RpcError) as caught:
            self.generate("a", 4, n=65)
        self.assertIn("from 1 to 64", caught.exception.details())
        (c,), _ = self.generate("a", 4, logit_bias={i: -1000 for i in range(1000)})  # everything that it says is not said
        self.assertTrue(all(i >= 1000 for i in c["ids"]))

    def test_large_plans(self):
        """Many streams with a thousand biases each: plans that are not sent ahead."""
        bias = {i: (i % 7) / 4 for i in range(1024)}
        n = 24
        expected = [self.generate(f"SCENE {i}", 20, seed=i, logit_bias=bias, **SHAPED)[0] for i in range(n)]
        got, threads = [None] * n, []
        for i in range(n):
            def one(i=i):
                got[i] = self.generate(f"SCENE {i}", 20, seed=i, logit_bias=bias, **SHAPED)[0]
            threads.append(threading.Thread(target=one))
        for t in threads:
            t.start()
        for t in threads:
            t.join(120)
        self.assertEqual(got, expected)

    def test_survives(self):
        """A killed follower of the last stage, then a killed leader: every choice goes on with exactly its tokens, none told twice."""
        expected, _ = self.generate("ACT", 400, n=3, seed=21, logprobs=True, top_logprobs=3, **SHAPED)
        for rank in (2, 1):
            def killed(gang):
                got, usage = self.generate("ACT", 400, n=3, seed=21, logprobs=True, top_logprobs=3,
                                           on_token=harness.killer(gang.rank[rank].pid, 6), **SHAPED)
                self.assertEqual(got, expected, f"after rank {rank} was killed")
                self.assertLessEqual(usage.resumed, 1)
                return usage.resumed

            self.server.until_resumed(killed)

    def test_cancelled_choices(self):
        request = pb.GenerateRequest(text="O", max_tokens=400, n=4, ignore_end=True, sampling=pb.Sampling(temperature=1))
        call = self.server.generate_call(request, timeout=60)
        next(call)
        next(call)
        call.cancel()
        for _ in range(200):
            status = self.server.status()
            if not status.running and not status.waiting:
                break
            threading.Event().wait(0.05)
        self.assertEqual((status.running, status.waiting), (0, 0))


if __name__ == "__main__":
    harness.main()
