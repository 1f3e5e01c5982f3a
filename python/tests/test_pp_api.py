"""Each part of pp's interface, on a private node."""

import contextlib
import functools
import importlib
import io
import math
import operator
import os
import pickle
import re
import shutil
import sys
import tempfile
import threading
import time
import types
import unittest

from pp_running import Case, binary, stats_rows

_environment = {}
_dir = ""


def setUpModule():
    """No node runs in an empty folder: each server has a private one."""
    global _dir
    _dir = tempfile.mkdtemp(prefix="mn-")
    for name, value in (("MESHNODE_BIN", binary()), ("MESHNODE_DATA_DIR", os.path.join(_dir, "none"))):
        _environment[name] = os.environ.get(name)
        os.environ[name] = value


def tearDownModule():
    for name, value in _environment.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    shutil.rmtree(_dir, ignore_errors=True)


# What the tests submit.


def add(a, b):
    return a + b


def double(x):
    return 2 * x


def double_and_one(x):
    return double(x) + 1


def shout(text):
    print(text)
    return len(text)


def quiet(text):
    sys.stdout.write(text)
    sys.stderr.write(text)
    return text


def fail(message):
    raise LookupError(message)


def nap(seconds):
    time.sleep(seconds)
    return seconds


def root(x):
    return math.sqrt(x)


def where():
    return os.getcwd(), sys.executable, os.getpid()


class Scale:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return self.by * x

    def of(self, x):
        return self.by * x

    @staticmethod
    def thrice(x):
        return 3 * x

    @classmethod
    def name(cls, x):
        return cls.__name__ + str(x)

    def __eq__(self, other):
        return type(other) is type(self) and other.by == self.by

    __hash__ = None


class Interface(unittest.TestCase):
    """A server with two slots, for all tests that leave it as it was."""

    @classmethod
    def setUpClass(cls):
        import pp

        cls.pp = pp
        cls.server = pp.Server(2)

    @classmethod
    def tearDownClass(cls):
        cls.server.destroy()

    def result(self, *args, **kwargs):
        return self.server.submit(*args, **kwargs)()

    # Names.

    def test_imports(self):
        import ppft

        self.assertIs(ppft.Server, self.pp.Server)
        self.assertIs(ppft.Template, self.pp.Template)
        self.assertIs(ppft.DestroyedServerError, self.pp.DestroyedServerError)
        namespace = {}
        exec("from pp import pp\nimport ppft as other\nfrom ppft import *", namespace)
        self.assertIs(namespace["pp"].Server, self.pp.Server)
        self.assertIs(namespace["other"].Server, self.pp.Server)
        self.assertIs(namespace["Server"], self.pp.Server)
        for module in ("pp.server", "ppft.server"):
            self.assertTrue(callable(importlib.import_module(module).main))

    def test_constants(self):
        self.assertIsInstance(self.pp.version, str)
        self.assertEqual(self.pp.Server.default_port, 60000)
        self.assertTrue(issubclass(self.pp.DestroyedServerError, RuntimeError))

    # Server().

    def test_server_arguments(self):
        Server = self.pp.Server
        for wrong in ("2", 1.5, None, "all", [1]):
            with self.assertRaises(TypeError, msg=repr(wrong)):
                Server(wrong)
        with self.assertRaises(ValueError):
            Server(-1)
        for wrong in ("*", ["*"], None, {"*"}, (1,), (b"x",), ("",), ("a b",), ("host:port",), ("host:0",), ("host:70000",)):
            with self.assertRaises(TypeError, msg=repr(wrong)):
                Server(1, wrong)
        for wrong in (b"secret", 1, ("a",)):
            with self.assertRaises(TypeError, msg=repr(wrong)):
                Server(1, (), wrong)

    def test_all_arguments_are_taken(self):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            server = self.pp.Server(1, (), "a long secret word", True, 2, 60)
        self.assertEqual(server.submit(add, (1, 2))(), 3)
        server.destroy()
        server = self.pp.Server(ncpus=1, ppservers=(), secret=None, restart=False, proto=2, socket_timeout=3600)
        self.assertEqual(server.submit(add, (1, 2))(), 3)
        server.destroy()

    def test_autodetect(self):
        server = self.pp.Server()
        most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.assertTrue(1 <= server.get_ncpus() <= most)
        self.assertEqual(server.get_active_nodes(), {"local": server.get_ncpus()})
        server.destroy()

    @unittest.skipUnless(hasattr(os, "sched_setaffinity"), "affinity can be set on Linux")
    def test_autodetect_counts_affinity(self):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            server = self.pp.Server()
            self.assertEqual(server.get_ncpus(), 1)
            server.destroy()
        finally:
            os.sched_setaffinity(0, before)

    # submit().

    def test_submit_arguments(self):
        submit = self.server.submit
        wrong = [
            (add, [1, 2]),
            (add, 1),
            (add, (1, 2), [double]),
            (add, (1, 2), double),
            (add, (1, 2), (), ["math"]),
            (add, (1, 2), (), "math"),
            (add, (1, 2), (), (math,)),
            (add, (1, 2), (), ("math", 3)),
            (add, (1, 2), (), (), None, [1]),
            (add, (1, 2), (), (), None, 1),
            (add, (1, 2), (), (), None, (), "default", [1]),
            (add, (1, 2), (), (), None, (), "default", 1),
            (3, (1, 2)),
            (add, (1, 2), (3,)),
        ]
        for arguments in wrong:
            with self.assertRaises(TypeError, msg=repr(arguments)):
                submit(*arguments)
        self.assertEqual(self.result(add, (1, 2)), 3)

    def test_defaults(self):
        task = self.server.submit(where)
        self.assertEqual(task.group, "default")
        self.assertIsNone(task.callback)
        self.assertEqual(task.callbackargs, ())
        self.assertEqual(len(task()), 3)

    def test_dependencies_named_and_found(self):
        self.assertEqual(self.result(double_and_one, (4,), (double,)), 9)
        self.assertEqual(self.result(double_and_one, (5,)), 11)
        self.assertEqual(self.result(root, (16,), (), ("math",)), 4.0)
        self.assertEqual(self.result(root, (25,)), 5.0)

    def test_modules_in_all_forms(self):
        source = (
            "def forms(x):\n"
            "    return (os.path.basename('/a/b'), maths.floor(x), minus(5, 3), path.join('a', 'b'), sqrt(x),\n"
            "            xml.dom.minidom.__name__)\n"
        )
        import linecache

        linecache.cache["<forms>"] = (len(source), None, source.splitlines(True), "<forms>")
        namespace = {"__name__": "__main__"}
        exec(compile(source, "<forms>", "exec"), namespace)
        modules = (
            "os.path",
            "math as maths",
            "from operator import sub as minus",
            "import os.path as path",
            "from math import sqrt",
            "xml.dom.minidom",
        )
        self.assertEqual(
            self.result(namespace["forms"], (9.5,), (), modules),
            ("b", 9, 2, os.path.join("a", "b"), math.sqrt(9.5), "xml.dom.minidom"),
        )

    def test_a_module_that_is_not_there(self):
        out = io.StringIO()
        task = self.server.submit(add, (1, 2), (), ("no_such_module_xyz",))
        with contextlib.redirect_stdout(out):
            self.assertIsNone(task())
        self.assertIn("no_such_module_xyz", out.getvalue())

    def test_globals(self):
        source = "def outer(x):\n    return inner(x) + m.floor(2.5)\n"
        import linecache

        linecache.cache["<outer>"] = (len(source), None, source.splitlines(True), "<outer>")
        namespace = {"__name__": "__main__"}
        exec(compile(source, "<outer>", "exec"), namespace)
        self.assertEqual(self.result(namespace["outer"], (5,), globals={"inner": double, "m": math}), 12)

    def test_globals_that_are_not_used_may_be_missing(self):
        only_here = types.ModuleType("pp_only_here")
        sys.modules[only_here.__name__] = only_here
        self.addCleanup(sys.modules.pop, only_here.__name__)
        self.assertEqual(self.result(double_and_one, (3,), globals={"only_here": only_here, "double": double}), 7)

    def test_methods_instances_and_classes(self):
        scale = Scale(7)
        self.assertEqual(self.result(scale.of, (3,)), 21)
        self.assertEqual(self.result(scale, (4,)), 28)
        self.assertEqual(self.result(Scale.thrice, (4,)), 12)
        self.assertEqual(self.result(Scale.name, (4,)), "Scale4")
        self.assertEqual(self.result(operator.attrgetter("by"), (scale,)), 7)
        self.assertEqual(self.result(Scale, (5,)), Scale(5))
        self.assertEqual(self.result(add, ([scale], [Scale(2)]), (Scale,)), [Scale(7), Scale(2)])

    def test_functions_as_arguments(self):
        self.assertEqual(self.result(functools.reduce, (add, [1, 2, 3])), 6)

    def test_builtins_and_module_functions(self):
        self.assertEqual(self.result(math.sin, (1,)), math.sin(1))
        self.assertEqual(self.result(len, ("abc",)), 3)
        self.assertEqual(self.result(sorted, ([3, 1, 2],)), [1, 2, 3])
        self.assertEqual(self.result(os.path.join, ("a", "b")), os.path.join("a", "b"))

    def test_lambdas_and_closures(self):
        by = 6
        self.assertEqual(self.result(lambda x: by * x, (7,)), 42)

    def test_caller_is_seen(self):
        cwd, executable, pid = self.result(where)
        self.assertEqual(os.path.realpath(cwd), os.path.realpath(os.getcwd()))
        self.assertEqual(os.path.realpath(executable), os.path.realpath(sys.executable))
        self.assertNotEqual(pid, os.getpid())

    # Task.

    def test_task(self):
        server = self.pp.Server(1)
        tasks = [server.submit(add, (n, 1), group="g%d" % n) for n in range(4)]
        self.assertEqual([t.tid for t in tasks], [0, 1, 2, 3])
        self.assertEqual([t.group for t in tasks], ["g0", "g1", "g2", "g3"])
        for t in tasks:
            t.wait()
            self.assertTrue(t.finished)
        self.assertEqual([t() for t in tasks], [1, 2, 3, 4])
        self.assertEqual([t() for t in tasks], [1, 2, 3, 4])
        self.assertIs(tasks[0](), tasks[0]())
        slow = server.submit(nap, (0.5,))
        self.assertFalse(slow.finished)
        self.assertEqual(slow(), 0.5)
        self.assertTrue(slow.finished)
        server.destroy()

    def test_raw_result(self):
        task = self.server.submit(shout, ("hello",))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            raw = task(raw_result=True)
            self.assertEqual(out.getvalue(), "")
            self.assertEqual(task(), 5)
        self.assertEqual(out.getvalue(), "hello\n")
        self.assertIsInstance(raw, bytes)
        self.assertEqual(pickle.loads(raw), (5, "hello\n"))

    def test_prints_once_and_exactly(self):
        for text in ("one line", "two\nlines", "", "\u00e4\u4e2d", " blanks  ", "\t"):
            task = self.server.submit(shout, (text,))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                self.assertEqual(task(), len(text))
                self.assertEqual(task(), len(text))
            self.assertEqual(out.getvalue(), text + "\n")
        task = self.server.submit(quiet, ("x",))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            task()
        self.assertEqual(out.getvalue(), "xx")  # no line end that the task did not write

    def test_raising_task(self):
        task = self.server.submit(fail, ("nowhere",))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertIsNone(task())
            self.assertIsNone(task())
        lines = out.getvalue().splitlines()
        self.assertEqual(lines[0], "An error has occured during the function execution")
        self.assertEqual(lines[1], "Traceback (most recent call last):")
        self.assertRegex(lines[-1], "^LookupError: nowhere$")
        self.assertTrue(any("in fail" in line for line in lines))
        self.assertEqual(out.getvalue().count("An error has occured"), 1)
        error = task.exception()
        self.assertIs(type(error), LookupError)
        self.assertEqual(error.args, ("nowhere",))
        self.assertIsNone(self.server.submit(add, (1, 2)).exception())

    def test_raise_errors(self):
        server = self.pp.Server(1, raise_errors=True)
        task = server.submit(fail, ("nowhere",))
        for _ in range(2):
            with self.assertRaises(LookupError) as caught:
                task()
            self.assertEqual(caught.exception.args, ("nowhere",))
        self.assertEqual(server.submit(add, (1, 2))(), 3)
        server.destroy()

    # Callbacks.

    def test_callback(self):
        seen = []

        def callback(*arguments):
            time.sleep(0.05)
            seen.append((arguments, threading.current_thread()))

        task = self.server.submit(add, (2, 3), callback=callback, callbackargs=("a", 1), group="called")
        self.server.wait("called")
        ((arguments, thread),) = seen
        self.assertEqual(arguments, ("a", 1, 5))
        self.assertIsNot(thread, threading.current_thread())
        self.assertIs(task.callback, callback)
        self.assertEqual(task.callbackargs, ("a", 1))
        self.assertEqual(task(), 5)

    def test_callback_before_finished(self):
        go = threading.Event()
        task = self.server.submit(add, (2, 3), (), (), lambda result: go.wait(10))
        time.sleep(0.3)
        self.assertFalse(task.finished)
        go.set()
        self.assertEqual(task(), 5)

    def test_callback_that_raises(self):
        err = io.StringIO()

        def callback(result):
            raise OSError("in a callback")

        with contextlib.redirect_stderr(err):
            task = self.server.submit(add, (2, 3), callback=callback)
            self.assertEqual(task(), 5)
            self.server.wait()
        self.assertIn("OSError: in a callback", err.getvalue())
        self.assertIn("Traceback", err.getvalue())
        self.assertEqual(self.result(add, (3, 4)), 7)

    def test_callback_of_a_raising_task(self):
        seen = []
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.submit(fail, ("x",), callback=seen.append, group="raising")
            self.server.wait("raising")
        self.assertEqual(seen, [None])

    def test_callback_submits_and_waits(self):
        server = self.pp.Server(1)
        seen = []

        def callback(result):
            seen.append(server.submit(double, (result,), callback=seen.append)())

        for _ in range(3):
            server.submit(add, (2, 3), callback=callback)
        server.wait()
        self.assertEqual(seen, [10] * 6)
        server.destroy()

    # Server.

    def test_wait(self):
        quick = [self.server.submit(nap, (0.01,), group="quick") for _ in range(4)]
        slow = self.server.submit(nap, (0.6,), group="slow")
        self.server.wait("quick")
        self.assertTrue(all(t.finished for t in quick))
        self.assertFalse(slow.finished)
        self.server.wait()
        self.assertTrue(slow.finished)
        self.server.wait()
        self.server.wait("no such group")

    def test_set_ncpus_arguments(self):
        server = self.pp.Server(1)
        for wrong in ("2", 1.5, None, [1]):
            with self.assertRaises(TypeError, msg=repr(wrong)):
                server.set_ncpus(wrong)
        with self.assertRaises(ValueError):
            server.set_ncpus(-1)
        self.assertEqual(server.get_ncpus(), 1)
        server.set_ncpus(3)
        self.assertEqual(server.get_ncpus(), 3)
        self.assertEqual(server.get_active_nodes(), {"local": 3})
        server.set_ncpus("autodetect")
        auto = server.get_ncpus()
        server.set_ncpus(0)
        self.assertEqual((server.get_ncpus(), server.get_active_nodes()["local"]), (0, 0))
        server.set_ncpus()
        self.assertEqual(server.get_ncpus(), auto)
        server.destroy()

    def test_set_ncpus_at_once(self):
        server = self.pp.Server(1)
        self.assertEqual(server.submit(add, (1, 2))(), 3)

        def together(seconds=0.5, n=4):
            begun = time.monotonic()
            for task in [server.submit(nap, (seconds,)) for _ in range(n)]:
                task()
            return time.monotonic() - begun

        self.assertGreater(together(), 2.0)
        server.set_ncpus(4)
        self.assertLess(together(), 1.6)
        server.set_ncpus(2)
        self.assertGreater(together(), 1.0)
        # Up while tasks wait: those that run do not have to end first.
        server.set_ncpus(1)
        begun = time.monotonic()
        tasks = [server.submit(nap, (1.0,)) for _ in range(4)]
        time.sleep(0.2)
        server.set_ncpus(4)
        for task in tasks:
            task()
        self.assertLess(time.monotonic() - begun, 2.0)
        server.destroy()

    def test_ncpus_0(self):
        server = self.pp.Server(0)
        tasks = [server.submit(double, (n,)) for n in range(5)]
        time.sleep(0.5)
        self.assertEqual([t.finished for t in tasks], [False] * 5)
        self.assertEqual(server.get_active_nodes(), {"local": 0})
        server.set_ncpus(1)
        self.assertEqual([t() for t in tasks], [0, 2, 4, 6, 8])
        server.set_ncpus(0)
        task = server.submit(double, (9,))
        time.sleep(0.3)
        self.assertFalse(task.finished)
        server.set_ncpus(2)
        self.assertEqual(task(), 18)
        server.destroy()

    def test_get_stats(self):
        server = self.pp.Server(2)
        self.assertEqual(list(server.get_stats()), ["local"])
        self.assertEqual(server.get_stats()["local"].njobs, 0)
        for task in [server.submit(nap, (0.05,)) for _ in range(10)]:
            task()
        server.wait()
        stats = server.get_stats()
        self.assertEqual(list(stats), ["local"])
        self.assertEqual((stats["local"].njobs, stats["local"].ncpus), (10, 2))
        self.assertTrue(0.5 <= stats["local"].time < 5, stats["local"].time)
        server.destroy()

    def test_print_stats(self):
        server = self.pp.Server(2)

        def printed():
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                server.print_stats()
            return out.getvalue()

        empty = printed()
        number = r"\d+\.\d+(e-\d+)?"
        self.assertRegex(
            empty,
            r"\AJob execution statistics:\n"
            r" job count \| % of all jobs \| job time sum \| time per job \| job server\n"
            r"Time elapsed since server creation " + number + r"\n0 active tasks, 2 cores\n\n\Z",
        )
        for task in [server.submit(nap, (0.01,)) for _ in range(12)]:
            task()
        out = printed()
        self.assertRegex(out, r"(?m)^        12 \|        100\.00 \|       0\.\d{4} \|     0\.\d{6} \| local$")
        jobs, percent, total, each = stats_rows(out)["local"]
        self.assertAlmostEqual(each, total / 12, places=3)
        slow = server.submit(nap, (1.0,))
        self.assertIn("\n1 active tasks, 2 cores\n", printed())
        slow()
        self.assertIn("\n0 active tasks, 2 cores\n", printed())
        self.assertLess(
            float(re.search("creation (.*)", empty).group(1)), float(re.search("creation (.*)", printed()).group(1))
        )
        server.destroy()

    def test_destroy(self):
        server = self.pp.Server(1)
        running, waiting = server.submit(nap, (30,)), server.submit(add, (1, 2))
        done = server.submit
        begun = time.monotonic()
        time.sleep(0.2)
        server.destroy()
        with self.assertRaises(self.pp.DestroyedServerError):
            server.submit(add, (1, 2))
        with self.assertRaises(self.pp.DestroyedServerError):
            done(add, (1, 2))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertIsNone(running())
            self.assertIsNone(waiting())
        self.assertIsInstance(waiting.exception(), self.pp.DestroyedServerError)
        server.wait()
        server.print_stats
        server.destroy()
        self.assertLess(time.monotonic() - begun, 10)

    def test_insert(self):
        sources = ["def twice(x):\n    return helper(x) + math.floor(1.5)\n", "def helper(x):\n    return 2 * x\n"]
        sfunc = pickle.dumps(("twice", sources, ("math",)), 2)
        task = self.server.insert(sfunc, pickle.dumps((21,), 2))
        self.assertEqual(task(), 43)

    def test_template(self):
        template = self.pp.Template(self.server, double_and_one, (double,), ("math",))
        self.assertEqual([template.submit(n)() for n in range(4)], [1, 3, 5, 7])
        seen = []
        template = self.pp.Template(self.server, add, (), (), lambda *a: seen.append(a), ("x",), "templates", {"m": math})
        task = template.submit(1, 2)
        self.server.wait("templates")
        self.assertEqual((task(), task.group, seen), (3, "templates", [("x", 3)]))
        named = self.pp.Template(
            job_server=self.server, func=add, depfuncs=(), modules=(), callback=None, callbackargs=(), group="g", globals=None
        )
        self.assertEqual(named.submit(2, 2)(), 4)

    def test_many_threads_submit(self):
        results = {}

        def work(n):
            results[n] = [t() for t in [self.server.submit(add, (n, i)) for i in range(50)]]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        self.assertEqual(results, {n: [n + i for i in range(50)] for n in range(8)})


class Folder(Case):
    """What a program sees of the folder in which it was started."""

    def test_own_modules(self):
        self.write("def three():\n    return 3\n", "beside.py")
        program = self.write(
            """
            import os, pp
            import beside

            def work(x):
                return x * beside.three(), os.getcwd()

            server = pp.Server(1)
            print(server.submit(work, (5,), (), ("beside", "os"))())
            """
        )
        ran = self.run_program(program, cwd="/")
        self.assertEqual(ran.out, "(15, '/')\n")


if __name__ == "__main__":
    unittest.main()
