"""A server on 127.0.0.1 that speaks as Ollama's registry and as the Hugging Face hub do, and misbehaves on request."""
import hashlib
import http.server
import json
import re
import socket
import ssl
import struct
import threading
import time


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def split_gguf(data):
    """A GGUF file as two, as llama.cpp's tool splits them: keys in the first, tensors shared out."""
    at, sizes = 24, {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    n_tensor, n_value = struct.unpack_from("<QQ", data, 8)

    def text(at):
        return at + 8 + struct.unpack_from("<Q", data, at)[0]

    def value(at, kind):
        if kind == 8:
            return text(at)
        if kind != 9:
            return at + sizes[kind]
        item, n = struct.unpack_from("<IQ", data, at)
        at += 12
        if item != 8:
            return at + n * sizes[item]
        for _ in range(n):
            at = text(at)
        return at

    for _ in range(n_value):
        at = text(at)
        at = value(at + 4, struct.unpack_from("<I", data, at)[0])
    keys, infos = data[24:at], []
    for _ in range(n_tensor):
        begin, at = at, text(at)
        n_dim = struct.unpack_from("<I", data, at)[0]
        at += 4 + 8 * n_dim + 4
        infos.append((data[begin:at], struct.unpack_from("<Q", data, at)[0]))
        at += 8
    start = (at + 31) // 32 * 32
    ends = sorted(o for _, o in infos) + [len(data) - start]
    parts = []
    for no in (0, 1):
        mine = infos[:n_tensor // 2] if no == 0 else infos[n_tensor // 2:]
        extra = b"".join(struct.pack("<Q", len(k)) + k + struct.pack("<IH", 2, v) for k, v in ((b"split.no", no), (b"split.count", 2)))
        extra += struct.pack("<Q", 19) + b"split.tensors.count" + struct.pack("<Ii", 5, n_tensor)
        head, body = b"", b""
        for info, offset in mine:
            head += info + struct.pack("<Q", len(body))
            body += data[start + offset:start + min(e for e in ends if e > offset)]
            body += b"\0" * (-len(body) % 32)
        whole = b"GGUF" + struct.pack("<IQQ", 3, len(mine), (n_value if no == 0 else 0) + 3) + (keys if no == 0 else b"") + extra + head
        parts.append(whole + b"\0" * (-len(whole) % 32) + body)
    return parts


class Server:
    """files: path → bytes. faults: path → list of faults, one for each request that names the path, then none.

    A fault is a function of the handler and the body that it would have sent; it answers itself and returns True, or
    returns another body. seen: (path, headers) of every request."""

    def __init__(self, tls=None):
        """tls: (certificate, key) files."""
        self.files, self.faults, self.seen, self.redirects = {}, {}, [], {}
        self.types = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.seen.append((self.path, dict(self.headers)))
                path = self.path.split("?")[0]
                faults = outer.faults.get(path, [])
                fault = faults.pop(0) if faults else None
                if path in outer.redirects and not fault:
                    self.send_response(307)
                    self.send_header("Location", outer.redirects[path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = outer.files.get(path)
                try:
                    if fault:
                        body = fault(self, body)
                        if body is True:
                            return
                    if body is None:
                        self.plain(404, b"not found")
                    else:
                        self.send_file(body)
                except OSError:  # the client went away
                    self.close_connection = True

            def plain(self, code, body, **headers):
                self.send_response(code)
                for k, v in headers.items():
                    self.send_header(k.replace("_", "-"), v)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def send_file(self, body, ranges=True, length=None, content_range=None, cut=None, etag=None):
                want = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
                etag = etag or '"%s"' % sha256(body)[:16]
                if_range = self.headers.get("If-Range")
                start = int(want.group(1)) if want and if_range in (None, etag) else 0
                if start >= len(body) and start:
                    return self.plain(416, b"")
                self.send_response(206 if start else 200)
                self.send_header("ETag", etag)
                if start:
                    self.send_header("Content-Range", content_range or f"bytes {start}-{len(body) - 1}/{len(body)}")
                part = body[start:]
                self.send_header("Content-Length", str(length if length is not None else len(part)))
                self.end_headers()
                self.wfile.write(part if cut is None else part[:cut])
                if cut is not None or length is not None:
                    self.hang_up()
                return True

            def hang_up(self):
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *args):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass

        self.httpd = Quiet(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.httpd.socket = context.wrap_socket(self.httpd.socket, server_side=True)
        self.port = self.httpd.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def close(self):
        self.httpd.shutdown()
        self.httpd.server_close()

    def requests(self, path):
        return [headers for p, headers in self.seen if p.split("?")[0] == path]

    # ---- models ----

    def add_ollama(self, name, tag, layers, extra=None):
        """layers: list of (kind, bytes). Returns the blobs' paths."""
        paths, listed = [], []
        for kind, data in layers:
            path = f"/v2/library/{name}/blobs/sha256:{sha256(data)}"
            self.files[path] = data
            paths.append(path)
            listed.append({"mediaType": "application/vnd.ollama.image." + kind, "digest": "sha256:" + sha256(data), "size": len(data)})
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": listed + (extra or [])}
        self.files[f"/v2/library/{name}/manifests/{tag}"] = json.dumps(manifest).encode()
        return paths

    def add_hub(self, repo, files, lfs=(".gguf", ".safetensors")):
        tree = []
        for path, data in files.items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            item = {"type": "file", "path": path, "size": len(data), "oid": git}
            if path.endswith(lfs):
                item["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
            tree.append(item)
            self.files[f"/{repo}/resolve/main/{path}"] = data
        self.files[f"/api/models/{repo}/tree/main"] = json.dumps(tree).encode()


# ---- faults ----

def drop(after):
    return lambda h, body: h.send_file(body, cut=after)


def stall(after, seconds=4):
    def fault(h, body):
        start = int(h.headers.get("Range", "bytes=0-")[6:-1])
        h.send_response(206 if start else 200)
        if start:
            h.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        h.send_header("Content-Length", str(len(body) - start))
        h.end_headers()
        h.wfile.write(body[start:start + after])
        h.wfile.flush()
        time.sleep(seconds)
        h.hang_up()
        return True
    return fault


def status(code, **headers):
    def fault(h, body):
        h.plain(code, b"some words", **headers)
        return True
    return fault


def without_ranges(h, body):
    return h.send_file(body, ranges=False)


def wrong_range(h, body):
    return h.send_file(body, content_range=f"bytes 7-{len(body) - 1}/{len(body)}")


def wrong_length(n):
    return lambda h, body: h.send_file(body, length=n)


def lie(h, body):
    """Right length, wrong bytes."""
    return bytes([body[0] ^ 1]) + body[1:]


def no_length(cut):
    """The end of the connection is the end of the body."""
    def fault(h, body):
        h.send_response(200)
        h.end_headers()
        h.wfile.write(body[:cut] if cut <= len(body) else body + b"x" * (cut - len(body)))
        h.hang_up()
        return True
    return fault
