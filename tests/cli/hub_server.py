"""A server on 127.0.0.1 that speaks as Ollama's registry and as the Hugging Face hub do, and misbehaves on request."""
import hashlib
import http.server
import json
import re
import socket
import threading
import time


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Server:
    """files: path → bytes. faults: path → list of faults, one for each request that names the path, then none.

    A fault is a function of the handler and the body that it would have sent; it answers itself and returns True, or
    returns another body. seen: (path, headers) of every request."""

    def __init__(self):
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
        self.port = self.httpd.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
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
