"""Python's gRPC against the test server: rpc_interop.py SERVER_PROGRAM DESCRIPTORS_FILE.
Exit code 77: there is no grpcio here."""
import os
import signal
import subprocess
import sys
import threading
import time

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as e:
    print("SKIPPED, nothing was tested:", e)
    sys.exit(77)

LOADER = descriptor_pool.DescriptorPool()
with open(sys.argv[2], "rb") as f:
    for described in descriptor_pb2.FileDescriptorSet.FromString(f.read()).file:
        LOADER.Add(described)
FACTORY = message_factory.MessageFactory(LOADER)


def kind(name):
    return FACTORY.GetPrototype(LOADER.FindMessageTypeByName(name))


M = "muster.v1."
H = "grpc.health.v1."


def method(channel, path, request, reply):
    """The multi-callable of a method, by what its description says."""
    service, name = path.rsplit("/", 1)
    described = LOADER.FindServiceByName(service[1:]).FindMethodByName(name)
    proto = descriptor_pb2.MethodDescriptorProto()
    described.CopyToProto(proto)
    shape = ("stream" if proto.client_streaming else "unary") + "_" + ("stream" if proto.server_streaming else "unary")
    return getattr(channel, shape)(path, request_serializer=kind(request).SerializeToString,
                                   response_deserializer=kind(reply).FromString)


def generate(channel):
    return method(channel, "/muster.v1.Muster/Generate", M + "GenerateRequest", M + "GenerateReply")


def expect(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: expected {wanted!r}, got {got!r}")
    print("ok", what)


class Server:
    def __init__(self, program, address):
        self.process = subprocess.Popen([program, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().split()[1])

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def counts(self):
        self.say("counts")
        return [int(n) for n in self.process.stdout.readline().split()[1:]]

    def wait_cancelled(self, n, seconds):
        until = time.monotonic() + seconds
        while self.counts()[2] < n and time.monotonic() < until:
            time.sleep(0.01)
        return self.counts()[2]

    def stop(self):
        self.process.stdin.close()
        return self.process.wait(10)


def test_unary(channel):
    tokenize = method(channel, "/muster.v1.Muster/Tokenize", M + "TokenizeRequest", M + "TokenizeReply")
    reply = tokenize(kind(M + "TokenizeRequest")(text="grüß"), timeout=5)
    expect(bytes(reply.ids).decode(), "grüß", "unary")
    try:
        tokenize(kind(M + "TokenizeRequest")(text="hang"), timeout=0.3)
        raise AssertionError("the deadline did not end the call")
    except grpc.RpcError as e:
        expect(e.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
    raw = channel.unary_unary("/muster.v1.Muster/Tokenize")
    for data, name in ((b"\x12\x02a\xff", "bad UTF-8"), (b"\x12\x03a\x00b", "NUL"), (b"\x12\x05ab", "cut off"),
                       (b"\x10\x07", "wrong wire type")):
        try:
            raw(data, timeout=5)
            raise AssertionError(name + " was taken")
        except grpc.RpcError as e:
            expect(e.code(), grpc.StatusCode.INVALID_ARGUMENT, name)
    try:
        channel.unary_unary("/muster.v1.Muster/Nothing")(b"", timeout=5)
        raise AssertionError("an unknown method was answered")
    except grpc.RpcError as e:
        expect(e.code(), grpc.StatusCode.UNIMPLEMENTED, "unknown method")
    try:
        tokenize(kind(M + "TokenizeRequest")(text="a" * (5 << 20)), timeout=5)
        raise AssertionError("5 MiB were taken")
    except grpc.RpcError as e:
        expect(e.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, "message over the limit")
    try:
        channel.unary_unary("/muster.v1.Muster/Tokenize")(
            kind(M + "TokenizeRequest")(text="a" * 100000).SerializeToString(), timeout=5,
            compression=grpc.Compression.Gzip)
        raise AssertionError("compressed messages were taken")
    except grpc.RpcError as e:
        expect(e.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL), True, "compression refused")


def test_streams(channel, server):
    request = kind(M + "GenerateRequest")
    seeds = [r.seed for r in generate(channel)(request(text="count", max_tokens=100), timeout=10)]
    expect(seeds, list(range(100)), "stream")
    replies = generate(channel)(request(text="abort"), timeout=5)
    expect(next(replies).text, "tok", "message before an error")
    try:
        next(replies)
        raise AssertionError("no error")
    except grpc.RpcError as e:
        expect((e.code(), e.details()), (grpc.StatusCode.ABORTED, "as asked, after 1"), "status and text")
    before = server.counts()[2]
    replies = generate(channel)(request(text="hang"))
    next(replies)
    replies.cancel()
    expect(server.wait_cancelled(before + 1, 1.0), before + 1, "cancel seen within a second")
    flood = generate(channel)(request(text="flood"), timeout=30)
    seeds = [r.seed for r in flood]
    expect(seeds == list(range(len(seeds))) and len(seeds) >= 60, True, f"flood of {len(seeds)} messages")


def test_killed_client(server):
    """A client that is killed in the middle of a stream, its connection closed by the kernel."""
    code = ("import sys, grpc\n"
            f"c = grpc.insecure_channel('127.0.0.1:{server.port}')\n"
            "s = c.unary_stream('/muster.v1.Muster/Generate')(b'\\x12\\x04hang')\n"
            "next(s); print('here', flush=True)\n"
            "next(s)\n")
    before = server.counts()[2]
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    expect(client.stdout.readline(), "here\n", "client in another process")
    client.send_signal(signal.SIGKILL)
    client.wait()
    expect(server.wait_cancelled(before + 1, 1.0), before + 1, "killed client seen within a second")
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    client.stdout.readline()
    client.send_signal(signal.SIGSTOP)
    expect(server.wait_cancelled(before + 2, 12.0), before + 2, "stopped client seen by keepalive")
    client.kill()
    client.wait()


def test_health(channel, server):
    request = kind(H + "HealthCheckRequest")
    check = method(channel, "/grpc.health.v1.Health/Check", H + "HealthCheckRequest", H + "HealthCheckResponse")
    watch = method(channel, "/grpc.health.v1.Health/Watch", H + "HealthCheckRequest", H + "HealthCheckResponse")
    expect(check(request(), timeout=5).status, 1, "health of the server")
    try:
        check(request(service="none"), timeout=5)
        raise AssertionError("health of nothing")
    except grpc.RpcError as e:
        expect(e.code(), grpc.StatusCode.NOT_FOUND, "health of an unknown service")
    states = watch(request(service="muster.v1.Muster"))
    heard = [next(states).status]
    server.say("serving muster.v1.Muster 1")
    heard.append(next(states).status)
    server.say("serving muster.v1.Muster 0")
    heard.append(next(states).status)
    expect(heard, [3, 1, 2], "health watched")
    expect(check(request(service="muster.v1.Muster"), timeout=5).status, 2, "health of a service")
    return states


def test_reflection(channel, version):
    package = f"grpc.reflection.{version}."
    call = method(channel, f"/{package}ServerReflection/ServerReflectionInfo", package + "ServerReflectionRequest",
                  package + "ServerReflectionResponse")
    request = kind(package + "ServerReflectionRequest")
    asked = [request(list_services="*"), request(file_containing_symbol="muster.v1.Muster"),
             request(file_containing_symbol="muster.v1.Muster.Generate"),
             request(file_containing_symbol="grpc.health.v1.HealthCheckResponse.ServingStatus"),
             request(file_by_filename="muster/v1/muster.proto"), request(file_containing_symbol="muster.v1.Nothing"),
             request(file_containing_symbol="muster.v1.Muster.Nothing"), request(file_by_filename="none.proto"),
             request(all_extension_numbers_of_type="muster.v1.Node")]
    replies = list(call(iter(asked), timeout=5))
    expect(len(replies), len(asked), version + ": an answer to each question")
    names = sorted(s.name for s in replies[0].list_services_response.service)
    expect(names, ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
                   "grpc.reflection.v1alpha.ServerReflection", "muster.v1.Muster"], version + ": services")

    def first_file(reply):
        return descriptor_pb2.FileDescriptorProto.FromString(reply.file_descriptor_response.file_descriptor_proto[0])

    expect([first_file(r).name for r in replies[1:5]],
           ["muster/v1/muster.proto"] * 2 + ["grpc/health/v1/health.proto", "muster/v1/muster.proto"],
           version + ": files")
    expect([m.name for m in first_file(replies[1]).service[0].method][:2], ["Generate", "Tokenize"],
           version + ": what a file says")
    expect([r.error_response.error_code for r in replies[5:]], [5] * 4, version + ": not found")
    expect(replies[5].original_request, asked[5], version + ": the question comes back")


def main():
    watchdog = threading.Timer(90, os._exit, [3])
    watchdog.daemon = True
    watchdog.start()
    server = Server(sys.argv[1], "127.0.0.1:0")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            test_unary(channel)
            test_streams(channel, server)
            test_reflection(channel, "v1alpha")
            test_reflection(channel, "v1")
            test_killed_client(server)
            states = test_health(channel, server)
            expect(server.stop(), 0, "server stopped in good order")
            expect(next(states).status, 2, "watchers hear of the stop")
    finally:
        if server.process.poll() is None:
            server.process.kill()


main()
