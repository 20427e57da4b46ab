"""Real processes for the cluster tests: a server on a free port, a gRPC client, and a look at what is left running.

Needs Debian's python3-grpcio and python3-protobuf, and protoc for the messages; a test that lacks them skips (exit status 77).
"""
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

try:
    import grpc
except ImportError:
    print("SKIPPED: python3-grpcio is not installed")
    sys.exit(77)

SOURCE = os.environ["MUSTER_SOURCE_DIR"]
MUSTER = os.environ["MUSTER_BIN"]
BARD = os.path.join(SOURCE, "tests", "golden", "bard.q8_0.gguf")
os.environ.setdefault("MUSTER_DEVICE_PLUGIN", "none")  # whatever this machine has; tests of GPUs name their plugin
FIXTURES = os.environ.get("MUSTER_FIXTURES") or os.path.join(SOURCE, "..", "shared", "fixtures")
STALL_MS = os.environ.get("MUSTER_TEST_STALL_MS")  # where a test does not say: for builds in which everything is slower

_proto_dir = tempfile.TemporaryDirectory(prefix="muster-proto-")
subprocess.run(
    ["protoc", "-I" + os.path.join(SOURCE, "proto"), "--python_out=" + _proto_dir.name, "muster/v1/muster.proto", "grpc/health/v1/health.proto"],
    check=True)
sys.path.insert(0, _proto_dir.name)
from muster.v1 import muster_pb2 as pb  # noqa: E402


def _load_health():
    """grpc/health/… would collide with the package grpc: load the generated module by path."""
    import importlib.util
    path = os.path.join(_proto_dir.name, "grpc", "health", "v1", "health_pb2.py")
    spec = importlib.util.spec_from_file_location("muster_health_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


health_pb = _load_health()


def state(pid):
    """A letter, as in /proc; X: it is not there."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def alive(pid):
    """Whether pid runs; zombies do not count."""
    return state(pid) not in "ZX"


def descendants(root):
    """root and everything below it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as f:
                    ppid = int(f.read().rsplit(")", 1)[1].split()[1])
                children.setdefault(ppid, []).append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                pass
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def wait_gone(pids, seconds):
    """The pids that still run after so many seconds at most."""
    deadline = time.monotonic() + seconds
    left = [p for p in pids if alive(p)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [p for p in left if alive(p)]
    return left


def kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def killer(pid, n):
    """An on_token that kills pid, once, when a stream has n tokens."""
    once = threading.Lock()

    def on_token(n_told):
        if n_told >= n and once.acquire(blocking=False):
            os.kill(pid, signal.SIGKILL)

    return on_token


class Server:
    """`muster serve` with a client on it."""

    def __init__(self, model=BARD, split="2:1/1", args=(), env=None, ready_s=120, program=MUSTER):
        self.log = tempfile.NamedTemporaryFile(mode="w+", prefix="muster-serve-", suffix=".log")
        environment = dict(os.environ, **(env or {}))
        if STALL_MS:
            args = ["--stall-ms", STALL_MS, *args]
        self.process = subprocess.Popen([program, "serve", model, "--split", split, "--listen", "127.0.0.1:0", *args], stdout=subprocess.PIPE,
                                        stderr=self.log, text=True, env=environment)
        line = []
        reader = threading.Thread(target=lambda: line.append(self.process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(ready_s)
        match = line and re.match(r"muster: serving .* on (\S+), split (\S+), pid (\d+)", line[0])
        if not match:
            self.process.kill()
            raise AssertionError("the server did not get ready:\n" + self.logged())
        self.address, self.split = match[1], match[2]
        self.left = []  # what its end has left behind
        self.channel = grpc.insecure_channel(self.address)
        self.generate_call = self.channel.unary_stream("/muster.v1.Muster/Generate", request_serializer=pb.GenerateRequest.SerializeToString,
                                                       response_deserializer=pb.GenerateReply.FromString)

    def logged(self):
        with open(self.log.name) as f:
            return f.read()

    def unary(self, method, request, reply, timeout=20):
        call = self.channel.unary_unary(f"/muster.v1.Muster/{method}", request_serializer=type(request).SerializeToString,
                                        response_deserializer=reply.FromString)
        return call(request, timeout=timeout)

    def status(self):
        return self.unary("ClusterStatus", pb.ClusterStatusRequest(), pb.ClusterStatusReply)

    def gang(self):
        return self.status().gang[0]

    def wait_ready(self, epoch_after=0, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            gang = self.gang()
            if gang.state == "ready" and gang.epoch > epoch_after:
                return gang
            time.sleep(0.05)
        raise AssertionError("the gang did not come back:\n" + self.logged())

    def until_resumed(self, try_once):
        """Calls try_once(gang), which does harm to that gang, until it says that a stream was carried over to the next one: on a busy
        machine the harm may come when all is said. The gang after."""
        for _ in range(5):
            gang = self.wait_ready()
            resumed = try_once(gang)
            gang = self.wait_ready(epoch_after=gang.epoch)
            if resumed:
                return gang
        raise AssertionError("the harm came too late to test anything")

    def generate(self, prompt, max_tokens, seed=None, temperature=0.0, timeout=120, on_token=None, **more):
        """All ids, the text and the last reply."""
        request = pb.GenerateRequest(max_tokens=max_tokens, return_ids=True, ignore_end=True, **more)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.ids.id.extend(prompt)
        request.sampling.temperature = temperature
        if seed is not None:
            request.sampling.seed = seed
        ids, text, last = [], "", None
        for reply in self.generate_call(request, timeout=timeout):
            ids += reply.ids
            text += reply.text
            last = reply
            if on_token and reply.ids:
                on_token(len(ids))
        return ids, text, last

    def processes(self):
        return descendants(self.process.pid)

    def kept_memories(self):
        """Inodes of the packed weights that any process of the server has open or mapped."""
        found = set()
        for pid in self.processes():
            try:
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    if "muster-weights" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                        found.add(os.stat(f"/proc/{pid}/fd/{fd}").st_ino)
                with open(f"/proc/{pid}/maps") as f:
                    found.update(int(line.split()[4]) for line in f if "muster-weights" in line)
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found

    def stop(self, sig=signal.SIGTERM, seconds=5):
        """Ends the server; the processes that are still there afterwards."""
        if self.process.poll() is not None:
            return [p for p in self.left if alive(p)]
        pids = self.processes()
        self.channel.close()
        self.process.send_signal(sig)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        self.left = wait_gone(pids, seconds)
        return self.left

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        kill(self.stop())
        self.process.stdout.close()
        if exc[0] is not None:
            print(self.logged(), file=sys.stderr)
        self.log.close()


def run(*args, timeout=120, env=None, stdin=None):
    """The muster command; a CompletedProcess with text."""
    return subprocess.run([MUSTER, *args], capture_output=True, text=True, timeout=timeout, env=dict(os.environ, **(env or {})),
                          **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}))


def need_fixtures():
    if not os.path.isdir(os.path.join(FIXTURES, "models")):
        print(f"SKIPPED: no fixtures at {FIXTURES} (set MUSTER_FIXTURES)")
        sys.exit(77)


def main():
    unittest.main(verbosity=2)
