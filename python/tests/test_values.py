"""Arguments and results: what goes apart, what comes back, and what a result from somebody else's node may be."""

import collections
import copyreg
import datetime
import decimal
import enum
import fractions
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from as_main import PYTHON, Blobs, Caller, Script, Worker
from versions import interpreters

from meshnode._allow import Refused
from meshnode._errors import RemoteTraceback
from meshnode import _ship
from meshnode._ship import ShipError, ship
from meshnode._values import LARGE, Decoder, Encoder, Ref, RemoteError, packet, store

FOUND = interpreters()
BIG = os.urandom(200000)

try:
    import numpy
except ImportError:
    numpy = None


class Remote(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.caller = Caller()

    @classmethod
    def tearDownClass(cls):
        cls.caller.close()

    def script(self, text, **options):
        s = Script(text, **options)
        self.addCleanup(s.close)
        return s

    def encoder(self, f):
        bundle = ship(f)
        return bundle, Encoder(bundle, self.caller.blobs.put)


class Arguments(Remote):
    def test_plain_ones_are_plain_pickles(self):
        bundle, encoder = self.encoder(self.script("def f(*a, **k): return a, k").f)
        for args, kwargs in (((), {}), ((1, "a", None, 1.5, True, b"x", [1, 2], {"a": 1}, {1}), {}), ((1,), {"k": (2,)})):
            payload, blobs = encoder.call(args, kwargs)
            self.assertEqual(pickle.loads(payload), (args, kwargs))
            self.assertEqual(payload[1], 4)
            self.assertEqual(blobs, ())

    def test_large_bytes_go_apart(self):
        s = self.script("""
            def f(*a, **k):
                return [type(x).__name__ for x in a], [bytes(x) for x in a], sorted(k)
            class Box:
                def __init__(self, x): self.x = x
            def unbox(b): return b["a"][0].x
            def change(x):
                x[:3] = b"abc"
                return bytes(x[:4])
        """)
        bundle, encoder = self.encoder(s.f)
        payload, blobs = encoder.call((BIG, bytearray(BIG), b"small"), {"k": BIG})
        self.assertLess(len(payload), 1000)
        self.assertEqual(len(blobs), 2)  # bytes, and the bytearray; the same bytes once
        kinds, values, names = self.caller.call(bundle, encoder, (BIG, bytearray(BIG), b"small"), {"k": BIG})
        self.assertEqual(kinds, ["bytes", "bytearray", "bytes"])
        self.assertEqual(values, [BIG, BIG, b"small"])
        self.assertEqual(names, ["k"])
        bundle, encoder = self.encoder(s.unbox)
        value = {"a": [s.Box(BIG)]}
        self.assertEqual(len(encoder.call((value,), {})[1]), 1)
        self.assertEqual(self.caller.call(bundle, encoder, (value,)), BIG)
        mine = bytearray(BIG)
        self.assertEqual(self.caller(s.change, mine), b"abc" + BIG[3:4])
        self.assertEqual(self.caller(s.change, mine), b"abc" + BIG[3:4])
        self.assertEqual(bytes(mine), BIG)

    def test_a_large_pickle_is_a_blob(self):
        bundle, encoder = self.encoder(self.script("def f(x): return sum(x), len(x)").f)
        value = list(range(300000))
        payload, blobs = encoder.call((value,), {})
        self.assertLess(len(payload), 1000)
        self.assertEqual(len(blobs), 1)
        self.assertEqual(encoder.call((value,), {}), (payload, blobs))
        self.assertEqual(self.caller.call(bundle, encoder, (value,)), (sum(value), len(value)))

    def test_more_large_ones_than_a_task_may_name(self):
        bundle, encoder = self.encoder(self.script("def f(x): return [len(b) for b in x]").f)
        value = [os.urandom(LARGE + i) for i in range(70)]
        payload, blobs = encoder.call((value,), {})
        self.assertLessEqual(len(blobs), 64)
        self.assertEqual(self.caller.call(bundle, encoder, (value,)), [len(b) for b in value])

    def test_buffers_of_other_types(self):
        s = self.script("""
            import pickle
            class Vector:
                def __init__(self, data): self.data = data
                def __reduce_ex__(self, protocol):
                    if protocol >= 5:
                        return Vector, (pickle.PickleBuffer(self.data),)
                    return Vector, (bytes(self.data),)
            def f(v, w):
                v.data[:2] = b"zz"
                return bytes(v.data), len(w.data)
        """)
        bundle, encoder = self.encoder(s.f)
        for size, count in ((200000, 1), (100, 0)):
            data = bytearray(os.urandom(size))
            before = bytes(data)
            payload, blobs = encoder.call((s.Vector(data), s.Vector(bytearray(b"few"))), {})
            self.assertEqual(len(blobs), count)
            if count:
                self.assertLess(len(payload), 5000)
                got = self.caller.call(bundle, encoder, (s.Vector(data), s.Vector(bytearray(b"few"))))
                self.assertEqual(got, (b"zz" + before[2:], 3))
                self.assertEqual(bytes(data), before)
                with open(self.caller.blobs.paths[blobs[0]], "rb") as f:
                    self.assertEqual(f.read(), before)

    def test_protocol_5_on_an_old_worker(self):
        old = next((p for v, p in FOUND.items() if v in ("3.6", "3.7")), None)
        if old is None:
            self.skipTest("no interpreter before 3.8")
        s = self.script("""
            class Vector:
                def __init__(self, data, kind): self.data, self.kind = bytes(data), kind
                def __reduce_ex__(self, protocol):
                    import pickle
                    return Vector, (pickle.PickleBuffer(self.data) if protocol >= 5 else self.data, bytearray(b"k"))
            def f(v, more): return v.data, v.kind, more
        """)
        caller = Caller(old)
        self.addCleanup(caller.close)
        bundle = ship(s.f)
        encoder = Encoder(bundle, caller.blobs.put)
        self.assertEqual(len(encoder.call((s.Vector(BIG, b""), BIG), {})[1]), 2)
        self.assertEqual(caller.call(bundle, encoder, (s.Vector(BIG, b""), BIG)), (BIG, bytearray(b"k"), BIG))

    def test_arrays(self):
        if numpy is None:
            self.skipTest("numpy is not installed for this interpreter")
        s = self.script("""
            def f(a, b):
                a[0] = 7
                return float(a.sum()), a.flags.writeable, b.dtype.str, b.shape, a[:3]
            def none(): import numpy; return numpy.zeros(3)
        """)
        bundle, encoder = self.encoder(s.f)
        a, b = numpy.arange(100000.0), numpy.ones((2, 3), "i4")
        payload, blobs = encoder.call((a, b), {})
        self.assertEqual(len(blobs), 1)
        for _ in range(2):
            total, writable, kind, shape, first = self.caller.call(bundle, encoder, (a, b))
            self.assertEqual((total, writable, kind, shape), (a.sum() + 7, True, "<i4", (2, 3)))
            self.assertEqual(first.tolist(), [7, 1, 2])
        for odd in (a[::2], numpy.asfortranarray(numpy.ones((300, 300))), numpy.array([None, "x"], object), numpy.float64(2)):
            got = self.caller(self.script("def f(x): return x").f, odd)
            self.assertTrue((got == odd).all())

    def test_stored_objects(self):
        s = self.script("""
            class Model:
                def __init__(self, words, data): self.words, self.data = words, data
                def __call__(self, i): return self.words[i], len(self.data), LIMIT
            LIMIT = 3
            def f(model, i): return model(i), isinstance(model, Model)
            def g(model, i): return model(i)
            def h(a, b): return a is b, len(a.words)
        """)
        parts, needs = store(s.Model(["a", "b"], bytearray(BIG)))
        data = b"".join(bytes(p) for p in parts)
        ref = Ref(self.caller.blobs.put(data), len(data), needs)
        for f, want in ((s.f, (("b", len(BIG), 3), True)), (s.g, ("b", len(BIG), 3))):
            bundle, encoder = self.encoder(f)
            payload, blobs = encoder.call((ref, 1), {})
            self.assertEqual(blobs, (ref.id,))
            for _ in range(2):
                self.assertEqual(self.caller.call(bundle, encoder, (ref, 1)), want)
        self.assertEqual(self.encoder(s.h)[1].call(([ref, ref], {"a": ref}), {})[1], (ref.id,))
        self.assertEqual(self.caller(s.h, ref, ref), (True, 2))
        with self.assertRaisesRegex(ShipError, "cannot be pickled.*lock"):
            import threading

            store({"a": threading.Lock()})
        with self.assertRaisesRegex(ShipError, "is not found by that name"):
            store(lambda: 1)
        with self.assertRaises(TypeError):
            pickle.dumps(ref)

    def test_stored_arrays_are_mapped(self):
        if numpy is None:
            self.skipTest("numpy is not installed for this interpreter")
        s = self.script("""
            def f(a):
                import mmap
                base = a["x"]
                while getattr(base, "base", None) is not None: base = base.base
                while isinstance(base, memoryview): base = base.obj
                a["x"][0] = 5
                return type(base).__name__, float(a["x"].sum())
        """)
        array = numpy.ones(100000)
        parts, needs = store({"x": array})
        self.assertEqual(len(parts), 3)  # head and pickle, padding, the array itself
        self.assertTrue(numpy.shares_memory(numpy.frombuffer(parts[2]), array))
        data = b"".join(bytes(p) for p in parts)
        ref = Ref(self.caller.blobs.put(data), len(data), needs)
        for _ in range(2):
            self.assertEqual(self.caller(s.f, ref), ("mmap", 100004.0))

    def test_definitions_come_along(self):
        s = self.script("""
            LIMIT = 1
            def helper(x): return x + LIMIT
            class A:
                def __init__(self, x): self.x = x
                def value(self): return helper(self.x)
            class B(A):
                def value(self): return super().value() * 2
            def call(f, *args): return f(*args)
            def value(o): return o.value(), type(o).__mro__[1].__name__, o
            def kinds(a, f): return isinstance(a, f()), type(a) is f()
            def get(): return A
        """)
        self.assertEqual(self.caller(s.call, s.helper, 3), 4)
        bundle, encoder = self.encoder(s.call)
        for i in range(80):  # more than are kept
            self.assertEqual(self.caller.call(bundle, encoder, (lambda x, i=i: x * i, 3)), 3 * i)
        bundle, encoder = self.encoder(s.value)
        for o in (s.A(1), s.B(1), s.A(2)):
            value, base, back = self.caller.call(bundle, encoder, (o,))
            self.assertEqual((value, base), (o.value(), type(o).__mro__[1].__name__))
            self.assertIs(type(back), type(o))
        self.assertEqual(self.caller(s.kinds, s.A(1), s.get), (True, True))
        s.module.LIMIT = 10  # noticed though it only came with an argument
        self.assertEqual(self.caller.call(bundle, encoder, (s.A(1),))[0], 11)
        self.assertEqual(self.caller(s.call, s.helper, 3), 13)

    def test_the_bundle_grows_with_what_arguments_need(self):
        s = self.script("""
            class A:
                def __init__(self, x): self.x = x
                def value(self): return self.x + LIMIT
            LIMIT = 1
            def f(o): return o.value(), o
            def make(n):
                class Local:
                    def value(self): return n
                return Local()
        """)
        bundle, encoder = self.encoder(s.f)
        self.assertFalse(bundle.lacks())
        before, _ = encoder.call((s.A(1),), {})
        self.assertTrue(bundle.lacks())
        more = ship(s.f)
        self.assertIs(more, bundle.grown())
        self.assertIs(more, ship(s.f))
        payload, _ = Encoder(more, None).call((s.A(1),), {})
        self.assertFalse(more.lacks())
        self.assertLess(len(payload), 60)
        self.assertGreater(len(before), 200)
        self.assertEqual(self.caller.call(more, Encoder(more, None), (s.A(1),))[0], 2)
        s.module.LIMIT = 2
        self.assertEqual(self.caller(s.f, s.A(1))[0], 3)
        for i in range(30):  # not for ever, and still right
            self.assertEqual(self.caller(s.f, s.make(i))[0], i)
        self.assertLess(len(ship(s.f).data), 5000)

    def test_a_module_that_arguments_need(self):
        s = self.script("def f(x): return x\n")
        folder = os.path.join(s.folder, "site-packages")
        s.write("class Thing:\n    pass\n", "site-packages/installed_thing.py")
        sys.path.insert(0, folder)
        self.addCleanup(sys.path.remove, folder)
        import installed_thing

        self.addCleanup(sys.modules.pop, "installed_thing")
        bundle, encoder = self.encoder(s.f)
        encoder.call((installed_thing.Thing(),), {})
        self.assertTrue(bundle.lacks())
        answer, _ = self.caller.worker.try_load(ship(s.f).data)
        self.assertEqual(answer, {"unable": "needs the Python module installed_thing, which is not here"})
        bundle, encoder = self.encoder(s.f)
        encoder.call((decimal.Decimal(1), collections.OrderedDict()), {})
        self.assertFalse(bundle.lacks())

    def test_functions_that_are_alike_share_a_bundle(self):
        s = self.script("""
            import sys
            LIMIT = 3
            def make(i):
                def f(x, **k):
                    if x == "raise": raise KeyError(i)
                    return x + i + LIMIT, k
                return f
            fs = [make(i) for i in range(5)]
            def own(): return own
        """)
        bundle = ship(_ship.Caller("make.<locals>.f"))
        self.assertEqual((bundle.name, bundle.runtime), ("make.<locals>.f", "python"))
        self.assertEqual(bundle.data, ship(_ship.Caller("make.<locals>.f")).data)
        encoder = Encoder(bundle, None)
        for i, f in enumerate(s.fs):
            self.assertEqual(self.caller.call(bundle, encoder, (f, 1), {"f": 2, "args": 3}), (4 + i, {"f": 2, "args": 3}))
        with self.assertRaises(KeyError) as caught:
            self.caller.call(bundle, encoder, (s.fs[4], "raise"))
        self.assertNotIn("load.py", str(caught.exception.__cause__))
        self.assertIs(self.caller.call(bundle, encoder, (s.own,)), s.own)
        self.assertFalse(bundle.lacks())
        exec("byte_code = lambda x: x", s.module.__dict__)
        encoder.call((s.byte_code, 1), {})
        self.assertTrue(bundle.lacks())
        more = bundle.grown()
        self.assertEqual(more.runtime, "python%d.%d" % sys.version_info[:2])
        self.assertEqual(self.caller.call(more, Encoder(more, None), (s.byte_code, 5)), 5)
        self.assertFalse(more.lacks())

    def test_callables_with_state(self):
        s = self.script("""
            import functools
            class Adds:
                def __init__(self, n): self.n = n
                def __call__(self, x): return self.n + x
                def method(self, x): return self.n * x
            adds = Adds(1)
            parts = [1]
            def f(parts, x): return len(parts) + x
            partial = functools.partial(f, parts)
        """)
        self.assertEqual((self.caller(s.adds, 1), self.caller(s.adds.method, 3), self.caller(s.partial, 1)), (2, 3, 2))
        self.assertIs(ship(s.adds), ship(s.adds))
        s.adds.n = 5
        s.parts.append(2)
        self.assertEqual((self.caller(s.adds, 1), self.caller(s.adds.method, 3), self.caller(s.partial, 1)), (6, 15, 3))
        s.adds.n = list(range(5000))  # too large for a look at each time
        with self.assertRaises(TypeError):
            self.caller(s.adds, 1)
        s.adds.n = 7
        self.assertEqual(self.caller(s.adds, 1), 8)

    def test_a_class_that_was_redefined(self):
        s = self.script("""
            class A:
                v = 1
            old = A()
            def f(o): return o.v, o
            def g(): return A.v
        """)
        bundle, encoder = self.encoder(s.f)
        first, _ = self.caller.call(bundle, encoder, (s.old,))
        s.run("class A:\n    v = 2\n")
        self.assertEqual(first, 1)
        value, back = self.caller.call(bundle, encoder, (s.old,))
        self.assertEqual(value, 1)
        value, _ = self.caller.call(bundle, encoder, ([s.A()][0],))
        self.assertEqual(value, 2)

    def test_a_changed_argument_is_seen(self):
        s = self.script("def f(x): return x\n")
        value = [1]
        bundle, encoder = self.encoder(s.f)
        self.assertEqual(self.caller.call(bundle, encoder, (value,)), [1])
        value.append(2)
        self.assertEqual(self.caller.call(bundle, encoder, (value,)), [1, 2])


class Results(Remote):
    def test_results_that_cannot_be_sent(self):
        s = self.script("""
            import threading
            def lock(): return [threading.Lock()]
            def generator(): return (i for i in "a")
            def closure(): return lambda: 1
            def local():
                class C: pass
                return C()
            def fine(): return 1
        """)
        for f, kind in ((s.lock, "list"), (s.generator, "generator"), (s.closure, "function"), (s.local, "local.<locals>.C")):
            with self.assertRaisesRegex(TypeError, "the result cannot be sent back: it is of type " + kind):
                self.caller(f)
        self.assertEqual(self.caller(s.fine), 1)

    def test_exceptions(self):
        s = self.script("""
            import threading, sys
            class Plain(Exception): pass
            class Odd(Exception):
                def __init__(self, a, b):
                    super().__init__("%s and %s" % (a, b))
                    self.a = a
            class Holds(Exception):
                def __init__(self, lock): self.lock = lock
            class Says(Exception):
                def __str__(self): raise ValueError("no words")
            class Slots(BaseException):
                __slots__ = ()
            def f(what):
                if what == "value": raise ValueError("x", 1)
                if what == "plain": raise Plain("own")
                if what == "odd": raise Odd(1, 2)
                if what == "holds": raise Holds(threading.Lock())
                if what == "says": raise Says()
                if what == "slots": raise Slots("s")
                if what == "exit": sys.exit(3)
                if what == "interrupt": raise KeyboardInterrupt
                if what == "generator": raise GeneratorExit
                if what == "stop": raise StopIteration(4)
                if what == "chained":
                    try: [][1]
                    except IndexError as e: raise KeyError("k") from e
                if what == "deep": f("deep")
        """)
        got = {}
        for what in ("value", "plain", "odd", "holds", "says", "slots", "exit", "interrupt", "generator", "stop", "chained", "deep"):
            with self.assertRaises(BaseException) as caught:
                self.caller(s.f, what)
            got[what] = e = caught.exception
            self.assertIsInstance(e.__cause__, RemoteTraceback, what)
            self.assertIn('File "script.py"', str(e.__cause__))
            self.assertIn("on node there", str(e.__cause__))
            self.assertEqual(e.node, "there")
        self.assertEqual((type(got["value"]), got["value"].args), (ValueError, ("x", 1)))
        self.assertEqual((type(got["plain"]), got["plain"].args), (s.Plain, ("own",)))
        self.assertEqual((type(got["odd"]), str(got["odd"])), (RemoteError, "Odd: 1 and 2"))  # its __init__ wants two
        self.assertEqual(type(got["holds"]), RemoteError)
        self.assertEqual(type(got["says"]), s.Says)
        self.assertEqual(type(got["slots"]), s.Slots)
        self.assertEqual((type(got["exit"]), got["exit"].code), (SystemExit, 3))
        self.assertEqual(type(got["interrupt"]), KeyboardInterrupt)
        self.assertEqual(type(got["generator"]), GeneratorExit)
        self.assertEqual((type(got["stop"]), got["stop"].value), (StopIteration, 4))
        self.assertEqual(type(got["chained"]), KeyError)
        self.assertIn("IndexError", str(got["chained"].__cause__))
        self.assertIn("direct cause", str(got["chained"].__cause__))
        self.assertEqual(type(got["deep"]), RecursionError)
        pickle.loads(pickle.dumps(got["value"]))

    def test_one_of_a_packet_fails(self):
        s = self.script("def f(x):\n    print('at', x)\n    return 10 // x\n")
        bundle, encoder = self.encoder(s.f)
        data = packet([encoder.call((x,), {})[0] for x in (1, 0, 5)])
        failed, out, error = self.caller.worker.run(self.caller.program(bundle), data)
        self.assertEqual((failed, error), (True, "ZeroDivisionError: integer division or modulo by zero"))
        got = list(Decoder(bundle).results(out, b"at 1\nat 0\nat 5\n"))
        self.assertEqual([(v, type(e), log) for v, e, log in got], [
            (10, type(None), b"at 1\n"), (None, ZeroDivisionError, b"at 0\n"), (2, type(None), b"at 5\n"),
        ])  # fmt: skip

    def test_arguments_that_cannot_be_read(self):
        s = self.script("def f(x): return x\n")
        bundle, encoder = self.encoder(s.f)
        for payload in (b"", b"x", pickle.dumps(5), pickle.dumps((1,)), pickle.dumps((b"", {"defs": (b"{}",)})), pickle.dumps((b"", {}))):
            failed, out, error = self.caller.worker.run(self.caller.program(bundle), packet([payload, encoder.call((4,), {})[0]]))
            (_, raised, _), (value, none, _) = Decoder(bundle).results(out)
            self.assertIsInstance(raised, Exception)
            self.assertEqual((value, none), (4, None))
        for data in (b"C", b"C\1\0\0\0", b"C\1\0\0\0\5\0\0\0abc", b"C\xff\xff\xff\xff", b"X"):
            failed, out, error = self.caller.worker.run(self.caller.program(bundle), data)
            self.assertTrue(failed)
            self.assertTrue(error)
        self.assertEqual(self.caller(s.f, 1), 1)

    def test_damaged_outputs(self):
        s = self.script("def f(x): return x\n")
        bundle, encoder = self.encoder(s.f)
        failed, out, error = self.caller.worker.run(self.caller.program(bundle), packet([encoder.call(("abc",), {})[0]] * 3))
        for n in range(len(out)):
            with self.assertRaises(ValueError):
                list(Decoder(bundle).results(out[:n]))
        with self.assertRaises(ValueError):
            list(Decoder(bundle).results(out[:4] + b"\7" + out[5:]))
        whole = struct.pack("<I", 1) + struct.pack("<BII", 0, 3, 0) + b"abc"
        ((value, error, _),) = Decoder(bundle).results(whole)
        self.assertIsInstance(error, pickle.UnpicklingError)

    def test_definitions_as_results(self):
        s = self.script("""
            def g(x): return x
            class A:
                def m(self): return self
            def f(): return g, A, A().m, [len, A]
            h = lambda: h
            def make():
                class Local:
                    def __init__(self): self.x = 5
                return Local
            Local = make()
            def local(): return Local(), Local
        """)
        g, a, m, more = self.caller(s.f)
        self.assertIs(g, s.g)
        self.assertIs(a, s.A)
        self.assertIs(type(m.__self__), s.A)
        self.assertEqual(more, [len, s.A])
        self.assertIs(self.caller(s.h), s.h)
        one, c = self.caller(s.local)
        self.assertIs(c, s.Local)
        self.assertEqual((type(one), one.x), (s.Local, 5))


class Evil:
    """Pickles as a call of f with args."""

    def __init__(self, f, *args, state=None, items=None, pairs=None):
        self.how = f, args, state, items, pairs

    def __reduce__(self):
        f, args, state, items, pairs = self.how
        return f, args, state, iter(items) if items else None, iter(pairs) if pairs else None


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Foreign(Remote):
    """Results of a node that belongs to somebody else."""

    def setUp(self):
        self.s = self.script("""
            import enum, typing, collections, dataclasses
            ran = []
            class Safe:
                def __init__(self, x=None): ran.append("init"); self.x = x
                def __eq__(self, o): return type(o) is Safe and o.x == self.x
                __hash__ = None
            class News:
                def __new__(cls, *args): ran.append("new"); return super().__new__(cls)
            class Slots:
                __slots__ = ("a", "b")
                @property
                def c(self): return 1
                @c.setter
                def c(self, v): ran.append("setter")
            class Fails(Exception):
                def __init__(self, *args): ran.append("init"); super().__init__(*args)
            Point = collections.namedtuple("Point", "x y")
            class Typed(typing.NamedTuple):
                a: int = 1
            @dataclasses.dataclass
            class Data:
                a: int
                b: list
            class Colour(enum.Enum):
                RED = 1
                BLUE = "b"
            class Flags(enum.IntFlag):
                A = 1
                B = 2
            class Pair(tuple): pass
            class Words(list):
                def extend(self, items): ran.append("extend")
                append = extend
            class Table(dict):
                def __setitem__(self, k, v): ran.append("setitem")
            class Callable:
                def __call__(self, *args): ran.append("call")
            class Stated:
                def __setstate__(self, state): self.state = state
            def function(*args): ran.append("function")
            def f(): return (Safe, News, Slots, Fails, Point, Typed, Data, Colour, Flags, Words, Pair, Table, Callable, Stated, function)
        """)
        self.decoder = Decoder(ship(self.s.f))
        self.s.ran.clear()

    def read(self, value, protocol=4):
        data = value if isinstance(value, bytes) else pickle.dumps(value, protocol)
        out = struct.pack("<I", 1) + struct.pack("<BII", 0, len(data), 0) + data
        ((value, error, _),) = self.decoder.results(out, b"", "theirs", foreign=True)
        if error is not None:
            raise error
        return value

    def test_values(self):
        s = self.s
        shared = [1]
        slots = s.Slots()
        slots.a, slots.b = 1, [2]
        values = [
            None, True, 1, -(2**70), 1.5, float("inf"), 2j, "text\ud800", [b"bytes"], bytearray(b"x"), (), (1, (2,)), [1, [2]], {"a": {1: 2}},
            {1, 2}, frozenset([3]), range(5), slice(1, 2), ..., NotImplemented, [int, list, ValueError, collections.OrderedDict],
            datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc), datetime.date(2026, 1, 2), datetime.timedelta(1), datetime.time(1),
            decimal.Decimal("1.50"), fractions.Fraction(1, 3), uuid.UUID(int=5), collections.OrderedDict(a=1), collections.deque([1, 2], 5),
            collections.Counter("aab"), pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:/b"), pathlib.Path("x"),
            collections.defaultdict(list, a=[1]), ValueError("x"), KeyError("k"), OSError(2, "no"), [shared, shared],
            s.Safe(3), s.Point(1, 2), s.Typed(5), s.Data(1, [2]), s.Colour.RED, s.Colour("b"), s.Flags.A | s.Flags.B, s.Safe,
            {"deep": [(s.Safe(1), {s.Colour.RED: s.Point(1, s.Point(2, 3))})]}, s.Words([1, 2]),
        ]  # fmt: skip
        s.ran.clear()
        for protocol in range(3, 6):
            for v in values:
                with self.subTest(repr(v), protocol=protocol):
                    got = self.read(v, protocol)
                    if isinstance(v, BaseException):
                        self.assertEqual((type(got), got.args), (type(v), v.args))
                    elif isinstance(v, s.Words):
                        self.assertEqual(list(got), list(v))
                    else:
                        self.assertEqual(got, v)
                    self.assertIs(type(got), type(v))
        got = self.read([shared, shared])
        self.assertIs(got[0], got[1])
        got = self.read(slots)
        self.assertEqual((got.a, got.b), (1, [2]))
        got = self.read(s.Words([1, 2]))
        self.assertEqual((type(got), list(got)), (s.Words, [1, 2]))
        got = self.read(s.Fails("a", 1))
        self.assertEqual((type(got), got.args), (s.Fails, ("a", 1)))
        stated = s.Stated()
        stated.x = 1
        self.assertEqual(self.read(stated).state, {"x": 1})
        loop = []
        loop.append(loop)
        got = self.read(loop)
        self.assertIs(got[0], got)

    def test_nothing_of_the_program_runs(self):
        s = self.s
        data = [pickle.dumps(v, 4) for v in (s.Safe(3), s.Fails("x"), s.Words([1, 2]), s.Data(1, []))]
        table = s.Table()
        dict.__setitem__(table, "a", 1)
        data.append(pickle.dumps(table, 4))
        s.ran.clear()
        for d in data:
            self.read(d)
        self.assertEqual(s.ran, [])

    def test_pickles_that_would_run_code(self):
        s = self.s
        folder = tempfile.mkdtemp()
        self.addCleanup(lambda: [os.remove(os.path.join(folder, f)) for f in os.listdir(folder)] and None or os.rmdir(folder))
        mark = os.path.join(folder, "mark")
        import functools
        import operator
        import posixpath
        import subprocess as sub

        write = "open(%r, 'w')" % mark
        dangerous = {
            "os.system": Evil(os.system, "echo > %s" % mark),
            "eval": Evil(eval, write),
            "exec": Evil(exec, write),
            "open": Evil(open, mark, "w"),
            "compile": Evil(compile, write, "x", "eval"),
            "import": Evil(__import__, "antigravity"),
            "getattr": Evil(getattr, s.Safe(), "__class__"),
            "getattr of a module": Evil(getattr, Evil(__import__, "os"), "system"),
            "setattr": Evil(setattr, s.Safe, "x", 1),
            "popen": Evil(sub.Popen, ["touch", mark]),
            "partial": Evil(functools.partial, eval, write),
            "partial called": Evil(functools.partial(eval, write)),
            "reduce": Evil(functools.reduce, eval, [write]),
            "attrgetter": Evil(operator.attrgetter("system"), s.Safe),
            "methodcaller": Evil(operator.methodcaller("system", "echo > %s" % mark), 1),
            "map": Evil(map, eval, [write]),
            "reconstructor": Evil(copyreg._reconstructor, s.News, object, None),
            "newobj": b"\x80\x04c__main__\nNews\n)\x81.",
            "newobj with names": b"\x80\x04c__main__\nNews\n)}\x92.",
            "a __new__ of the program": s.News(),
            "a function of the program": Evil(s.function, 1),
            "an object of the program called": Evil(s.Callable(), 1),
            "a constructor of another library": Evil(tempfile.NamedTemporaryFile),
            "a class of another module": Evil(tempfile.TemporaryDirectory, None, "x", folder),
            "a path is no file": Evil(posixpath.join, "a"),
            "a default factory": Evil(collections.defaultdict, eval),
            "a default factory of the program": Evil(collections.defaultdict, s.Callable),
            "a code object": b"\x80\x04ctypes\nCodeType\n(I0\ntR.",
            "a function type": b"\x80\x04ctypes\nFunctionType\n(I0\ntR.",
            "type": Evil(type, "X", (s.Safe,), {}),
            "ctypes": b"\x80\x04cctypes\nCDLL\n(\x8c\x04libcttR.",
            "a submodule's name": b"\x80\x04c__main__\nSafe.__init__.__globals__\n.",
            "a method of an allowed class": b"\x80\x04cbuiltins\nstr.format\n.",
            "an attribute of an allowed one": b"\x80\x04cbuiltins\nobject.__subclasses__\n)R.",
            "builtins of __main__": b"\x80\x04c__main__\n__builtins__\n.",
            "a module in __main__": b"\x80\x04c__main__\nenum\n.",
            "an extension": b"\x80\x04\x82\x01.",
            "old instances": b"(ios\nsystem\n.",
            "old instances of allowed ones": b"(i__main__\nSafe\n.",
            "old objects": b"(c__main__\nSafe\no.",
            "persistent": b"Pfoo\n.",
            "persistent too": b"\x80\x04K\x01Q.",
            "buffers": b"\x80\x05\x97.",
        }
        s.ran.clear()
        for name, evil in dangerous.items():
            for protocol in (2, 4):
                with self.subTest(name, protocol=protocol):
                    data = evil if isinstance(evil, bytes) else pickle.dumps(evil, protocol)
                    with self.assertRaises(pickle.UnpicklingError):
                        self.fail(repr(self.read(data)))
                    self.assertFalse(os.path.exists(mark))
        self.assertEqual([r for r in s.ran if r != "new"], [])
        self.assertNotIn("antigravity", sys.modules)

    def test_classes_are_not_changed(self):
        s = self.s
        before = dict(vars(s.Safe)), s.function.__defaults__
        for name, data in {
            "attributes of a class": b"\x80\x04c__main__\nSafe\nN}\x8c\x08__init__c__main__\nSafe\ns\x86b.",
            "a dict of a class": b"\x80\x04c__main__\nSafe\n}\x8c\x01xK\x01sb.",
            "attributes of a standard class": b"\x80\x04cfractions\nFraction\nN}\x8c\x01xK\x01s\x86b.",
            "an item of a class": b"\x80\x04c__main__\nSafe\n\x8c\x01xK\x01s.",
            "an appended one": b"\x80\x04c__main__\nSafe\nK\x01a.",
            "the class of an instance": b"\x80\x04c__main__\nSafe\n)\x81N}\x8c\x09__class__c__main__\nSlots\ns\x86b.",
            "a property": b"\x80\x04c__main__\nSlots\n)\x81N}\x8c\x01cK\x01s\x86b.",
            "a member of an enumeration": b"\x80\x04c__main__\nColour\nK\x01\x85R}\x8c\x06_name_\x8c\x01xsb.",
        }.items():
            with self.subTest(name):
                with self.assertRaises(pickle.UnpicklingError):
                    self.read(data)
        self.assertEqual((dict(vars(s.Safe)), s.function.__defaults__), before)
        self.assertFalse(hasattr(fractions.Fraction, "x"))
        self.assertEqual(s.Colour.RED.name, "RED")
        self.assertEqual(s.ran, [])

    def test_small_pickles_of_huge_values(self):
        began = time.monotonic()
        for name, data in {
            "bytes": Evil(bytes, 10**12),
            "a bytearray": Evil(bytearray, 10**12),
            "a bytearray of a length": b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b".",
            "text of a length": b"\x80\x04\x8d" + struct.pack("<Q", 10**12) + b".",
            "a list of a range": Evil(list, range(10**10)),
            "a set of a range": Evil(set, range(10**10)),
            "a fraction": Evil(fractions.Fraction, "1e999999999"),
            "a deque": Evil(collections.deque, range(10**10)),
            "a counter": Evil(collections.Counter, range(10**10)),
            "a tuple of the program": b"\x80\x04c__main__\nPair\ncbuiltins\nrange\n(K\x00J\xff\xff\xff\x7ftR\x85\x81.",
        }.items():
            with self.subTest(name):
                with self.assertRaises(pickle.UnpicklingError):
                    self.read(data)
        self.assertLess(time.monotonic() - began, 20)

    def test_what_is_refused_is_named(self):
        with self.assertRaisesRegex(Refused, r"has tempfile.SpooledTemporaryFile in it.*somebody else.*option allow"):
            self.read(b"\x80\x04ctempfile\nSpooledTemporaryFile\n.")

    def test_allowed_modules(self):
        import string

        value = string.Template("a $b")
        with self.assertRaises(Refused):
            self.read(value)
        self.decoder = Decoder(self.decoder.bundle, allow=["string"])
        self.assertEqual(self.read(value).template, "a $b")
        with self.assertRaises(Refused):
            self.read(Evil(string.capwords, "a"))

    def test_arrays(self):
        if numpy is None:
            self.skipTest("numpy is not installed for this interpreter")
        for protocol in (3, 4, 5):
            for a in (
                numpy.arange(6).reshape(2, 3), numpy.asfortranarray(numpy.ones((3, 2))), numpy.array(["a", "bc"]), numpy.float64(1.5),
                numpy.array([None, [1], "x"], object), numpy.zeros(0), numpy.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
            ):  # fmt: skip
                got = self.read(a, protocol)
                self.assertEqual(got.dtype, a.dtype)
                self.assertEqual(got.tolist(), a.tolist())
        for evil in (
            Evil(numpy.load, "x"), Evil(numpy.fromfile, "x"), Evil(numpy.ndarray, (10**12,)),
            Evil(numpy.array([1]).__reduce__()[0], numpy.ndarray, (10**12,), b"b"), Evil(numpy.dtype, self.s.Safe),
        ):  # fmt: skip
            with self.assertRaises(pickle.UnpicklingError):
                self.read(evil)

    def test_exceptions(self):
        s = self.s
        mark = os.path.join(tempfile.gettempdir(), "meshnode-%d" % os.getpid())

        def raised(inner):
            said = {"type": "T", "module": "m", "message": "said", "traceback": "File x\nT: said", "pickle": inner}
            data = pickle.dumps(said, 4)
            out = struct.pack("<I", 1) + struct.pack("<BII", 1, len(data), 0) + data
            ((_, error, _),) = self.decoder.results(out, b"", "theirs", foreign=True)
            return error

        self.assertIsInstance(raised(pickle.dumps(ZeroDivisionError("x"))), ZeroDivisionError)
        self.assertIsInstance(raised(pickle.dumps(s.Fails("x"))), s.Fails)
        for inner in (None, pickle.dumps(Evil(os.system, "echo > %s" % mark)), b"junk", pickle.dumps(5)):
            e = raised(inner)
            self.assertEqual((type(e), str(e), e.node), (RemoteError, "m.T: said", "theirs"))
            self.assertIn("File x", str(e.__cause__))
        self.assertFalse(os.path.exists(mark))
        for data in (b"junk", pickle.dumps(Evil(os.system, "echo > %s" % mark)), pickle.dumps([1])):
            out = struct.pack("<I", 1) + struct.pack("<BII", 1, len(data), 0) + data
            for foreign in (False, True):
                ((_, error, _),) = self.decoder.results(out, b"", "theirs", foreign=foreign)
                self.assertIsInstance(error, RemoteError)
        self.assertFalse(os.path.exists(mark))

    def test_random_damage_is_an_error(self):
        import random

        s = self.s
        chance = random.Random(5)
        good = pickle.dumps([s.Safe(3), s.Point(1, 2), {"a": s.Colour.RED}, fractions.Fraction(1, 3), collections.deque([1]), ValueError("x")], 4)
        s.ran.clear()
        for _ in range(3000):
            data = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            try:
                self.read(bytes(data))
            except (pickle.UnpicklingError, MemoryError, RecursionError):
                pass
        self.assertEqual(s.ran, [])


if __name__ == "__main__":
    unittest.main()
