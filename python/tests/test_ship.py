"""Functions travel to every interpreter that there is."""

import linecache
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from as_main import PYTHON, Caller, Script
from meshnode._ship import ShipError, ship
from meshnode._values import Encoder
from versions import Worker, interpreters

HERE = os.path.dirname(os.path.abspath(__file__))
FOUND = interpreters()


def version(text):
    return tuple(map(int, text.split(".")))


def run_cases(client, workers):
    """The lines that ship_cases.py prints: what is wrong, and at last how much ran."""
    out = subprocess.run(
        [FOUND[client], "-E", os.path.join(HERE, "ship_cases.py")] + ["%s=%s" % (w, FOUND[w]) for w in workers],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    return out.stdout.decode()


class Versions(unittest.TestCase):
    def check(self, client, workers):
        out = run_cases(client, workers)
        last = out.strip().split("\n")[-1].split()
        self.assertEqual(last[2:], ["wrong", "0"], out)
        self.assertGreater(int(last[1]), 80 * len(workers), out)

    def test_from_this_one_to_all(self):
        self.check("%d.%d" % sys.version_info[:2], list(FOUND))

    def test_from_the_others(self):
        clients = [v for v in FOUND if version(v) >= (3, 8) and FOUND[v] != sys.executable]
        versions = list(FOUND)

        def one(client):
            self.check(client, sorted({versions[0], versions[-1], client}, key=version))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, clients))


class Programs(unittest.TestCase):
    """Programs that are __main__ here; their functions run in a worker process."""

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

    # -- what bundles are

    def test_same_bytes(self):
        text = """
            import math
            WORDS = {"some", "words", "in", "a", "set"}
            LIMIT = 5
            class A:
                sizes = {1, 2}
                def f(self): return math.sqrt(LIMIT)
            def f(x): return A().f(), x in WORDS, frozenset(WORDS)
        """
        program = (
            "import sys; sys.path[:0] = %r\n"
            "from as_main import Script, ship\n"
            "s = Script(%r, name=sys.argv[1])\n"
            "sys.stdout.buffer.write(ship(s.f).data)\n" % ([PYTHON, HERE], text)
        )
        made = set()
        for seed in ("1", "2", "3"):
            out = subprocess.run(
                [sys.executable, "-c", program, "script.py"],
                stdout=subprocess.PIPE, timeout=60, env=dict(os.environ, PYTHONHASHSEED=seed),
            )  # fmt: skip
            made.add(out.stdout)
        self.assertEqual(len(made), 1)
        self.assertNotIn(tempfile.gettempdir().encode(), made.pop())

    def test_cached_until_something_changes(self):
        s = self.script("""
            LIMIT = [1]
            def g(): return LIMIT
            def f(): return g()
        """)
        first = ship(s.f)
        self.assertIs(ship(s.f), first)
        s.module.LIMIT.append(2)
        second = ship(s.f)
        self.assertIsNot(second, first)
        self.assertEqual(self.caller(s.f), [1, 2])
        s.module.LIMIT = 7
        self.assertEqual(self.caller(s.f), 7)
        exec("g = lambda: 'other'", s.module.__dict__)
        self.assertEqual(self.caller(s.f), "other")
        self.assertTrue(ship(s.f).current())

    def test_cell_and_default_changes_are_seen(self):
        s = self.script("""
            def make():
                n = 0
                def get(x=1): return n, x
                def set(v):
                    nonlocal n
                    n = v
                return get, set
            get, set = make()
        """)
        self.assertEqual(self.caller(s.get), (0, 1))
        s.set(5)
        self.assertEqual(self.caller(s.get), (5, 1))
        s.get.__defaults__ = (9,)
        self.assertEqual(self.caller(s.get), (5, 9))

    def test_contents(self):
        s = self.script("""
            import math
            LIMIT = 5
            class A: pass
            def g(): return LIMIT, A, math
            def f(): return g()
        """)
        self.assertEqual(ship(s.f).contents(), ["class A", "function f", "function g", "module math", "value LIMIT"])

    # -- one name, many functions

    def test_redefined_in_a_loop(self):
        s = self.script("""
            made = []
            for i in range(60):
                exec(compile("def f(x): return x * %d" % i, "<exec>", "exec"))
                made.append(f)
        """)
        self.assertEqual([self.caller(f, 2) for f in s.made], [2 * i for i in range(60)])

    def test_redefined_from_source(self):
        s = self.script("""
            made = []
            for i in range(5):
                def f(x): return g(x)
                if i % 2:
                    def g(x): return x, "odd"
                else:
                    def g(x): return x, "even"
                made.append((f, g))
        """)
        for i, (f, g) in enumerate(s.made):
            self.assertEqual(self.caller(g, i), (i, "odd" if i % 2 else "even"))

    def test_cells_of_a_notebook(self):
        s = self.script("", file=False, name="notebook")
        got = []
        for i in range(6):
            s.cell("def g(x): return x + %d\nclass C:\n    n = %d\ndef f(x): return g(x), C.n, C\n" % (i, i), "<ipython-input-%d-abc>" % i)
            got.append(self.caller(s.f, 1)[:2])
            self.assertEqual(ship(s.f).runtime, "python")
            self.assertNotIn(b"ipython-input", ship(s.f).data)
        self.assertEqual(got, [(1 + i, i) for i in range(6)])

    def test_an_old_function_with_new_ones(self):
        s = self.script("""
            def g(): return "old"
            def f(): return g()
        """)
        old = s.f
        s.run("""
            def g(): return "new"
            def f(): return g(), "new"
        """)
        self.assertEqual(self.caller(s.f), ("new", "new"))
        self.assertEqual(self.caller(old), "new")  # as it would be here: the name g has a new function

    def test_two_of_one_name_together(self):
        s = self.script("""
            def f(): return "first"
            first = f
            def f(): return "second"
            def both(): return first(), f()
            class C: v = 1
            C1 = C
            class C: v = 2
            def classes(): return C1.v, C.v
        """)
        self.assertEqual(self.caller(s.both), ("first", "second"))
        self.assertEqual(self.caller(s.classes), (1, 2))

    # -- without source, or with another

    def test_without_source(self):
        s = self.script(
            """
            import math
            LIMIT = 3
            class Base:
                def value(self): return 1
            class C(Base):
                k = LIMIT
                def __init__(self, x): self.x = x
                def value(self): return super().value() + self.x + self.k
                @property
                def double(self): return 2 * self.x
                @staticmethod
                def plain(a): return a
                @classmethod
                def make(cls, x): return cls(x)
            def g(x): return math.floor(x) + LIMIT
            def f(x):
                c = C.make(x)
                return [g(y) for y in (x, 1.5)], c.value(), c.double, C.plain(4), c
            """,
            file=False,
            name="<stdin>",
        )
        bundle = ship(s.f)
        self.assertEqual(bundle.runtime, "python%d.%d" % sys.version_info[:2])
        got = self.caller(s.f, 2)
        self.assertEqual(got[:4], ([5, 4], 6, 4, 4))
        self.assertIs(type(got[4]), s.C)
        other = next((p for v, p in FOUND.items() if v != "%d.%d" % sys.version_info[:2]), None)
        if other is None:
            self.skipTest("no other interpreter than this one")
        worker = Worker(other)
        try:
            answer, _ = worker.try_load(bundle.data)
        finally:
            worker.close()
        self.assertRegex(answer["unable"], r"needs Python 3\.\d+, since it has byte code; this is 3\.\d+")

    def test_edited_after_it_was_loaded(self):
        s = self.script("""
            def f(x):
                return x + 1
            class C:
                def m(self): return "old"
            def g(): return C().m()
        """)
        s.write("""
            def f(x):
                return x + 2
            class C:
                def m(self): return "new"
            def g(): return C().m()
        """)
        self.assertEqual(self.caller(s.f, 1), 2)
        self.assertEqual(ship(s.f).runtime, "python%d.%d" % sys.version_info[:2])
        self.assertEqual(self.caller(s.g), "old")

    def test_edited_after_it_was_shipped(self):
        s = self.script("def f(x):\n    return x + 1\n")
        self.assertEqual(self.caller(s.f, 1), 2)
        s.write("def f(x):\n    return x + 2\n")
        self.assertEqual(ship(s.f).runtime, "python")
        self.assertEqual(self.caller(s.f, 1), 2)

    def test_a_module_edited_after_it_was_imported(self):
        for keep in (True, False):
            with self.subTest(cache=keep):
                s = self.script("")
                s.write("def g(x): return x + 1\n", "edited_module_%d.py" % keep)
                with mock.patch("sys.dont_write_bytecode", not keep):
                    s.run("import edited_module_%d as m\ndef f(x): return m.g(x)\n" % keep)
                s.write("def g(x): return x + 2  # and more\n", "edited_module_%d.py" % keep)
                if keep:
                    self.assertEqual(self.caller(s.f, 1), 2)
                    self.assertEqual(ship(s.f).runtime, "python%d.%d" % sys.version_info[:2])
                else:
                    with self.assertRaisesRegex(ShipError, "module edited_module_0, whose file changed since it was imported"):
                        ship(s.f)

    def test_a_module_from_its_cache(self):
        s = self.script("")
        s.write("def g(x): return x in {'some', 'words', 'in', 'a', 'set', 'and', 'more', 'of', 'them', 'so', 'that', 'their', 'order', 'shows'}\n", "with_a_set.py")
        subprocess.run([sys.executable, "-c", "import with_a_set"], cwd=s.folder, timeout=60, env=dict(os.environ, PYTHONDONTWRITEBYTECODE=""))
        self.assertTrue(os.path.isdir(os.path.join(s.folder, "__pycache__")))
        s.run("import with_a_set\ndef f(x): return with_a_set.g(x)\n")
        self.assertEqual(ship(s.f).runtime, "python")
        self.assertEqual(self.caller(s.f, "set"), True)

    def test_several_lambdas_on_a_line(self):
        s = self.script("""
            a = 1
            fs = [lambda x: x + a, lambda x: x - a, lambda x, y=2: x * y, lambda x: (lambda z: z + x)(3)]
            both = (lambda x: x, 1), (lambda x: x, 2)
        """)
        self.assertEqual([self.caller(f, 5) for f in s.fs], [6, 4, 10, 8])
        self.assertTrue(all(ship(f).runtime == "python" for f in s.fs))

    # -- what cannot travel

    def test_errors_name_what_cannot_travel(self):
        s = self.script("""
            import threading, sys
            lock = threading.Lock()
            def uses_lock(): return lock
            def around():
                handle = open(__file__)
                def inside(): return handle.read()
                return inside
            inside = around()
            def outer(): return inside()
            class C:
                def m(self): return lock
            def gen(): yield 1
            running = gen()
            def uses_generator(): return next(running)
            def takes(x): return x
        """)
        for f, words in (
            (s.uses_lock, ["variable lock", "function uses_lock", "_thread.lock"]),
            (s.outer, ["variable handle", "around.<locals>.inside", "function outer", "_io.TextIOWrapper"]),
            (s.C, ["variable lock", "class C"]),
            (s.uses_generator, ["variable running", "generator"]),
        ):
            with self.assertRaises(ShipError) as caught, mock.patch.dict(sys.modules, cloudpickle=None):
                ship(f)
            for w in words:
                self.assertIn(w, str(caught.exception))
            self.assertIsInstance(caught.exception, TypeError)
        with self.assertRaisesRegex(ShipError, "argument 2, of type _thread.lock, cannot travel"):
            Encoder(ship(s.takes), None).call((1, s.lock), {})
        with self.assertRaisesRegex(ShipError, "argument key, of type dict, cannot travel.*lock"):
            Encoder(ship(s.takes), None).call((), {"key": {"a": s.uses_lock}})
        with self.assertRaisesRegex(ShipError, "5 cannot be called: it is of type int"):
            ship(5)
        s.inside.__closure__[0].cell_contents.close()

    def test_with_cloudpickle(self):
        try:
            import cloudpickle
        except ImportError:
            self.skipTest("cloudpickle is not installed for this interpreter")
        s = self.script("""
            import typing
            class Slow:
                def __reduce__(self): raise TypeError("not me")
            T = typing.TypeVar("T")
            class Generic(typing.Generic[T]): pass
            made = type("Made", (), {"__init_subclass__": classmethod(lambda cls: None), "x": property(lambda self: 5)})
            def f(): return made().x, Generic, T
        """)
        self.assertEqual(self.caller(s.f)[0], 5)

    def test_a_name_that_is_nowhere(self):
        s = self.script("def f(x):\n    return missing + x\n")
        with self.assertRaisesRegex(NameError, "missing"):
            self.caller(s.f, 1)

    # -- modules

    def test_missing_module(self):
        s = self.script("")
        s.write("def g(): return 1\n", "quite_absent.py")
        s.run("import quite_absent\ndef f(): return quite_absent.g()\n")
        with mock.patch("meshnode._ship._own_file", lambda path: False):
            answer, _ = self.caller.worker.try_load(ship(s.f).data)
        self.assertEqual(answer, {"unable": "needs the Python module quite_absent, which is not here"})

    def test_import_inside(self):
        s = self.script("def f():\n    import quite_absent_too\n")
        with self.assertRaises(ModuleNotFoundError) as caught:
            self.caller(s.f)
        self.assertEqual(caught.exception.name, "quite_absent_too")

    def test_modules_of_two_programs(self):
        for value in ("one", "two"):
            s = Script("")
            try:
                s.write("VALUE = %r\ndef get(): return VALUE\n" % value, "same_name.py")
                s.run("import same_name\nLIMIT = %r\ndef f(): return same_name.get(), LIMIT\n" % value)
                setattr(self, value, ship(s.f))
            finally:
                s.close()
        for _ in range(2):
            for value in ("one", "two"):
                bundle = getattr(self, value)
                self.assertEqual(self.caller.call(bundle, Encoder(bundle, None), ()), (value, value))

    def test_statements_for_modules(self):
        s = self.script("def f(x): return np.floor(x), path.join('a', 'b'), dumps([1]), xml.etree.ElementTree.fromstring('<a/>').tag\n")
        bundle = ship(s.f, (), ("math as np", "from os import path", "from json import dumps", "xml.etree.ElementTree"))
        self.assertEqual(self.caller.call(bundle, Encoder(bundle, None), (1.5,)), (1, os.path.join("a", "b"), "[1]", "a"))
        for wrong in ("1 + 1", "from x import *", "a b"):
            with self.assertRaisesRegex(ShipError, "not an import"):
                ship(s.f, (), (wrong,))

    def test_globals_and_depfuncs(self):
        s = self.script("""
            def f(x): return helper(x), extra, other(1)
            def helper_(x): return x + 1
            def other(x): return -x
        """)
        bundle = ship(s.f, (s.other,), (), {"helper": s.helper_, "extra": 5, "unused": threading.Lock()})
        self.assertEqual(self.caller.call(bundle, Encoder(bundle, None), (1,)), (2, 5, -1))

    def test_newer_syntax(self):
        old = next((p for v, p in FOUND.items() if version(v) < (3, 8)), None)
        if old is None:
            self.skipTest("no interpreter before 3.8")
        s = self.script("def f(x):\n    if (y := x) > 1:\n        return y\n")
        worker = Worker(old)
        try:
            answer, _ = worker.try_load(ship(s.f).data)
        finally:
            worker.close()
        self.assertRegex(answer["unable"], r"cannot be read by Python 3\.\d, a newer one may: .*script.py, line 2")

    def test_damaged_bundles(self):
        good = ship(self.script("def f(x): return x\n").f).data
        for data in (b"", b"PK\3\4", good[:-5], good[:40], b"meshnode-python 1\n{}", b"meshnode-python 1\n[]", good.replace(b'"root":0', b'"root":99')):
            answer, _ = self.caller.worker.try_load(data)
            self.assertIn("invalid", answer, data)
        answer, _ = self.caller.worker.try_load(b"meshnode-python 2\n{}")
        self.assertIn("newer meshnode", answer["unable"])

    # -- state

    def test_calls_see_what_was_shipped(self):
        s = self.script("""
            count = 0
            words = ["a"]
            memo = {}
            def call(x, seen=[]):
                global count, new
                count += 1
                words.append("b")
                memo[x] = x
                seen.append(x)
                call.times = getattr(call, "times", 0) + 1
                was = "new" in globals()
                new = 1
                return count, words, memo, seen, call.times, was
            call.colour = "red"
            def tally():
                n = 0
                def add():
                    nonlocal n
                    n += 1
                    return n
                return add
            add = tally()
        """)
        for i in range(3):
            self.assertEqual(self.caller(s.call, i), (1, ["a", "b"], {i: i}, [i], 1, False))
            self.assertEqual(self.caller(s.add), 1)

    def test_large_values_are_kept(self):
        s = self.script("table = list(range(5000))\ndef f():\n    table.append(1)\n    return len(table)\n")
        self.assertEqual([self.caller(s.f) for _ in range(2)], [5001, 5002])

    def test_main_is_the_program(self):
        s = self.script("""
            import sys
            def f():
                import __main__
                return sys.modules["__main__"].f is f, __main__.__name__, f.__module__
        """)
        self.assertEqual(self.caller(s.f), (True, "__main__", "__main__"))

    # -- odd ones

    def test_private_names_and_super_in_functions(self):
        s = self.script("""
            class A:
                def __init__(self): self.__x = 4
                def get(self): return self.__x
                def maker(self):
                    def inner(): return self.__x
                    return inner
            class B(A):
                def get(self): return super().get() + 1
            inner = A().maker()
            get = B.get
        """)
        self.assertEqual(self.caller(s.inner), 4)
        self.assertEqual(self.caller(s.get, s.B()), 5)

    def test_texts_with_odd_indentation(self):
        s = self.script('''
            def make(n):
                def inner():
                    return """first
            second
                        third""" + str(n)
                return inner
            f = make(1)
        ''')
        self.assertEqual(self.caller(s.f), s.f())

    def test_tracebacks_show_the_lines(self):
        s = self.script("""
            # a comment

            def f(x):
                return g(x)


            def g(x):
                raise ValueError("bad %d" % x)  # here
        """)
        with self.assertRaises(ValueError) as caught:
            self.caller(s.f, 3)
        text = str(caught.exception.__cause__)
        self.assertIn('File "script.py", line 9, in g', text)
        self.assertIn('raise ValueError("bad %d" % x)  # here', text)
        self.assertIn('File "script.py", line 5, in f', text)
        self.assertNotIn("load.py", text)

    def test_a_function_that_was_inserted(self):
        text = "def h(x):\n    return k(x) + 1\n\ndef k(x):\n    return x * 2\n"
        linecache.cache["<inserted 1>"] = (len(text), None, text.splitlines(True), "<inserted 1>")
        space = {"__name__": "__main__"}
        exec(compile(text, "<inserted 1>", "exec"), space)
        self.assertEqual(self.caller(space["h"], 4), 9)
        self.assertEqual(ship(space["h"]).runtime, "python")


if __name__ == "__main__":
    unittest.main()
