"""The interpreters that there are, and a bare worker process for each: bundles and packets of calls go in, outputs come out."""

import glob
import os
import shutil
import struct
import subprocess
import sys
import threading

PYTHON = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def interpreters():
    """By version ("3.8"), the paths of the interpreters found: in PATH, and those of pyenv. This one is among them."""
    found = {"%d.%d" % sys.version_info[:2]: sys.executable}
    paths = []
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    paths += sorted(glob.glob(os.path.join(root, "versions", "3.*", "bin", "python")))
    for minor in range(6, 16):
        path = shutil.which("python3.%d" % minor)
        if path:
            paths.append(path)
    for path in paths:
        try:
            out = subprocess.run(
                [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            continue
        version = out.stdout.decode().strip()
        if out.returncode == 0 and version not in found and tuple(map(int, version.split("."))) >= (3, 6):
            found[version] = path
    return dict(sorted(found.items(), key=lambda kv: tuple(map(int, kv[0].split(".")))))


_WORKER = """
import importlib.util, io, json, os, struct, sys
sys.path[:] = [p for p in sys.path if p not in ("", %(here)r)] + [%(root)r]
spec = importlib.util.spec_from_file_location("meshnode.worker.load", %(path)r)
load = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = load
spec.loader.exec_module(load)
given, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
logged = [0]
class Log(io.StringIO):
    def write(self, text):
        logged[0] += len(text.encode())
        return len(text)
sys.stdout = sys.stderr = Log()
programs = {}
def answer(head, data=b""):
    h = json.dumps(head).encode()
    answers.write(struct.pack("<II", len(h), len(data)) + h + data)
    answers.flush()
while True:
    head = given.read(8)
    if len(head) < 8:
        break
    n, m = struct.unpack("<II", head)
    ask, data = json.loads(given.read(n).decode()), given.read(m)
    if ask["do"] == "load":
        try:
            programs[ask["as"]] = load.load(data)
            answer({})
        except load.Unable as e:
            answer({"unable": str(e)})
        except load.Invalid as e:
            answer({"invalid": str(e)})
    elif ask["do"] == "close":
        programs.pop(ask["as"]).close()
        answer({})
    else:
        logged[0] = 0
        try:
            failed, out, error = programs[ask["as"]].run(data, ask["files"], lambda: logged[0])
            answer({"failed": failed, "error": error}, b"".join(out) if type(out) is list else bytes(out))
        except BaseException as e:
            answer({"raised": type(e).__name__})
"""


class Worker:
    """A worker process of one interpreter. It is not the node's (that one has limits and frames), but it loads and runs the same way."""

    def __init__(self, path):
        worker = os.path.join(PYTHON, "meshnode", "worker")
        code = _WORKER % {"here": worker, "root": PYTHON, "path": os.path.join(worker, "load.py")}
        self.process = subprocess.Popen(
            [path, "-E", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=dict(os.environ, PYTHONHASHSEED="random")
        )
        self.timer = threading.Timer(120, self.process.kill)
        self.timer.start()
        self.count = 0

    def ask(self, head, data=b""):
        import json

        h = json.dumps(head).encode()
        self.process.stdin.write(struct.pack("<II", len(h), len(data)) + h + data)
        self.process.stdin.flush()
        n, m = struct.unpack("<II", self.process.stdout.read(8))
        return json.loads(self.process.stdout.read(n).decode()), self.process.stdout.read(m)

    def load(self, data):
        """The number of a loaded program; an AssertionError tells why there is none."""
        answer, number = self.try_load(data)
        if answer:
            raise AssertionError(answer)
        return number

    def try_load(self, data):
        self.count += 1
        answer, _ = self.ask({"do": "load", "as": self.count}, data)
        return answer, self.count

    def run(self, number, data, files=()):
        """(failed, output, error)"""
        head, out = self.ask({"do": "run", "as": number, "files": list(files)}, data)
        if "raised" in head:
            raise AssertionError(head)
        return head["failed"], out, head["error"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.timer.cancel()
