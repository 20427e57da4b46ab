"""muster pull against a server that drops, stalls and lies; and what list, show, run, cp, rm and create make of it."""
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hub_server import Server, drop, lie, no_length, sha256, split_gguf, stall, status, without_ranges, wrong_length, wrong_range  # noqa: E402

MUSTER = os.environ["MUSTER_BIN"]
with open(os.path.join(os.environ["MUSTER_SOURCE_DIR"], "tests", "golden", "bard.q8_0.gguf"), "rb") as f:
    BARD = f.read()
QUARTER = len(BARD) // 4


class Case(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.addCleanup(self.server.close)
        tmp = tempfile.TemporaryDirectory(prefix="muster-pull-")
        self.addCleanup(tmp.cleanup)
        self.home = tmp.name
        self.store = os.path.join(self.home, "models")
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "TMPDIR", "ASAN_OPTIONS", "UBSAN_OPTIONS")}
        self.env = {**keep, "HOME": self.home, "MUSTER_MODELS": self.store, "MUSTER_OLLAMA_REGISTRY": self.server.url,
                    "HF_ENDPOINT": self.server.url}

    def muster(self, *args, **more):
        return subprocess.run([MUSTER, *args], env=self.env, capture_output=True, text=True, timeout=120, **more)

    def ok(self, *args, **more):
        done = self.muster(*args, **more)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done

    def fails(self, args, *words, status=1, **more):
        done = self.muster(*args, **more)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        for word in words:
            self.assertIn(word, last)
        self.assertEqual(json.loads(self.ok("list", "-o", "json").stdout), [], "a failed pull left a model")
        return done

    def pull(self, name, *more):
        return self.ok("pull", name, "--timeout", "1", *more)

    def blobs(self):
        folder = os.path.join(self.store, "blobs")
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def intact(self, n_blobs):
        """Every blob is what its name says, and nothing unfinished is left."""
        self.assertEqual(len(self.blobs()), n_blobs, self.blobs())
        for name in self.blobs():
            with open(os.path.join(self.store, "blobs", name), "rb") as f:
                self.assertEqual(name, "sha256-" + sha256(f.read()))


class Ollama(Case):
    def setUp(self):
        super().setUp()
        self.layers = [("model", BARD), ("template", b"{{ .Prompt }}"), ("system", b"Speak as the bard."), ("license", b"MIT\nand more"),
                       ("params", b'{"temperature":0.5,"stop":["<a>","b c"]}'), ("messages", b'[{"role":"user","content":"hi"}]')]
        self.path = self.server.add_ollama("bard", "latest", self.layers)[0]

    def test_whole(self):
        self.assertEqual(self.pull("bard").stdout, "pulled bard:latest\n")
        self.intact(6)
        listed = json.loads(self.ok("list", "-o", "json").stdout)
        self.assertEqual([(m["name"], m["store"], m["size"], m["digest"]) for m in listed],
                         [("bard:latest", "muster", len(BARD), sha256(BARD))])
        self.assertEqual(listed[0]["id"], sha256(self.server.files["/v2/library/bard/manifests/latest"]))
        shown = json.loads(self.ok("show", "bard", "-o", "json").stdout)
        self.assertEqual(shown["system"], "Speak as the bard.")
        self.assertEqual(shown["parameters"], {"temperature": 0.5, "stop": ["<a>", "b c"]})
        self.assertEqual(shown["messages"], [{"role": "user", "content": "hi"}])
        self.assertTrue(shown["runs"], shown["why_not"])
        self.assertEqual(self.ok("show", "bard", "--license").stdout, "MIT\nand more\n")
        self.assertTrue(self.ok("run", "bard:latest", "O", "--raw", "-n", "3").stdout.strip())
        n = len(self.server.requests(self.path))
        self.pull("bard")
        self.assertEqual(len(self.server.requests(self.path)), n, "what is there was fetched again")

    def test_drops_are_taken_up(self):
        self.server.faults[self.path] = [drop(QUARTER), drop(QUARTER), no_length(1)]
        self.pull("bard")
        self.intact(6)
        asked = [h.get("Range") for h in self.server.requests(self.path)]
        self.assertEqual(asked[:3], [None, f"bytes={QUARTER}-", f"bytes={2 * QUARTER}-"])
        self.assertTrue(self.server.requests(self.path)[1]["If-Range"])

    def test_stall(self):
        self.server.faults[self.path] = [stall(QUARTER)]
        done = self.pull("bard")
        self.assertIn("has sent nothing, or next to nothing, for 1 s", done.stderr)
        self.intact(6)

    def test_server_without_ranges(self):
        self.server.faults[self.path] = [drop(QUARTER), without_ranges]
        self.pull("bard")
        self.intact(6)

    def test_changed_meanwhile(self):
        """If-Range: the second answer is another file's, as a whole; its hash is wrong, and the third is right."""
        self.server.faults[self.path] = [lambda h, body: h.send_file(lie(h, body), cut=QUARTER)]
        self.pull("bard")
        self.assertEqual(len(self.server.requests(self.path)), 2)
        self.intact(6)

    def test_wrong_range_answer(self):
        self.server.faults[self.path] = [drop(QUARTER), wrong_range]
        self.pull("bard")
        self.intact(6)
        self.assertIsNone(self.server.requests(self.path)[2].get("Range"))

    def test_wrong_hash(self):
        self.server.faults[self.path] = [lie] * 9
        self.fails(["pull", "bard"], "SHA-256", sha256(BARD), "thrown away")
        self.assertEqual(len(self.server.requests(self.path)), 1)
        self.assertFalse(any(sha256(BARD) in b and "partial" not in b for b in self.blobs()))
        self.server.faults.clear()
        self.pull("bard")
        self.intact(6)

    def test_wrong_lengths(self):
        self.server.faults[self.path] = [wrong_length(len(BARD) + 5)] * 9
        self.fails(["pull", "bard", "--tries", "2"], "announces")
        self.server.faults[self.path] = [wrong_length(len(BARD) - 5)] * 9
        self.fails(["pull", "bard", "--tries", "2"], "announces")
        self.server.faults[self.path] = [no_length(len(BARD) + 5)] * 9
        self.fails(["pull", "bard", "--tries", "2"], "more than")
        self.server.faults[self.path] = [no_length(QUARTER)]
        self.pull("bard")
        self.intact(6)

    def test_errors_of_the_server(self):
        self.server.faults[self.path] = [status(500), status(503), status(429, Retry_After="1")]
        began = time.monotonic()
        self.pull("bard")
        self.assertGreater(time.monotonic() - began, 2.4)
        self.intact(6)

    def test_429_for_ever(self):
        self.server.faults["/v2/library/bard/manifests/latest"] = [status(429)] * 9
        self.fails(["pull", "bard", "--tries", "2"], "come back later")

    def test_500_for_ever(self):
        self.server.faults[self.path] = [status(500)] * 9
        self.fails(["pull", "bard", "--tries", "2"], "HTTP 500")
        self.assertEqual(len(self.server.requests(self.path)), 2)

    def test_nothing_there(self):
        self.fails(["pull", "nosuch:1b"], "there is no model 'nosuch:1b'")
        self.fails(["pull", "user/nosuch"], "hf.co/user/nosuch")
        self.fails(["pull", "../../etc/passwd"], "cannot be pulled")
        self.fails(["pull", "a b"], "cannot be pulled")

    def test_no_server(self):
        self.env["MUSTER_OLLAMA_REGISTRY"] = "http://127.0.0.1:1"
        self.fails(["pull", "bard", "--tries", "2"], "127.0.0.1:1")
        self.env["MUSTER_OLLAMA_REGISTRY"] = "file:///etc"
        self.fails(["pull", "bard"], "no address")

    def test_redirect_elsewhere(self):
        other = Server()
        self.addCleanup(other.close)
        other.files["/cdn"] = BARD
        self.server.redirects[self.path] = other.url + "/cdn"
        other.faults["/cdn"] = [drop(QUARTER)]
        self.pull("bard")
        self.intact(6)
        self.assertEqual(other.requests("/cdn")[1].get("Range"), f"bytes={QUARTER}-")
        self.server.redirects[self.path] = "file:///etc/passwd"
        self.ok("rm", "bard")
        self.fails(["pull", "bard", "--tries", "2"], "not https")

    def test_stranger_behind_tls(self):
        """A certificate that nobody vouches for, and https that leads to http."""
        if not shutil.which("openssl"):
            self.skipTest("openssl is not installed")
        pem, key = os.path.join(self.home, "pem"), os.path.join(self.home, "key")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", pem, "-days", "2", "-subj", "/CN=127.0.0.1",
                        "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        tls = Server(tls=(pem, key))
        self.addCleanup(tls.close)
        tls.files.update(self.server.files)
        self.env["MUSTER_OLLAMA_REGISTRY"] = tls.url
        self.fails(["pull", "bard"], "could not prove who it is")
        self.assertEqual(tls.seen, [])

    def test_hostile_manifests(self):
        path = "/v2/library/bard/manifests/latest"
        good = json.loads(self.server.files[path])
        ours = {"mediaType": "application/vnd.muster.reference", "path": "/etc/passwd", "size": 1}
        evil = dict(good["layers"][0], digest="sha256:../../../../etc/passwd")
        for layers, word in ((good["layers"] + [ours], "Muster itself"), ([evil], "64 hex digits"), ([], "layers"),
                             ([dict(good["layers"][0], size=-1)], "size"), (good["layers"][1:], "GGUF")):
            self.server.files[path] = json.dumps(dict(good, layers=layers)).encode()
            self.fails(["pull", "bard"], word)
        self.server.files[path] = b"[" * 100000
        self.fails(["pull", "bard"], "JSON")
        self.server.files[path] = b" " * (5 << 20)
        self.fails(["pull", "bard"], "longer than")

    def test_no_room(self):
        big = dict(json.loads(self.server.files["/v2/library/bard/manifests/latest"]))
        big["layers"][0]["size"] = 1 << 60
        self.server.files["/v2/library/bard/manifests/latest"] = json.dumps(big).encode()
        self.fails(["pull", "bard"], "free")
        self.assertEqual(self.server.requests(self.path), [])

    def test_disk_full_then_more_room(self):
        limit = 2 * QUARTER
        self.fails(["pull", "bard"], "free some space", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        self.pull("bard")
        self.intact(6)
        self.assertTrue(any(h.get("Range") for h in self.server.requests(self.path)))

    def start(self, *args):
        return subprocess.Popen([MUSTER, *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for_partial(self):
        partial = os.path.join(self.store, "blobs", f"sha256-{sha256(BARD)}-partial")
        for _ in range(200):
            if os.path.exists(partial) and os.path.getsize(partial) >= QUARTER:
                return
            time.sleep(0.05)
        self.fail("nothing arrived")

    def test_killed_and_taken_up(self):
        self.server.faults[self.path] = [stall(QUARTER, 2)]
        p = self.start("pull", "bard")
        self.wait_for_partial()
        p.kill()
        p.communicate(timeout=20)
        self.assertEqual(json.loads(self.ok("list", "-o", "json").stdout), [])
        self.pull("bard")
        self.intact(6)
        self.assertEqual(self.server.requests(self.path)[1].get("Range"), f"bytes={QUARTER}-")

    def test_spoiled_partial(self):
        """What an older process left is wrong: found by the hash, and fetched from the start, once."""
        os.makedirs(os.path.join(self.store, "blobs"))
        with open(os.path.join(self.store, "blobs", f"sha256-{sha256(BARD)}-partial"), "wb") as f:
            f.write(b"x" * QUARTER)
        self.pull("bard")
        self.intact(6)
        self.assertEqual([h.get("Range") for h in self.server.requests(self.path)], [f"bytes={QUARTER}-", None])

    def test_blob_cut_short(self):
        """A blob that lost its end, by its disk or by somebody, is got again by a pull."""
        self.pull("bard")
        blob = os.path.join(self.store, "blobs", "sha256-" + sha256(BARD))
        os.truncate(blob, QUARTER)
        self.assertIn("pull the model again", self.muster("show", "bard").stderr)
        self.pull("bard")
        self.intact(6)
        self.ok("show", "bard")

    def test_ctrl_c(self):
        self.server.faults[self.path] = [stall(QUARTER, 8)]
        p = self.start("pull", "bard", "--timeout", "30")
        self.wait_for_partial()
        began = time.monotonic()
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=20)
        self.assertEqual(p.returncode, 130)
        self.assertIn("pull model 'bard' again", err)
        self.assertLess(time.monotonic() - began, 3)
        self.pull("bard")
        self.intact(6)

    def test_two_at_once(self):
        self.server.faults[self.path] = [stall(QUARTER, 1)]
        a = self.start("pull", "bard", "--timeout", "5")
        self.wait_for_partial()
        b = self.start("pull", "bard", "--timeout", "5")
        for p in (a, b):
            _, err = p.communicate(timeout=60)
            self.assertEqual(p.returncode, 0, err)
        self.assertIn("waiting", err)
        self.intact(6)

    def test_rm_while_pulling(self):
        self.server.faults[self.path] = [stall(QUARTER, 2)]
        p = self.start("pull", "bard", "--timeout", "5")
        self.wait_for_partial()
        done = self.muster("rm", "other")
        self.assertEqual(done.returncode, 1)
        self.assertIn("try again", done.stderr)
        p.communicate(timeout=60)
        self.assertEqual(p.returncode, 0)

    def test_shared_blobs(self):
        self.server.add_ollama("verse", "1b", [("model", BARD), ("system", b"Other words.")])
        self.pull("bard")
        self.pull("verse:1b")
        self.assertEqual(len(self.server.requests("/v2/library/verse/blobs/sha256:" + sha256(BARD))), 0)
        self.ok("cp", "verse:1b", "mine")
        self.ok("rm", "bard", "verse:1b")
        self.intact(2)
        self.assertTrue(self.ok("run", "mine", "O", "--raw", "-n", "3").stdout.strip())
        self.assertIn("removed mine", self.ok("rm", "mine").stdout)
        self.assertEqual(self.blobs(), [])
        for unknown in ("mine", "nothing/near:it", "./mine.gguf"):
            done = self.muster("rm", unknown)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"no model '{unknown}' in Muster's own store; 'muster list'", done.stderr)
            self.assertNotIn("pull", done.stderr)

    def test_create(self):
        self.pull("bard")
        with open(os.path.join(self.home, "Modelfile"), "w") as f:
            f.write('# mine\nfrom bard\nPARAMETER temperature 1\nPARAMETER stop "x"\nSYSTEM """Two\nlines."""\nMESSAGE user a\nMESSAGE assistant b\n')
        self.ok("create", "mine", "-f", os.path.join(self.home, "Modelfile"))
        shown = json.loads(self.ok("show", "mine", "-o", "json").stdout)
        self.assertEqual(shown["system"], "Two\nlines.")
        self.assertEqual(shown["parameters"], {"temperature": 1.0, "stop": ["x"]})
        self.assertEqual([m["role"] for m in shown["messages"]], ["user", "assistant"])
        self.assertEqual(shown["license_texts"], ["MIT\nand more"])
        told = self.ok("show", "mine").stdout
        self.assertRegex(told, r'\nParameters\n  temperature +1\n  stop +"x"\n\nSystem\n  Two\n  lines\.\n\Z')
        self.assertEqual(self.ok("show", "mine", "--system").stdout, "Two\nlines.\n")
        text = self.ok("show", "mine", "--modelfile").stdout
        again = subprocess.run([MUSTER, "create", "again", "-f", "-"], env=self.env, input=text, capture_output=True, text=True)
        self.assertEqual(again.returncode, 0, again.stderr)
        once_more = self.ok("show", "again", "--modelfile").stdout
        self.assertEqual(once_more.replace("again:latest", "mine:latest"), text)
        for name in ("m.gguf", "lora.gguf"):
            with open(os.path.join(self.home, name), "wb") as f:
                f.write(BARD)
        tilde = subprocess.run([MUSTER, "create", "tilde", "-f", "-"], env=self.env, input="FROM ~/m.gguf\nADAPTER ~/lora.gguf\n", capture_output=True, text=True)
        self.assertEqual(tilde.returncode, 0, tilde.stderr)
        shown = json.loads(self.ok("show", "tilde", "-o", "json").stdout)
        self.assertEqual((shown["path"], shown["adapters"]), (os.path.join(self.home, "m.gguf"), [os.path.join(self.home, "lora.gguf")]))
        self.assertIn("none has 'zzz'", self.ok("list", "zzz").stderr)
        here = subprocess.run([MUSTER, "create", "here", "-f", "-"], env=self.env, cwd=self.home, input="FROM ./m.gguf\n", capture_output=True, text=True)
        self.assertEqual(here.returncode, 0, here.stderr)
        self.assertEqual(json.loads(self.ok("show", "here", "-o", "json").stdout)["path"], os.path.join(self.home, "m.gguf"))
        bad = subprocess.run([MUSTER, "create", "x", "-f", "-"], env=self.env, input="FROM bard\nPARAMETER heat 3\n", capture_output=True, text=True)
        self.assertEqual(bad.returncode, 1)
        self.assertIn("line 2", bad.stderr)

    def test_names_of_other_scripts(self):
        """Columns of the list stand where they do for a name in ASCII: a terminal's columns are neither bytes nor characters."""
        os.mkdir(os.path.join(self.home, "cache"))
        for name in ("plain", "cafe\u0301", "мудрец", "日本語モデル"):
            with open(os.path.join(self.home, "cache", name + ".gguf"), "wb") as f:
                f.write(BARD)
        self.env["LLAMA_CACHE"] = os.path.join(self.home, "cache")
        for locale in ("C", "C.UTF-8"):
            self.env["LC_ALL"] = locale
            rows = subprocess.run([MUSTER, "list"], env=self.env, capture_output=True, timeout=60).stdout.decode().splitlines()
            self.assertEqual(len(rows), 5, rows)
            starts = []
            for row in rows:
                name = row[:row.index("STORE" if row.startswith("NAME") else "llama.cpp")]
                starts.append(sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) == "W" else 1 for c in name))
            self.assertEqual(starts, [14] * 5, rows)


class Show(Case):
    def show(self, data, *more):
        path = os.path.join(self.home, "m.gguf")
        with open(path, "wb") as f:
            f.write(data)
        return self.ok("show", path, *more)

    def test_of_a_family_that_does_not_run(self):
        shown = json.loads(self.show(BARD.replace(b"llama", b"xxama"), "-o", "json").stdout)
        self.assertEqual((shown["architecture"], shown["runs"], shown["context"], shown["layers"]), ("xxama", False, 512, 4))
        self.assertIn("xxama", shown["why_not"])
        self.assertEqual(shown["memory"], [])
        self.assertIn("runs here      no: ", self.show(BARD.replace(b"llama", b"xxama")).stdout)

    def test_what_is_not_utf_8(self):
        """JSON holds text alone: what else there is becomes the replacement character."""
        self.server.add_ollama("odd", "latest", [("model", BARD), ("system", b"So\xff."), ("license", b"\xc3(c)\nmore")])
        self.pull("odd")
        shown = json.loads(self.ok("show", "odd", "-o", "json").stdout)
        self.assertEqual((shown["system"], shown["license_texts"]), ("So\ufffd.", ["\ufffd(c)\nmore"]))
        path = os.path.join(self.home, os.fsdecode(b"m\xff\xe2\x82.gguf"))
        with open(path, "wb") as f:
            f.write(BARD.replace(b"{% for", b"\xed\xa0\x80for"))
        shown = json.loads(self.ok("show", path, "-o", "json").stdout)
        told = os.path.join(self.home, "m\ufffd\ufffd\ufffd.gguf")
        self.assertEqual((shown["name"], shown["path"]), (told, told))
        self.assertIn("\ufffd" * 3 + "for", shown["template"])

    def test_folder_that_is_not_read(self):
        self.server.add_hub("user/new", {"config.json": b'{"model_type":"brandnew","dtype":"bfloat16"}', "model.safetensors": b"a" * 100})
        self.pull("hf.co/user/new")
        shown = json.loads(self.ok("show", "user/new", "-o", "json").stdout)
        self.assertEqual((shown["architecture"], shown["type"], shown["runs"], shown["tensors"]), ("brandnew", "BF16", False, {}))
        self.assertIn("'brandnew' is not supported", shown["why_not"])
        text = self.ok("show", "user/new").stdout
        self.assertIn("runs here      no: ", text)
        self.assertIn("template       not read", text)
        self.assertNotIn("Tensors", text)
        self.assertEqual(self.muster("show", "user/new", "--template").returncode, 1)
        self.assertEqual(self.muster("show", "user/new", "--license").returncode, 1)

    def test_numbers(self):
        shown = json.loads(self.show(BARD, "-o", "json").stdout)
        self.assertTrue(shown["runs"])
        self.assertLess(0, len(BARD) - sum(t["bytes"] for t in shown["tensors"].values()))
        self.assertEqual([m["context"] for m in shown["memory"]], [512])
        self.assertIn("{%", self.show(BARD, "--template").stdout)
        self.assertEqual(self.show(BARD, "--parameters").stdout, "")
        done = self.muster("show", os.path.join(self.home, "m.gguf"), "--system")
        self.assertEqual((done.returncode, done.stdout), (1, ""))

    def test_nothing_that_a_terminal_obeys(self):
        self.assertNotIn("\033", self.show(BARD.replace(b"{% for", b"{\033[2Jx")).stdout)
        self.assertNotIn("\033", self.show(BARD.replace(b"{% for", b"{\033[2Jx"), "--template").stdout)
        self.assertNotIn("\x9b", self.show(BARD.replace(b"{% for", b"{\xc2\x9b2Jx"), "--template").stdout)
        # Ends of lines are kept as they are, so that a Modelfile gives the same texts.
        self.server.add_ollama("crlf", "latest", [("model", BARD), ("system", "Zwei\r\nZeilen: \u00e4\rx".encode())])
        self.pull("crlf")
        done = subprocess.run([MUSTER, "show", "crlf", "--system"], env=self.env, capture_output=True)
        self.assertEqual(done.stdout, "Zwei\r\nZeilen: \u00e4?x\n".encode())


class Hub(Case):
    def test_quantisations(self):
        self.server.add_hub("user/repo-GGUF", {"README.md": b"hello", "m-Q4_K_M.gguf": BARD, "m-Q8_0.gguf": BARD + b"\0", "mmproj-F16.gguf": b"GGUF"})
        self.assertEqual(self.pull("hf.co/user/repo-GGUF").stdout, "pulled hf.co/user/repo-GGUF:Q4_K_M\n")
        self.assertEqual(self.pull("https://huggingface.co/user/repo-GGUF:q8_0").stdout, "pulled hf.co/user/repo-GGUF:Q8_0\n")
        self.intact(2)
        self.ok("show", "hf.co/user/repo-GGUF:Q4_K_M")
        self.ok("show", "user/repo-GGUF:q4_k_m")
        self.assertIn("may mean", self.muster("show", "hf.co/user/repo-GGUF").stderr)
        self.ok("rm", "hf.co/user/repo-GGUF:Q8_0")
        self.ok("show", "hf.co/user/repo-GGUF")
        self.ok("rm", "hf.co/user/repo-GGUF")
        self.fails(["pull", "hf.co/user/repo-GGUF:Q2_K"], "Q4_K_M, Q8_0")

    def test_names_that_say_more_than_a_quantisation(self):
        """Unsloth's: UD-IQ2_M and IQ2_M side by side, UD-Q4_K_XL alone."""
        files = {"m-UD-IQ2_M.gguf": BARD, "m-IQ2_M.gguf": BARD + b"\0", "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf": BARD + b"\0\0"}
        self.server.add_hub("unsloth/m-GGUF", files)
        for tag, name, path in (("ud-q4_k_xl", "UD-Q4_K_XL", "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf"), ("Q4_K_XL", "Q4_K_XL", "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf"),
                                ("UD-IQ2_M", "UD-IQ2_M", "m-UD-IQ2_M.gguf"), ("IQ2_M", "IQ2_M", "m-IQ2_M.gguf"), ("m-iq2_m", "m-IQ2_M", "m-IQ2_M.gguf")):
            self.assertEqual(self.pull("hf.co/unsloth/m-GGUF:" + tag).stdout, f"pulled hf.co/unsloth/m-GGUF:{name}\n")
            shown = json.loads(self.ok("show", "hf.co/unsloth/m-GGUF:" + tag, "-o", "json").stdout)
            self.assertEqual(os.path.getsize(shown["path"]), len(files[path]))
        self.assertEqual(self.muster("pull", "hf.co/unsloth/m-GGUF:2_M").returncode, 1)

    def test_tags_as_ollama_has_them(self):
        """What the hub's page about Ollama says: a file's whole name; and what 'ollama list' shows where none was given."""
        one, two = split_gguf(BARD)
        self.server.add_hub("user/m-GGUF", {"m-Q4_K_M.gguf": BARD, "m-Q8_0.gguf": BARD + b"\0", "m-F16-00001-of-00002.gguf": one, "m-F16-00002-of-00002.gguf": two})
        for tag, name in (("latest", "Q4_K_M"), ("m-Q8_0.gguf", "m-Q8_0"), ("m-f16-00001-of-00002.gguf", "m-F16")):
            self.assertEqual(self.pull("hf.co/user/m-GGUF:" + tag).stdout, f"pulled hf.co/user/m-GGUF:{name}\n")
        self.intact(4)
        self.server.add_hub("user/plain", {"config.json": b'{"model_type":"llama"}', "model.safetensors": b"a" * 100})
        self.assertEqual(self.pull("hf.co/user/plain:latest").stdout, "pulled hf.co/user/plain:latest\n")

    def test_token_stays_at_home(self):
        other = Server()
        self.addCleanup(other.close)
        self.server.add_hub("user/gated", {"m-Q4_0.gguf": BARD})
        other.files["/cdn"] = BARD
        self.server.redirects["/user/gated/resolve/main/m-Q4_0.gguf"] = other.url + "/cdn"
        self.env["HF_TOKEN"] = "hf_secret"
        self.pull("hf.co/user/gated")
        for _, headers in self.server.seen:
            self.assertEqual(headers.get("Authorization"), "Bearer hf_secret")
        self.assertEqual(len(other.seen), 1)
        self.assertNotIn("hf_secret", str(other.seen))
        del self.env["HF_TOKEN"]
        self.ok("rm", "hf.co/user/gated")
        self.server.seen.clear()
        os.makedirs(os.path.join(self.home, ".cache", "huggingface"))
        with open(os.path.join(self.home, ".cache", "huggingface", "token"), "w") as f:
            f.write("hf_file\n")
        self.pull("hf.co/user/gated")
        self.assertEqual(self.server.seen[0][1].get("Authorization"), "Bearer hf_file")
        self.env["XDG_CACHE_HOME"] = os.path.join(self.home, "cache")
        os.rename(os.path.join(self.home, ".cache"), self.env["XDG_CACHE_HOME"])
        self.ok("rm", "hf.co/user/gated")
        self.server.seen.clear()
        self.pull("hf.co/user/gated")
        self.assertEqual(self.server.seen[0][1].get("Authorization"), "Bearer hf_file")
        self.server.add_ollama("bard", "latest", [("model", BARD)])
        self.server.seen.clear()
        self.pull("bard")
        self.assertNotIn("hf_file", str(self.server.seen))

    def test_gated(self):
        self.server.faults["/api/models/user/gated/tree/main"] = [status(401), status(403)]
        self.fails(["pull", "hf.co/user/gated"], "HF_TOKEN")
        self.fails(["pull", "hf.co/user/gated"], "HF_TOKEN")

    def test_pages(self):
        self.server.add_hub("user/long", {f"f{i}.txt": b"x" for i in range(3)})
        first = self.server.files["/api/models/user/long/tree/main"]
        self.server.add_hub("user/long", {"m.gguf": BARD})
        second = self.server.files.pop("/api/models/user/long/tree/main")
        self.server.files["/page2"] = second

        def page(h, body):
            h.plain(200, first, Link=f'<{self.server.url}/page2>; rel="next"')
            return True
        self.server.faults["/api/models/user/long/tree/main"] = [page]
        self.assertEqual(self.pull("hf.co/user/long").stdout, "pulled hf.co/user/long:latest\n")

    def test_safetensors_folder(self):
        files = {"config.json": b'{"model_type":"llama","torch_dtype":"bfloat16"}', "tokenizer.json": b"{}", "model-00001-of-00002.safetensors": b"a" * 1000,
                 "model-00002-of-00002.safetensors": b"b" * 1000, "evil.py": b"import os", "pytorch_model.bin": b"PK", "original/consolidated.pth": b"PK"}
        self.server.add_hub("user/plain", files)
        self.assertEqual(self.pull("hf.co/user/plain").stdout, "pulled hf.co/user/plain:latest\n")
        self.intact(4)
        listed = json.loads(self.ok("list", "-o", "json").stdout)
        self.assertEqual((listed[0]["type"], listed[0]["size"]), ("BF16", 2000))
        self.assertEqual(sorted(os.listdir(listed[0]["path"])), sorted(list(files)[:4]))
        with open(os.path.join(listed[0]["path"], "config.json"), "rb") as f:
            self.assertEqual(f.read(), files["config.json"])
        self.ok("rm", "hf.co/user/plain")
        self.assertEqual(self.blobs(), [])
        self.assertFalse(os.path.exists(listed[0]["path"]))
        self.server.faults["/user/plain/resolve/main/config.json"] = [lie]
        self.fails(["pull", "hf.co/user/plain"], "git hash")

    def test_changed_repository(self):
        """The files that a repository has no more leave the model's folder, and their blobs the store."""
        shards = {f"model-0000{i}-of-00002.safetensors": b"%d" % i * 1000 for i in (1, 2)}
        common = {"config.json": b'{"model_type":"llama"}', "tokenizer.json": b"{}"}
        before = {**common, **shards, "model.safetensors.index.json": b'{"weight_map":{}}', "chat_template.jinja": b"{{ x }}"}
        after = {**common, "model.safetensors": b"3" * 1000}
        self.server.add_hub("user/plain", before)
        self.pull("hf.co/user/plain")
        self.intact(6)
        self.server.add_hub("user/plain", after)
        self.pull("hf.co/user/plain")
        view = json.loads(self.ok("list", "-o", "json").stdout)[0]["path"]
        self.assertEqual(sorted(os.listdir(view)), sorted(after))
        self.intact(3)
        # Somebody else is adding models, and may want the blobs: they stay.
        with open(os.path.join(self.store, "lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            self.server.add_hub("user/plain", before)
            self.pull("hf.co/user/plain")
        self.assertEqual(sorted(os.listdir(view)), sorted(before))
        self.intact(7)
        # As if a pull of another version had died between two links: nothing is made of files of both.
        link, other = os.path.join(view, "config.json"), os.readlink(os.path.join(view, "chat_template.jinja"))
        os.remove(link)
        self.fails(["show", "hf.co/user/plain"], "config.json is missing: pull the model again")
        os.symlink(other, link)
        self.fails(["show", "hf.co/user/plain"], "config.json is another file than the model's: pull the model again")
        self.pull("hf.co/user/plain")
        self.assertEqual(len(json.loads(self.ok("list", "-o", "json").stdout)), 1)
        # As one GGUF it needs no folder; what a copy of the old one has stays.
        self.ok("cp", "hf.co/user/plain", "old")
        self.server.add_hub("user/plain", {"m.gguf": BARD})
        self.pull("hf.co/user/plain")
        self.assertFalse(os.path.exists(view))
        self.intact(8)
        self.ok("rm", "old")
        self.intact(2)

    def test_split_gguf(self):
        one, two = split_gguf(BARD)
        self.server.add_hub("user/split", {"Q8_0/m-Q8_0-00001-of-00002.gguf": one, "Q8_0/m-Q8_0-00002-of-00002.gguf": two})
        self.pull("hf.co/user/split:Q8_0")
        listed = json.loads(self.ok("list", "-o", "json").stdout)
        self.assertEqual([(m["name"], m["size"]) for m in listed], [("hf.co/user/split:Q8_0", len(one) + len(two))])
        self.assertTrue(listed[0]["path"].endswith("/m-Q8_0-00001-of-00002.gguf"))
        whole = os.path.join(os.environ["MUSTER_SOURCE_DIR"], "tests", "golden", "bard.q8_0.gguf")
        said = self.ok("run", "user/split", "O", "--raw", "-n", "8").stdout
        self.assertEqual(said, self.ok("run", whole, "O", "--raw", "-n", "8").stdout)
        # Served by name: the ranks get the link's path, beside which the other part is.
        server = subprocess.Popen([MUSTER, "serve", "user/split", "--split", "1:1", "--ctx", "128", "--parallel", "2", "--listen", "127.0.0.1:0"],
                                  env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            banner = server.stdout.readline()
            self.assertIn("serving", banner)
            address = banner.split(" on ")[1].split(",")[0]
            for name in ("hf.co/user/split:Q8_0", "hf.co/user/split", "default"):
                self.assertEqual(self.ok("run", name, "O", "--raw", "-n", "8", "--server", address).stdout, said)
            self.assertIn("not served", self.muster("run", "hf.co/user/spl", "O", "--server", address).stderr)
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)
        self.ok("rm", "hf.co/user/split:Q8_0")
        self.assertEqual(self.blobs(), [])
        self.server.add_hub("user/split", {"m-Q8_0-00001-of-00002.gguf": one})
        self.fails(["pull", "hf.co/user/split"], "1 of the 2 parts")

    def test_hostile_lists(self):
        self.server.add_hub("user/evil", {"../../m.gguf": BARD, "/etc/m.gguf": BARD, "a/../m.gguf": BARD})
        self.fails(["pull", "hf.co/user/evil"], "neither")
        self.server.add_hub("user/evil", {"pytorch_model.bin": b"PK", "config.json": b"{}"})
        self.fails(["pull", "hf.co/user/evil"], "pickle")
        self.server.files["/api/models/user/evil/tree/main"] = b'{"error":"no"}'
        self.fails(["pull", "hf.co/user/evil"], "list of files")

        for page in ("http://127.0.0.1:1/page2", self.server.url + "0/page2", self.server.url + "@127.0.0.1:1/page2", "/page2"):
            def elsewhere(h, body, page=page):
                h.plain(200, b"[]", Link=f'<{page}>; rel="next"')
                return True
            self.server.faults["/api/models/user/evil/tree/main"] = [elsewhere]
            self.fails(["pull", "hf.co/user/evil"], "elsewhere")
        self.server.faults["/api/models/user/evil/tree/main"] = [
            lambda h, body: h.plain(200, b"[]", Link=f'<{self.server.url}/api/models/user/evil/tree/main>; rel="next"') or True] * 99
        self.fails(["pull", "hf.co/user/evil"], "does not end")


if __name__ == "__main__":
    unittest.main()
