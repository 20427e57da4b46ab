#!/usr/bin/env python3
"""Callers of a llama-server, to measure beside `muster bench --serve`: so many at once, each asks again when it is answered.

    llama-server -m 1b.gguf -c 16384 -np 32 -t 2 -tb 2 --port 8099 &
    tests/bench/peer_serving.py 127.0.0.1:8099 --concurrency 32 --requests 64 --input 64..256 --output 16..64
    muster bench 1b.gguf --serve -t 2 --concurrency 32 --requests 64 --input 64..256 --output 16..64

Options mean what they mean there; prompts are random ids below --vocab, nothing is cached.
"""
import argparse
import http.client
import json
import random
import threading
import time


def span(text):
    first, _, last = text.partition("..")
    return int(first), int(last or first)


def percentile(values, p):
    return sorted(values)[int(p / 100 * (len(values) - 1))] * 1000


class Load:
    def __init__(self, o):
        chance = random.Random(o.seed)
        self.address = o.server
        self.jobs = iter([([chance.randrange(10, o.vocab) for _ in range(chance.randint(*o.input))], chance.randint(*o.output))
                          for _ in range(o.requests)])
        self.lock = threading.Lock()
        self.first, self.gaps, self.whole, self.n_in, self.n_out = [], [], [], 0, 0

    def ask(self, prompt, n):
        begin = time.monotonic()
        connection = http.client.HTTPConnection(self.address, timeout=600)
        body = {"prompt": prompt, "n_predict": n, "ignore_eos": True, "stream": True, "cache_prompt": False, "temperature": 1.0}
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        times = []
        for line in connection.getresponse():
            if line.startswith(b"data:") and not json.loads(line[5:]).get("stop"):
                times.append(time.monotonic())
        end = time.monotonic()
        connection.close()
        with self.lock:
            self.first.append(times[0] - begin)
            self.gaps += [b - a for a, b in zip(times, times[1:])]
            self.whole.append(end - begin)
            self.n_in += len(prompt)
            self.n_out += len(times)

    def caller(self):
        while True:
            with self.lock:
                job = next(self.jobs, None)
            if job is None:
                return
            self.ask(*job)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("server", metavar="HOST:PORT")
    p.add_argument("--concurrency", type=int, default=8)
    p.add_argument("--requests", type=int, default=64)
    p.add_argument("--input", type=span, default=(64, 256))
    p.add_argument("--output", type=span, default=(16, 64))
    p.add_argument("--vocab", type=int, default=32000)
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    load, begin = Load(o), time.monotonic()
    threads = [threading.Thread(target=load.caller) for _ in range(o.concurrency)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    s = time.monotonic() - begin
    print(f"requests     {len(load.whole)} done in {s:.1f} s: {len(load.whole) / s:.2f}/s")
    print(f"tokens       in {load.n_in / s:.1f}/s, out {load.n_out / s:.1f}/s\n\nms       median      P99")
    for name, values in (("TTFT", load.first), ("ITL", load.gaps), ("E2E", load.whole)):
        print(f"{name:6} {percentile(values, 50):8.0f} {percentile(values, 99):8.0f}")


if __name__ == "__main__":
    main()
