"""What other people's nodes send as results: numpy's arrays are read, and nothing that would run code or follow an address."""

import os
import pickle
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from meshnode import _allow  # noqa: E402

try:
    import numpy as np
except ImportError:
    np = None


class Reduced:
    """Pickles as a call with a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Temporary:
    """As many that clean up after themselves."""

    removed = []

    def __init__(self, path):
        self.path = path

    def __del__(self):
        Temporary.removed.append(self.path)


class Value:
    def __init__(self, x):
        self.x = x


def read(data):
    return _allow.Reader(data, {"Temporary": Temporary, "Value": Value}.get).load()


class Foreign(unittest.TestCase):
    def test_no_destructor_runs(self):
        for c, harmless in ((Temporary, False), (Value, True)):
            o = c("/etc/passwd")
            data = pickle.dumps(o, 4).replace(b"\x8c" + bytes([len(__name__)]) + __name__.encode(), b"\x8c\x08__main__")
            if __name__ != "__main__":
                self.assertIn(b"__main__", data)
            del o
            Temporary.removed.clear()
            if harmless:
                self.assertEqual(read(data).x, "/etc/passwd")
                continue
            with self.assertRaises(_allow.Refused):
                read(data)
            self.assertEqual(Temporary.removed, [])


@unittest.skipIf(np is None, "numpy is not here")
class Numpy(unittest.TestCase):
    def test_arrays(self):
        """Arrays and what they consist of, of each kind."""
        for a in (
            np.arange(10),
            np.zeros((3, 4), "f4"),
            np.asfortranarray(np.ones((2, 3))),
            np.arange(4, dtype=">i4"),
            np.array(5),
            np.array(["a", "bc"]),
            np.array([b"x"]),
            np.array([1, "x", None], dtype=object),
            np.array(["2020-01-01"], "M8[D]"),
            np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
            np.zeros(3, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
            np.zeros(3, dtype=[("x", "f4", (2, 2))]),
            np.zeros(2, dtype=[(("title", "a"), "i4")]),
            np.float64(1.5),
            np.bool_(True),
            np.datetime64("2020-01-01"),
            np.timedelta64(3, "s"),
            np.dtype([("a", "i4", (2,))]),
            np.dtype("V7"),
        ):
            for protocol in (2, 4, 5):
                with self.subTest(a=a, protocol=protocol):
                    b = read(pickle.dumps([a, a], protocol))[1]
                    self.assertIs(type(b), type(a))
                    same = pickle.loads(pickle.dumps(a, protocol))  # numpy swaps bytes as it reads
                    self.assertEqual(getattr(b, "dtype", None), getattr(same, "dtype", None))
                    self.assertTrue(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b)

    def test_no_address_is_followed(self):
        """Types that hide an object among plain bytes, in the order in which it would go unseen, and lists that are too short."""
        address = (0x4141414141414141).to_bytes(8, "little")
        make = np.zeros(1).__reduce__()[0]
        bare = (np.ndarray, (0,), b"b")

        def hidden(flags):
            return (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, flags)

        plain = Reduced(np.dtype, ("V8", False, True))
        for what in (
            Reduced(make, bare, (1, (1,), Reduced(np.dtype, ("V8", False, True), hidden(0)), False, address)),
            Reduced(make, bare, (1, (1,), Reduced(np.dtype, ("V8", False, True), hidden(63)), False, address)),
            Reduced(make, bare, (1, (1 << 20,), np.dtype("O"), False, [None])),
            Reduced(make, bare, (1, (2,), np.dtype([("a", "O")]), False, [None])),
            Reduced(make, bare, (1, (-1, -1), np.dtype("O"), False, [None])),
        ):
            with self.assertRaises((_allow.Refused, pickle.UnpicklingError)):
                read(pickle.dumps(what, 4))
        # The type gets its state when an array has it already: the array's stays as it was.
        head = pickle.dumps(Reduced(make, bare, (1, (1,), plain, False, address)), 4)
        array = read(head)
        self.assertFalse(array.dtype.hasobject)
        late = head[:-1] + b"0"  # the array is left in the memo
        at = [k for k, v in self.memo(head).items() if isinstance(v, np.dtype)]
        state = pickle.dumps(hidden(0), 4)
        late += b"j" + at[0].to_bytes(4, "little") + state[2 + 9 : -1] + b"b0"
        arrays = [k for k, v in self.memo(head).items() if isinstance(v, np.ndarray)]
        late += b"j" + arrays[0].to_bytes(4, "little") + b"."
        late = late[:2] + late[2 + 9 :]  # without the length of the first frame
        try:
            array = read(late)
        except (_allow.Refused, pickle.UnpicklingError):
            return
        self.assertIsNone(array.dtype.fields)
        self.assertEqual(bytes(array.tobytes()), address)

    @staticmethod
    def memo(data):
        reader = _allow.Reader(data, lambda name: None)
        reader.load()
        return reader.memo


if __name__ == "__main__":
    unittest.main()
