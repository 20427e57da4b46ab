"""`muster run` as a chat: a real pseudo-terminal, the demonstration model and a small template of our own."""
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "cluster"))
import harness  # noqa: E402
from harness import BARD  # noqa: E402

TEMPLATE = """{% for m in messages %}{{ m.role | upper }}:
{{ m.content }}

{% endfor %}{% if add_generation_prompt %}ASSISTANT:
{% endif %}"""
THINKS = TEMPLATE.replace("ASSISTANT:\n{% endif %}", "ASSISTANT:\n{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}")
# Whatever a terminal obeys and does not show.
CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """A process at a terminal of its own: type, and wait for what it shows."""

    def __init__(self, test, *args, home=None, columns=80, env=None, under=()):
        self.home = home or tempfile.mkdtemp(dir=test.tmp)
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"XDG_DATA_HOME": self.home, "TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})})
            command = [*under, harness.MUSTER, "run", *args]
            os.execvp(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.shown = b""  # all of it, without codes
        self.raw = b""
        self.seen = 0  # how far an expectation has looked
        self.status = None
        test.addCleanup(self.end)

    def read(self, seconds):
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            got = os.read(self.fd, 65536)
        except OSError:
            got = b""
        self.raw += got
        self.shown = CODES.sub(b"", self.raw)
        return bool(got)

    def expect(self, pattern, seconds=60):
        """Waits for the pattern in what came after the last one; returns what stood before it."""
        deadline = time.monotonic() + seconds
        while True:
            hit = re.compile(pattern.encode(), re.S).search(self.shown, self.seen)
            if hit:
                before = self.shown[self.seen:hit.start()]
                self.seen = hit.end()
                return before.decode()
            left = deadline - time.monotonic()
            if left <= 0 or not (self.read(left) or select.select([self.fd], [], [], 0)[0] == []):
                raise AssertionError(f"{pattern!r} was not shown; there is: {self.shown[self.seen:]!r}")

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait_raw(self):
        """Until the editor has the terminal: before, the terminal itself would echo what is typed, and obey Ctrl-D."""
        deadline = time.monotonic() + 20
        while termios.tcgetattr(self.fd)[3] & termios.ICANON and time.monotonic() < deadline:
            time.sleep(0.005)

    def say(self, line, prompt=r">>> $"):
        """A line and Enter; returns what was shown until the next prompt, without the line's echo."""
        self.wait_raw()
        self.type(line + "\r")
        self.expect("\n")
        return self.expect(prompt)

    def leave(self, how="/bye\r"):
        self.wait_raw()
        self.type(how)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self.read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it did not leave")

    def end(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


class Chat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="muster-chat-")
        cls.tmp = cls.folder.name
        cls.template = cls.write("t.jinja", TEMPLATE)
        cls.thinks = cls.write("think.jinja", THINKS)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def write(cls, name, text):
        path = os.path.join(cls.tmp, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def chat(self, *args, template=None, **more):
        t = Terminal(self, BARD, "--template", template or self.template, "-n", "12", "--seed", "5", "-t", "2", *args, **more)
        t.expect(r">>> $")
        return t

    def saved(self, t):
        path = os.path.join(t.home, "saved.json")
        self.assertIn("Saved", t.say("/save " + path))
        with open(path, encoding="utf-8") as f:
            return json.load(f)

    def contents(self, t, role):
        return [m["content"] for m in self.saved(t)["messages"] if m["role"] == role]

    def run_once(self, *args, stdin=None):
        p = subprocess.run([harness.MUSTER, "run", BARD, "-t", "2", *args], input=stdin, capture_output=True, text=True, timeout=60,
                           stdin=subprocess.DEVNULL if stdin is None else None)
        return p

    # ---- turns ----

    def test_reader_that_went_away(self):
        """Nobody sees an answer any more: the chat ends."""
        t = self.chat("--quiet", under=(sys.executable, "-c", "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.execv(sys.argv[1], sys.argv[1:])"))
        self.assertEqual(t.leave("O Romeo\r"), 1)
        self.assertNotIn(b"muster run:", t.shown)

    def test_turns(self):
        t = self.chat("--verbose")
        first = t.say("Good morrow")
        self.assertNotIn("kept", first)
        second = t.say("Farewell")
        kept = re.search(r"prompt eval count: +(\d+) tokens \((\d+) of them kept", second)
        self.assertTrue(kept, second)
        self.assertGreater(int(kept[2]), 10)
        talk = self.saved(t)["messages"]
        self.assertEqual([m["role"] for m in talk], ["user", "assistant"] * 2)
        self.assertEqual([m["content"] for m in talk if m["role"] == "user"], ["Good morrow", "Farewell"])
        # The same conversation rendered by hand, computed from nothing: the same text.
        for n in (1, 3):
            self.assertEqual(self.from_nothing(talk[:n]), talk[n]["content"].strip())
        # Another conversation on the same cache.
        t.say("/clear")
        t.say("Whither goest thou?")
        talk = self.saved(t)["messages"]
        self.assertEqual(self.from_nothing(talk[:1]), talk[1]["content"].strip())
        self.assertEqual(t.leave(), 0)

    def from_nothing(self, messages):
        """The answer to these, with --raw and a prompt that is rendered here."""
        prompt = "".join(f"{m['role'].upper()}:\n{m['content']}\n\n" for m in messages) + "ASSISTANT:\n"
        done = self.run_once(prompt, "--raw", "-n", "12", "--seed", "5", "-T", "0.8", "--top-k", "40", "--top-p", "0.9")
        return done.stdout.strip()

    def test_ctrl_c_keeps_what_was_said(self):
        t = self.chat("--ignore-end", "-n", "400")
        t.wait_raw()
        t.wait_raw()
        t.type("Speak\r")
        t.expect("\n.{10,}")
        t.type("\x03")
        t.expect(">>> $", 20)
        half = self.contents(t, "assistant")
        self.assertEqual(len(half), 1)
        self.assertGreater(len(half[0]), 5)
        t.wait_raw()
        t.type("not this")
        t.expect("this")
        t.type("\x03")
        t.expect(">>> $")
        t.wait_raw()
        t.type("\x03")
        t.expect("Ctrl-D or /bye leaves.*>>> $")
        self.assertEqual(self.contents(t, "user"), ["Speak"])
        self.assertEqual(t.leave("\x04"), 0)

    def test_blocks_and_pastes(self):
        t = self.chat()
        t.say('"""/one line"""')
        t.say('"""first', r"\.\.\. $")
        t.say("", r"\.\.\. $")
        t.say('/third"""')
        t.say('"""', r"\.\.\. $")
        t.say("alone", r"\.\.\. $")
        t.say('"""')
        t.say("\x1b[200~pasted\r\tlines\x1b[201~", r">>> $")
        self.assertEqual(self.contents(t, "user"), ["/one line", "first\n\n/third", "alone", "pasted\n\tlines"])
        self.assertIn("is set", (t.say('/set system """Be', r"\.\.\. $"), t.say('brief."""'))[1])
        self.assertEqual(self.saved(t)["system"], "Be\nbrief.")
        long = " ".join(f"w{i}" for i in range(300))
        self.assertNotIn("at most", t.say("/set system " + long))
        self.assertEqual(self.saved(t)["system"], long)

    def test_stopped_and_resumed(self):
        t = self.chat()
        t.wait_raw()
        t.type("Good")
        t.expect("Good")
        os.kill(t.pid, signal.SIGSTOP)
        os.waitpid(t.pid, os.WUNTRACED)
        mode = termios.tcgetattr(t.fd)  # a shell takes the terminal back in its own mode
        mode[3] |= termios.ICANON | termios.ECHO
        termios.tcsetattr(t.fd, termios.TCSANOW, mode)
        os.kill(t.pid, signal.SIGCONT)
        t.expect(">>> Good$")
        t.say(" \x1b[Dmorrow")  # a key that only the editor knows
        self.assertEqual(self.contents(t, "user"), ["Goodmorrow "])

    def test_ended_in_a_line(self):
        """Whoever has the terminal next finds it as it was."""
        for sig in (signal.SIGTERM, signal.SIGHUP):
            t = self.chat(under=("sh", "-c", '"$@"; echo "status $?"; read x', "sh"))
            t.wait_raw()
            t.type("Good")
            t.expect("Good")
            os.kill(next(pid for pid in harness.descendants(t.pid) if pid != t.pid), sig)
            t.expect(f"status {128 + sig}")
            self.assertEqual(termios.tcgetattr(t.fd)[3] & (termios.ICANON | termios.ECHO), termios.ICANON | termios.ECHO)
            self.assertTrue(t.raw.rindex(b"\x1b[?2004l") > t.raw.rindex(b"\x1b[?2004h"))

    def test_wide_characters(self):
        t = self.chat()
        t.say("Grüße, 日本語 🙂!")
        self.assertEqual(self.contents(t, "user"), ["Grüße, 日本語 🙂!"])

    def test_words_are_not_broken(self):
        t = self.chat("-n", "60", "--ignore-end", columns=30)
        lines = t.say("Speak at length, I pray thee").split("\n")
        whole = " ".join(self.contents(t, "assistant")[0].split())
        self.assertEqual(" ".join(" ".join(lines).split()), whole)
        self.assertGreater(len(lines), 3)
        self.assertTrue(all(len(line) < 30 for line in lines), lines)

    # ---- commands ----

    def test_set_and_show(self):
        t = self.chat()
        self.assertIn("temperature", t.say("/set parameter"))
        self.assertIn("logit_bias, min_tokens, seed, num_predict, num_ctx, stop", t.say("/set parameter mirostat 1"))
        self.assertIn("must be a number, not 'hot'", t.say("/set parameter temperature hot"))
        self.assertIn("0 (off) or from 0.0001 to 100", t.say("/set parameter temperature 101"))
        self.assertIn("is now 0.5", t.say("/set parameter temperature 0.5"))
        t.say('/set parameter stop "two words" \\n')
        self.assertIn("is now", t.say("/set parameter logit_bias 5=-3.5 6=1"))
        self.assertIn("ID=X", t.say("/set parameter logit_bias five"))
        t.say("/set parameter logit_bias " + " ".join(f"{i}=-1" for i in range(30)))
        self.assertIn(" 29=-1", t.say("/show parameters"))
        t.say("/set parameter logit_bias 5=-3.5 6=1")
        self.assertIn("0.01", t.say("/set parameter repeat_penalty 0.001"))
        t.say("/set parameter repeat_penalty 1.25")
        t.say("/set parameter typical_p 0.9")
        shown = t.say("/show parameters")
        for pattern in (r"logit_bias +5=-3\.5", r"logit_bias +6=1", r"repeat_penalty +1\.25", r"typical_p +0\.9"):
            self.assertRegex(shown, pattern)
        self.assertRegex(shown, r"temperature +0\.5")
        self.assertRegex(shown, r'stop +"two words"')
        self.assertIn("no system prompt", t.say("/show system"))
        t.say("/set system Speak as a fool.")
        self.assertIn("Speak as a fool.", t.say("/show system"))
        self.assertIn("add_generation_prompt", t.say("/show template"))
        self.assertIn("llama", t.say("/show info").lower())
        modelfile = t.say("/show modelfile")
        for line in ("FROM ", "SYSTEM", "PARAMETER temperature"):
            self.assertIn(line, modelfile)
        self.assertIn("license", t.say("/show license").lower())
        self.assertIn("JSON objects", t.say("/set format json"))
        self.assertIn("--json-schema", t.say("/set format xml"))
        self.assertIn("any form", t.say("/set noformat"))
        self.assertIn("/set, /show, /load", t.say("/fly"))
        self.assertIn("parameter, system", t.say("/set wings"))
        self.assertIn("info, license", t.say("/show wings"))
        for topic, word in (("/?", "/bye"), ("/help set", "nowordwrap"), ("/? show", "modelfile"), ("/? shortcuts", "Ctrl-L")):
            self.assertIn(word, t.say(topic))
        for switch in ("verbose", "quiet", "history", "nohistory", "wordwrap", "nowordwrap", "think", "nothink"):
            self.assertNotIn("no /set", t.say("/set " + switch))
        self.assertIn("low", t.say("/set think low"))
        self.assertEqual(self.contents(t, "user"), [])

    def test_a_dumb_terminal(self):
        t = self.chat(env={"TERM": "dumb"})
        t.say("Good morrow")
        self.assertEqual(t.leave(), 0)
        self.assertNotIn(b"\x1b", t.raw)

    def test_context(self):
        t = self.chat("--verbose")
        self.assertIn("512", t.say("/set parameter num_ctx 1000"))
        t.say("/set parameter num_ctx 64")
        self.assertIn("64 tokens", t.say("/show info"))
        t.say("one two three")
        shown = "".join(t.say(f"This is the turn of number {i}, of some length") for i in range(3))
        self.assertIn("left out", shown)
        self.assertIn("is full: '/clear'", shown)
        self.assertEqual(len(self.contents(t, "user")), 4)
        self.assertIn("64", t.say("word " * 60))  # alone too long: told, and not part of the conversation
        self.assertEqual(len(self.contents(t, "user")), 4)

    def test_a_long_conversation_in_a_small_context(self):
        """Each try renders and tokenizes what is left, so one message after another would take minutes."""
        t = self.chat("-n", "1")

        def left_out(talk):
            t.say("/load " + self.write("long.json", json.dumps({"muster_chat": 1, "model": BARD, "messages": talk})))
            told = re.search(r"its first (\d+) messages", t.say("Good morrow"))
            self.assertEqual(len(self.saved(t)["messages"]), len(talk) + 2)
            return int(told[1]) if told else 0

        talk = [{"role": role, "content": "word " * (80 + i % 7)} for i in range(3000) for role in ("user", "assistant")]
        n = left_out(talk)
        self.assertGreater(n, 5900)
        self.assertEqual(left_out(talk[n:]), 0)
        self.assertEqual(left_out(talk[n - 2:]), 2)  # no fewer would have done

    def test_clear_save_load(self):
        a = self.chat()
        a.say("/set system Speak as a fool.")
        first = a.say("Good morrow")
        self.assertIn("Saved", a.say("/save talk"))
        path = os.path.join(a.home, "muster", "chats", "talk.json")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        second = a.say("Farewell")
        a.say("/clear")
        self.assertEqual(a.say("Good morrow"), first)
        b = self.chat(home=a.home)
        b.say("/set parameter temperature 0")
        self.assertIn("2 messages", b.say("/load talk"))
        self.assertEqual(b.say("Farewell"), second)
        self.assertIn("fool", b.say("/show system"))

    def test_load_a_model_or_nothing(self):
        t = self.chat()
        t.say("Good morrow")
        self.assertIn("none.json", t.say("/load /tmp/no/such/none.json"))
        t.say("/set parameter num_ctx 200")
        shown = t.say("/load no-such-model")
        self.assertIn("no-such-model", shown)
        self.assertNotIn("weights", shown)  # nothing is loaded again for a wrong name
        shown = t.say("/load " + self.write("broken.gguf", "GGUF"))
        self.assertIn("broken.gguf", shown)
        self.assertIn("weights", shown)
        self.assertIn("200 tokens", t.say("/show info"))
        self.assertEqual(len(self.contents(t, "user")), 1)
        bad = self.write("bad.json", '{"muster_chat": 1, "model": "x", "messages": [{"role": 1}]}')
        self.assertIn("message 1", t.say("/load " + bad))
        self.assertIn("line 1", t.say("/load " + self.write("worse.json", "{")))
        copy = os.path.join(self.tmp, "copy.gguf")
        shutil.copy(BARD, copy)
        self.assertIn("copy.gguf", t.say("/load " + copy))
        self.assertIn("start_header_id", t.say("/show template"))  # its own
        self.assertEqual(self.contents(t, "user"), [])
        self.assertIn("512 tokens", t.say("/show info"))  # and so are its context and what is said of it
        self.assertNotRegex(t.say("/show parameters"), r"num_ctx +\d")

    # ---- history ----

    def test_history(self):
        t = self.chat()
        t.say("Remember me")
        t.say("/set nohistory")
        t.say("Forget me")
        self.assertEqual(t.leave("\x04"), 0)
        path = os.path.join(t.home, "muster", "history")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with open(path, encoding="utf-8") as f:
            text = f.read()
        self.assertIn("Remember", text)
        self.assertNotIn("Forget", text)
        self.assertEqual(os.listdir(os.path.join(t.home, "muster")), ["history"])
        again = self.chat(home=t.home)
        again.say("\x1b[A\x1b[A")
        self.assertEqual(self.contents(again, "user"), ["Remember me"])

    # ---- thinking ----

    def test_history_of_a_paste(self):
        """Written once: a thousand lines that each wrote the file took 12 s."""
        t = self.chat()
        path = os.path.join(t.home, "muster", "history")
        t.say("first")
        t.wait_raw()
        t.type("\x1b[200~one\rtwo\r")
        t.expect(r"one\n\.\.\. two\n\.\.\. $")
        with open(path, encoding="utf-8") as f:
            self.assertNotIn("one", f.read())
        t.say("\x1b[201~")
        with open(path, encoding="utf-8") as f:
            self.assertEqual(f.read().split("\n")[1:], ["first", "one", "two", ""])

    def test_thinking(self):
        t = self.chat(template=self.thinks)
        t.say("Why?")
        m = self.saved(t)["messages"][1]
        self.assertTrue(m["thinking"])
        self.assertEqual(m["content"], "")
        self.assertIn(b"\x1b[2m", t.raw)
        t.say("/set nothink")
        self.assertNotIn("<think>", t.say("Why?"))
        m = self.saved(t)["messages"][3]
        self.assertNotIn("thinking", m)
        self.assertTrue(m["content"])
        hidden = self.chat("--hidethinking", template=self.thinks)
        self.assertEqual(hidden.say("Why?").strip(), "thinking…")
        once = self.run_once("Why?", "--template", self.thinks, "-n", "12", "--seed", "5")
        self.assertEqual(once.stdout, "\n")
        once = self.run_once("Why?", "--template", self.thinks, "-n", "12", "--seed", "5", "--think")
        self.assertIn(" ".join(self.saved(hidden)["messages"][1]["thinking"].split()), " ".join(once.stdout.split()))

    # ---- once ----

    def test_one_answer(self):
        how = ("--template", self.template, "-n", "12", "--seed", "5")
        a = self.run_once("Good morrow", *how)
        self.assertEqual(a.returncode, 0, a.stderr)
        self.assertEqual(self.run_once(*how, stdin="Good morrow").stdout, a.stdout)
        b = self.run_once("Good morrow", *how, "--system", "Speak as a fool.")
        self.assertNotEqual(a.stdout, b.stdout)
        full = self.run_once("Good morrow", "--template", self.template, "-c", "40", "--ignore-end")
        self.assertIn("[the context of 40 tokens is full, the answer ends here; --ctx N gives it more]", full.stderr)
        # What standard input holds comes first.
        c = self.run_once("morrow", *how, stdin="Good")
        self.assertEqual(c.stdout, a.stdout)
        # Without a template nothing is read beside the prompt.
        d = self.run_once("Good morrow", "--raw", "-n", "12", stdin="Good")
        self.assertEqual(d.stdout, self.run_once("Good morrow", "--raw", "-n", "12").stdout)
        for args, word in ((["--format", "yaml"], "yaml"), (["--template", self.template, "--server", "x:1"], "--server"),
                           (["--think=maybe"], "maybe"), (["--raw", "--template", self.template], "--raw")):
            e = self.run_once("a", *args)
            self.assertEqual(e.returncode, 2)
            self.assertIn(word, e.stderr)
        bad = self.write("bad.jinja", "{% for x in %}")
        e = self.run_once("a", "--template", bad)
        self.assertEqual(e.returncode, 1)
        self.assertIn("bad.jinja", e.stderr)

    def test_no_template(self):
        base = os.path.join(self.tmp, "base.gguf")
        harness.run("synth", "--layers", "2", "--d-model", "64", "--d-ff", "96", "--vocab", "600", "--ctx", "128", "--out", base)
        t = Terminal(self, base, "-n", "8", "-t", "2", "--quiet")
        self.assertIn("no chat template", t.expect(r">>> $"))
        said = t.say("abc")
        self.assertEqual(said, t.say("abc"))  # each line by itself, and greedy
        self.assertIn("no place for a system prompt", t.say("/set system x"))
        self.assertEqual(t.leave(), 0)
        told = subprocess.run([harness.MUSTER, "run", base, "abc", "--system", "x"], capture_output=True, text=True, timeout=60)
        self.assertEqual((told.returncode, told.stdout), (1, ""))
        self.assertIn("leave out --system", told.stderr)

    # ---- a model of a store ----

    def ollama(self, name, **layers):
        """A store of Ollama's with one model; returns the environment that points to it."""
        root = tempfile.mkdtemp(dir=self.tmp)
        os.makedirs(os.path.join(root, "blobs"))

        def blob(data):
            digest = hashlib.sha256(data).hexdigest()
            with open(os.path.join(root, "blobs", "sha256-" + digest), "wb") as f:
                f.write(data)
            return {"digest": "sha256:" + digest, "size": len(data)}

        with open(BARD, "rb") as f:
            listed = [{"mediaType": "application/vnd.ollama.image.model", **blob(f.read())}]
        listed += [{"mediaType": "application/vnd.ollama.image." + kind, **blob(text.encode())} for kind, text in layers.items()]
        folder = os.path.join(root, "manifests", "registry.ollama.ai", "library", name)
        os.makedirs(folder)
        with open(os.path.join(folder, "latest"), "w", encoding="utf-8") as f:
            json.dump({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                       "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **blob(b"{}")}, "layers": listed}, f)
        return {"OLLAMA_MODELS": root}

    def test_a_store_s_model(self):
        env = self.ollama("fool", system="Speak as a fool.", license="For fools.",
                          params=json.dumps({"temperature": 0, "num_predict": 9, "num_ctx": 200, "stop": ["xyz"], "mirostat": 1, "f16_kv": True,
                                             "repeat_penalty": 1.1, "repeat_last_n": -1, "min_p": 0.05, "typical_p": 0.9, "presence_penalty": 0.5,
                                             "frequency_penalty": 0.25}),
                          messages=json.dumps([{"role": "user", "content": "Hail!"}, {"role": "assistant", "content": "Well met."}]))
        t = Terminal(self, "fool", "-t", "2", env=env)
        told = t.expect(r">>> $")
        for name in ("mirostat", "f16_kv"):
            self.assertIn(f"'{name}' is left out: there is no parameter '{name}'", told)
        self.assertIn("Speak as a fool.", t.say("/show system"))
        self.assertIn("For fools.", t.say("/show license"))
        shown = t.say("/show parameters")
        for pattern in (r"temperature +0\n", r"num_predict +9", r'stop +"xyz"', r"repeat_penalty +1\.1", r"repeat_last_n +-1", r"min_p +0\.05",
                        r"typical_p +0\.9", r"presence_penalty +0\.5", r"frequency_penalty +0\.25"):
            self.assertRegex(shown, pattern)
        self.assertIn("200 tokens", t.say("/show info"))
        self.assertIn("MESSAGE user \"\"\"Hail!\"\"\"", t.say("/show modelfile"))
        said = t.say("Good morrow")
        talk = self.saved(t)["messages"]
        self.assertEqual([m["content"] for m in talk[:3]], ["Hail!", "Well met.", "Good morrow"])
        t.say("/clear")
        self.assertEqual(t.say("Good morrow"), said)  # greedy; and Hail! is there again
        t.say("/set system")
        self.assertIn("no system prompt", t.say("/show system"))
        once = subprocess.run([harness.MUSTER, "run", "fool", "Good morrow"], env={**os.environ, **env}, capture_output=True, text=True, timeout=60,
                              stdin=subprocess.DEVNULL)
        self.assertEqual(once.stdout.strip(), said.strip())

    # ---- a server ----

    def test_server(self):
        local = Terminal(self, BARD, "-n", "12", "--seed", "5")
        local.expect(r">>> $")
        want = [local.say("Good morrow"), local.say("Farewell")]
        server = harness.Server(split="1:1")
        try:
            for args in ([b"caf\xe9"], [b"coffee", b"--stop", b"caf\xe9"]):
                done = subprocess.run([harness.MUSTER, "run", "default", *args, "--raw", "-n", "4", "--server", server.address], capture_output=True,
                                      text=True, timeout=60, stdin=subprocess.DEVNULL)
                self.assertEqual((done.returncode, "not valid UTF-8" in done.stderr), (1, True), done.stderr)
            t = Terminal(self, "default", "--server", server.address, "-n", "12", "--seed", "5")
            t.expect(r">>> $")
            self.assertEqual([t.say("Good morrow"), t.say("Farewell")], want)
            self.assertEqual(self.saved(t)["messages"], self.saved(local)["messages"])
            self.assertIn("--ctx", t.say("/set parameter num_ctx 64"))
            self.assertIn(server.address, t.say("/show info"))
            t.say("/set parameter num_predict 400")
            t.wait_raw()
            t.type("Speak\r")
            t.expect("\n.{10,}")
            t.type("\x03")
            t.expect(">>> $", 20)
            self.assertEqual(t.leave(), 0)
            once = subprocess.run([harness.MUSTER, "run", "default", "Good morrow", "--server", server.address, "-n", "12", "--seed", "5"],
                                  capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
            self.assertEqual(once.stdout.strip(), want[0].strip())
        finally:
            server.stop()

    def test_server_with_a_template_of_its_own(self):
        local = self.chat(template=self.thinks)
        shown = local.say("Why?")
        server = harness.Server(split="1", args=("--template", self.thinks, "--ctx", "96"))
        try:
            t = Terminal(self, "default", "--server", server.address, "-n", "12", "--seed", "5")
            t.expect(r">>> $")
            self.assertEqual(t.say("Why?"), shown)  # the prompt has opened the thought
            self.assertEqual(self.saved(t)["messages"], self.saved(local)["messages"])
            self.assertIn("<think>", t.say("/show template"))
            self.assertIn("left out", "".join(t.say(f"This is the turn of number {i}, of some length") for i in range(5)))
            self.assertIn("96", t.say("word " * 90))
        finally:
            server.stop()


if __name__ == "__main__":
    unittest.main(verbosity=2)
