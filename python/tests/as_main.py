"""Programs of a few lines, as if each were run as a script in this process, and their functions in a worker process."""

import linecache
import os
import shutil
import sys
import tempfile
import textwrap
import types

PYTHON = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for path in (PYTHON, os.path.dirname(os.path.abspath(__file__))):
    if path not in sys.path:
        sys.path.insert(0, path)

from meshnode._ship import ship
from meshnode._values import Decoder, Encoder, packet
from versions import Worker


class Script:
    """Text that is __main__ until close(). Its names are attributes: script.f."""

    def __init__(self, text, name="script.py", file=True):
        self.folder = tempfile.mkdtemp()
        self.path = os.path.join(self.folder, name) if file else name
        self.before = sys.modules["__main__"]
        self.module = sys.modules["__main__"] = types.ModuleType("__main__")
        self.module.__file__ = self.path
        self.on_disk = file
        self.modules = set(sys.modules)
        sys.path.insert(0, self.folder)
        self.run(text)

    def write(self, text, name=None):
        """Puts a file there: the script itself, or a module beside it."""
        path = os.path.join(self.folder, name) if name else self.path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(textwrap.dedent(text))
        linecache.checkcache(path)

    def run(self, text):
        """Runs more text in it. Of a script the file is then this text."""
        text = textwrap.dedent(text)
        if self.on_disk:
            self.write(text)
        exec(compile(text, self.path, "exec"), self.module.__dict__)

    def cell(self, text, name):
        """Runs a cell of a notebook."""
        text = textwrap.dedent(text)
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        exec(compile(text, name, "exec"), self.module.__dict__)

    def __getattr__(self, name):
        return getattr(self.module, name)

    def close(self):
        sys.modules["__main__"] = self.before
        sys.path.remove(self.folder)
        for name in set(sys.modules) - self.modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(self.folder):
                del sys.modules[name]
        shutil.rmtree(self.folder)


class Blobs:
    """Files in the place of blobs."""

    def __init__(self):
        self.folder = tempfile.mkdtemp()
        self.paths = {}
        self.puts = 0

    def put(self, data):
        import hashlib

        self.puts += 1
        ident = hashlib.sha256(data).digest()
        path = self.paths[ident] = os.path.join(self.folder, ident.hex())
        with open(path, "wb") as f:
            f.write(data)
        return ident

    def close(self):
        shutil.rmtree(self.folder)


class Caller:
    """Calls functions in a worker process."""

    def __init__(self, path=sys.executable):
        self.worker = Worker(path)
        self.blobs = Blobs()
        self.loaded = {}
        self.log = b""

    def program(self, bundle):
        if bundle.data not in self.loaded:
            self.loaded[bundle.data] = self.worker.load(bundle.data)
        return self.loaded[bundle.data]

    def __call__(self, f, *args, **kwargs):
        """What f(*args, **kwargs) returns there; raises what it raises."""
        bundle = ship(f)
        return self.call(bundle, Encoder(bundle, self.blobs.put), args, kwargs)

    def call(self, bundle, encoder, args, kwargs=None, foreign=False, node="there"):
        payload, ids = encoder.call(args, kwargs or {})
        paths = [self.blobs.paths[i] for i in ids]
        failed, out, error = self.worker.run(self.program(bundle), packet([payload]), paths)
        [(value, raised, log)] = Decoder(bundle).results(out, b"", node, foreign)
        assert failed == (raised is not None and error != ""), (failed, raised, error)
        if raised is not None:
            raise raised
        return value

    def close(self):
        self.worker.close()
        self.blobs.close()
