"""Embeddings from a served model: the bytes of one process, whatever shares the gang or dies; a client that knows the service by reflection only."""
import array
import concurrent.futures
import json
import os
import signal
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: E402

TEXTS = ["ROMEO:\n", "To be, or not", "KING", "What light through yonder window breaks", "\n", "First Citizen:\nWe are accounted poor", "O", "é 🙂",
         "JULIET:\nAy me! " * 12]


def local(texts, *args):
    """What `muster embed` gives in one process: a list of bytes."""
    with tempfile.NamedTemporaryFile(suffix=".f32") as f:
        done = harness.run("embed", harness.BARD, *args, "-o", "f32", "--out", f.name, "--", *texts)
        if done.returncode:
            raise AssertionError(done.stderr)
        with open(f.name, "rb") as g:
            data = g.read()
    n = len(data) // len(texts)
    return [data[i * n:(i + 1) * n] for i in range(len(texts))]


def packed(embedding):
    return array.array("f", embedding.value).tobytes()


def request(texts, **more):
    q = pb.EmbedRequest(**more)
    for t in texts:
        if isinstance(t, str):
            q.input.add().text = t
        else:
            q.input.add().ids.id.extend(t)
    return q


class Embed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server(split="2:1/1")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def embed(self, texts, timeout=120, **more):
        return self.server.unary("Embed", request(texts, **more), pb.EmbedReply, timeout=timeout)

    def test_same_as_one_process(self):
        for more, args in (({}, []), ({"pooling": pb.POOLING_MEAN}, ["--pooling", "mean"]), ({"pooling": pb.POOLING_LAST, "raw": True}, ["--no-normalize"]),
                           ({"pooling": pb.POOLING_MEAN, "dimensions": 10}, ["--pooling", "mean", "--dimensions", "10"])):
            reply = self.embed(TEXTS, **more)
            self.assertEqual([packed(e) for e in reply.embedding], local(TEXTS, *args), more)
            status = self.server.unary("ModelStatus", pb.ModelStatusRequest(), pb.ModelStatusReply)
            self.assertEqual((status.pooling, more.get("dimensions") or status.embedding_length), (pb.POOLING_LAST, len(reply.embedding[0].value)))
            self.assertEqual(reply.usage.prompt_tokens, sum(e.tokens for e in reply.embedding))
            if not more.get("raw"):
                for e in reply.embedding:
                    self.assertAlmostEqual(sum(v * v for v in e.value), 1, places=5)

    def test_beside_streams(self):
        """Embeddings and generations at once: each as alone."""
        alone = [packed(e) for t in TEXTS for e in self.embed([t], pooling=pb.POOLING_MEAN).embedding]
        jobs = [(f"SCENE {i}\n", 40 + i) for i in range(16)]
        streams = [self.server.generate(p, n)[0] for p, n in jobs]
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            got_streams = [pool.submit(self.server.generate, p, n) for p, n in jobs]
            got = [pool.submit(self.embed, TEXTS * 3, pooling=pb.POOLING_MEAN) for _ in range(6)]
            for g in got:
                self.assertEqual([packed(e) for e in g.result().embedding], alone * 3)
            self.assertEqual([g.result()[0] for g in got_streams], streams)

    def test_by_reflection(self):
        """A client without our .proto files: it asks the server what Embed is."""
        own = descriptor_pool.DescriptorPool()
        own.AddSerializedFile(self.described(os.path.join(harness.SOURCE, "proto", "grpc", "reflection", "v1", "reflection.proto")))

        def kind(name):
            d = own.FindMessageTypeByName(name)
            return message_factory.GetMessageClass(d) if hasattr(message_factory, "GetMessageClass") else message_factory.MessageFactory(own).GetPrototype(d)

        ask, answer = kind("grpc.reflection.v1.ServerReflectionRequest"), kind("grpc.reflection.v1.ServerReflectionResponse")
        call = self.server.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", request_serializer=ask.SerializeToString,
                                                 response_deserializer=answer.FromString)
        reply = next(call(iter([ask(file_containing_symbol="muster.v1.Muster")]), timeout=20))
        for f in reply.file_descriptor_response.file_descriptor_proto:
            own.AddSerializedFile(f)
        method = own.FindServiceByName("muster.v1.Muster").methods_by_name["Embed"]
        q, r = kind(method.input_type.full_name), kind(method.output_type.full_name)
        embed = self.server.channel.unary_unary("/muster.v1.Muster/Embed", request_serializer=q.SerializeToString, response_deserializer=r.FromString)
        asked = q(pooling=1)
        asked.input.add().text = "KING"
        got = embed(asked, timeout=20)
        self.assertEqual([packed(e) for e in got.embedding], local(["KING"], "--pooling", "mean"))

    def described(self, path):
        """The one file of a .proto as a serialized FileDescriptorProto."""
        import subprocess
        with tempfile.NamedTemporaryFile() as f:
            subprocess.run(["protoc", "-I" + os.path.dirname(path), "-o", f.name, path], check=True)
            with open(f.name, "rb") as g:
                return descriptor_pb2.FileDescriptorSet.FromString(g.read()).file[0].SerializeToString()

    def refused(self, words, texts, code=grpc.StatusCode.INVALID_ARGUMENT, **more):
        with self.assertRaises(grpc.RpcError) as caught:
            self.embed(texts, **more)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        for word in words:
            self.assertIn(word, caught.exception.details())

    def test_bad_requests(self):
        self.refused(["no inputs"], [])
        self.refused(["input 2 is empty"], ["a", ""])
        self.refused(["input 1 is empty"], [[]])
        self.refused(["vocabulary"], [[5, 99999]])
        self.refused(["input 2", "512", "truncate"], ["a", "word " * 2000], code=grpc.StatusCode.OUT_OF_RANGE)
        self.refused(["pooling 9"], ["a"], pooling=9)
        self.refused(["dimensions is 4000"], ["a"], dimensions=4000)
        self.refused(["2000 inputs"], ["a"] * 2000)
        self.refused(["llama9"], ["a"], code=grpc.StatusCode.NOT_FOUND, model="llama9")

    def test_the_whole_context(self):
        self.refused(["513 tokens"], [[5] * 513], code=grpc.StatusCode.OUT_OF_RANGE)
        reply = self.embed([[5] * 512, [5] * 600, "word " * 2000], truncate=True)
        self.assertEqual([(e.tokens, e.truncated) for e in reply.embedding], [(512, False), (512, True), (512, True)])
        self.assertEqual(packed(reply.embedding[0]), packed(reply.embedding[1]))

    def test_deadline(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.embed([[5 + i] * 500 for i in range(900)], timeout=0.3)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (self.server.status().running or self.server.status().waiting):
            time.sleep(0.05)
        self.assertEqual((self.server.status().running, self.server.status().waiting), (0, 0))

    def test_command(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            lines = [f"line {i} of many" for i in range(70)]
            f.write("\n".join(lines))
            f.flush()
            here = harness.run("embed", harness.BARD, "-f", f.name)
            there = harness.run("embed", "default", "-f", f.name, "--server", self.server.address)
        self.assertEqual(here.returncode, 0, here.stderr)
        self.assertEqual(there.returncode, 0, there.stderr)
        self.assertEqual(here.stdout, there.stdout)
        self.assertEqual(len(here.stdout.splitlines()), 70)
        self.assertEqual(len(json.loads(here.stdout.splitlines()[0])), len(json.loads(here.stdout.splitlines()[69])))


class Survive(unittest.TestCase):
    """Processes die while texts are read: the same vectors. As many texts as keep this machine and build busy for a while."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(harness.Server(split="2:1/1", args=["--stall-ms", "1500"]))
        cls.texts = cls.make(8)
        begin = time.monotonic()
        cls.embed()
        cls.texts = cls.make(min(1000, max(8, int(8 * 2.0 / (time.monotonic() - begin)))))
        cls.expected = cls.embed()

    @staticmethod
    def make(n):
        return [[3 + (i * 31 + k * 7) % 400 for k in range(300)] for i in range(n)]

    @classmethod
    def embed(cls):
        reply = cls.server.unary("Embed", request(cls.texts, pooling=pb.POOLING_MEAN), pb.EmbedReply, timeout=120)
        return [packed(e) for e in reply.embedding], reply.usage.resumed

    def interrupt(self, harm):
        self.server.until_resumed(lambda gang: self.interrupt_once(gang, harm))

    def interrupt_once(self, gang, harm):
        got = []
        thread = threading.Thread(target=lambda: got.append(self.embed()))
        thread.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not self.server.status().running:
            time.sleep(0.005)
        harm(gang)
        thread.join(120)
        self.assertTrue(got, self.server.logged())
        self.assertEqual(got[0][0], self.expected[0])
        return got[0][1]

    def test_kill_a_rank(self):
        self.interrupt(lambda g: os.kill(g.rank[1].pid, signal.SIGKILL))

    def test_kill_the_leader(self):
        self.interrupt(lambda g: os.kill(g.rank[2].pid, signal.SIGKILL))

    def test_kill_mpirun(self):
        self.interrupt(lambda g: os.kill(g.mpirun_pid, signal.SIGKILL))

    def test_stop_a_rank(self):
        self.interrupt(lambda g: os.kill(g.rank[0].pid, signal.SIGSTOP))


class Poison(unittest.TestCase):
    """An input that kills ranks is named; a call beside it loses nothing."""

    def test_poison(self):
        with harness.Server(split="1:1", env={"MUSTER_FAULT": "rank.token:777=abort"}) as server:
            good = [[5, 10 + i, 20] for i in range(8)]
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                bad = pool.submit(server.unary, "Embed", request([[5, 6], [5, 777], [8]]), pb.EmbedReply, 120)
                fine = pool.submit(server.unary, "Embed", request(good), pb.EmbedReply, 120)
                with self.assertRaises(grpc.RpcError) as caught:
                    bad.result()
                self.assertEqual(caught.exception.code(), grpc.StatusCode.ABORTED)
                self.assertIn("input 2 of 3", caught.exception.details())
                self.assertEqual(len(fine.result().embedding), 8)


if __name__ == "__main__":
    harness.main()
