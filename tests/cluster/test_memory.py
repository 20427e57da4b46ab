"""No process grows with the number of requests that it has served.

    MUSTER_TEST_REQUESTS=100000 ctest --test-dir build-release -R test_memory_served -V

A gang of two stages serves a mixture: plain completions, several choices, log probabilities, forms that come again and forms that nobody
asked for before, adapters' absence, embeddings, clients that go away, requests that are refused. Memory is what Linux calls anonymous or
shared and resident, of `serve`, the worker, mpirun and each rank, looked at between requests while nothing runs. The first half is
there to fill what is kept on purpose (KV pages, prefixes, forms, arenas of malloc); the rest must not add more than a few MiB to it,
whatever their number.
"""
import concurrent.futures
import json
import os
import random
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402

REQUESTS = int(os.environ.get("MUSTER_TEST_REQUESTS", "2000"))
SAMPLES = 40  # looks at memory
CLIENTS = 8
GROWTH_KIB = 4096  # a process may add in the second half

WORDS = "we are accounted poor citizens the patricians good what authority surfeits on would relieve us".split()
FORMS = [{"type": "object", "properties": {f"k{i}": {"type": "string", "maxLength": 4 + i}, "n": {"type": "integer", "minimum": 0, "maximum": 10 ** i}},
          "required": [f"k{i}", "n"], "additionalProperties": False} for i in range(1, 13)]


def kib(pid):
    """Memory of its own that is resident."""
    with open(f"/proc/{pid}/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return sum(int(fields[k].split()[0]) for k in ("RssAnon", "RssShmem") if k in fields)


def role(pid):
    """serve, worker, _rank, or the name of another program; None: it has ended."""
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            args = f.read().split(b"\0")
    except OSError:
        return None
    return next((a.decode() for a in args[1:] if a in (b"serve", b"worker", b"_rank")), program) if program == "muster" else program


class Memory(unittest.TestCase):
    def one(self, i):
        """The i-th request: what it is depends on i alone."""
        r = random.Random(i)
        kind = r.choices(["plain", "choices", "logprobs", "schema", "json", "new form", "embed", "cancel", "refused", "long"],
                         [30, 6, 6, 16, 4, 8, 5, 15, 8, 2])[0]
        text = " ".join(r.choices(WORDS, k=r.randrange(1, 12)))
        q = pb.GenerateRequest(text=text, max_tokens=r.randrange(1, 12), ignore_end=True, sampling=pb.Sampling(temperature=0.8, seed=i))
        if kind == "choices":
            q.n = r.randrange(2, 5)
        elif kind == "logprobs":
            q.sampling.logprobs, q.sampling.top_logprobs, q.sampling.repeat_penalty = True, r.randrange(5), 1.2
        elif kind in ("schema", "json", "new form"):
            q.ignore_end = False
            if kind == "schema":
                q.json_schema = json.dumps(r.choice(FORMS))
            elif kind == "json":
                q.json = True
            else:
                q.regex = f"{i}: [a-z]{{1,{r.randrange(2, 9)}}}"
        elif kind == "long":
            q.text, q.max_tokens = " ".join(r.choices(WORDS, k=80)), 40
        elif kind == "cancel":
            q.max_tokens = 200
            call = self.server.generate_call(q, timeout=120)
            if r.random() < 0.7:
                next(call)
            call.cancel()
            return kind
        elif kind == "refused":
            if r.random() < 0.5:
                q.json_schema = '{"not": {"type": "string"}, "title": "%d"}' % i
            else:
                q.sampling.top_p = 7
            try:
                list(self.server.generate_call(q, timeout=120))
            except grpc.RpcError as e:
                assert e.code() == grpc.StatusCode.INVALID_ARGUMENT, e.details()
                return kind
            raise AssertionError(f"request {i} was not refused")
        elif kind == "embed":
            e = pb.EmbedRequest()
            for _ in range(r.randrange(1, 4)):
                e.input.add().text = text
            self.server.unary("Embed", e, pb.EmbedReply, timeout=120)
            return kind
        n, choices = 0, set()
        for reply in self.server.generate_call(q, timeout=120):
            n += reply.usage.completion_tokens
            if reply.finish:
                choices.add(reply.index)
        assert n and len(choices) == max(1, q.n), f"request {i} ({kind}): {n} tokens, choices {choices}"
        return kind

    def look(self):
        """KiB of each process when nothing runs."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status = self.server.status()
            if not status.running and not status.waiting:
                break
            time.sleep(0.02)
        self.assertEqual((status.running, status.waiting), (0, 0))
        return {pid: kib(pid) for pid in self.pids}

    def test_no_growth(self):
        with harness.Server(split="1/1", args=["--threads", "1", "--ctx", "512", "--parallel", "16"]) as server:
            self.server = server
            self.pids = {pid: role(pid) for pid in server.processes() if role(pid)}
            roles = sorted(self.pids.values())
            self.assertEqual([r for r in roles if r in ("serve", "worker", "_rank")], ["_rank", "_rank", "serve", "worker"], roles)
            looks, counts, began = [self.look()], {}, time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                for k in range(SAMPLES):
                    for kind in pool.map(self.one, range(REQUESTS * k // SAMPLES, REQUESTS * (k + 1) // SAMPLES)):
                        counts[kind] = counts.get(kind, 0) + 1
                    looks.append(self.look())
            took = time.monotonic() - began
            print(f"\n  {REQUESTS} requests in {took:.0f} s: " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
            self.assertEqual(sum(counts.values()), REQUESTS)
            self.assertEqual(server.gang().relaunches, 0)
            grown = {}
            for pid, name in self.pids.items():
                series = [look[pid] for look in looks]
                half = max(series[:SAMPLES // 2 + 1])
                grown[f"{name} {pid}"] = max(series[SAMPLES // 2:]) - half
                marks = [series[SAMPLES * p // 100] for p in (0, 5, 10, 25, 50, 75, 100)]
                print(f"  {name:8} KiB after 0, 5, 10, 25, 50, 75, 100%: " + " ".join(map(str, marks)))
            self.assertEqual({k: v for k, v in grown.items() if v > GROWTH_KIB}, {}, "processes that grew in the second half, in KiB")


if __name__ == "__main__":
    harness.main()
