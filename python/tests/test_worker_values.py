"""What a worker process keeps of a call's arguments: nothing."""

import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
WORKER = os.path.join(os.path.dirname(HERE), "meshnode", "worker")

PROGRAM = """
import collections, gc, pickle, sys, types, weakref
sys.path.insert(0, sys.argv[1])
import load

def _stored(i):
    raise AssertionError("the worker's own is to take its place")

values = types.ModuleType("meshnode._values")
_stored.__module__, values._stored = values.__name__, _stored
sys.modules["meshnode"], sys.modules[values.__name__] = types.ModuleType("meshnode"), values

class Reference:
    def __reduce__(self):
        return _stored, (0,)

data = pickle.dumps(((Reference(), 1), {}), 4)
gc.disable()
args, kwargs = load._Arguments(None, data, [sys.argv[2]]).read(())
assert list(args[0]) == ["a"] and args[1] == 1, args
there = weakref.ref(args[0])
del args
assert there() is None, "a stored object waits for the collector once its call has ended"
"""


class Values(unittest.TestCase):
    def test_stored_objects_go_with_their_call(self):
        import collections

        with tempfile.TemporaryDirectory() as folder:
            blob, program = os.path.join(folder, "blob"), os.path.join(folder, "program.py")
            with open(blob, "wb") as f:
                pickle.dump(collections.OrderedDict(a=1), f, 4)
            with open(program, "w") as f:
                f.write(textwrap.dedent(PROGRAM))
            out = subprocess.run(
                [sys.executable, program, WORKER, blob], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
            )
            self.assertEqual(out.returncode, 0, out.stdout.decode())


if __name__ == "__main__":
    unittest.main()
