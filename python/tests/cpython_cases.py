"""CPython's own tests of concurrent.futures, with our Executor in place of theirs.

A program, run by test_cpython.py with an interpreter that ships its tests; they are taken from there as they are. It prints one
line of JSON: how many ran, which failed. What does not apply is listed here by name, with the reason.
"""

import concurrent.futures
import concurrent.futures.process
import importlib
import io
import json
import os
import re
import sys
import unittest

from meshnode import Executor, RemoteTraceback, WorkerLost

PYTHON = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_PROCESSES = "looks at the processes and threads that a pool has, where the mesh has its own"
_SHARED = "the call is given a lock, semaphore or proxy of multiprocessing, which only children of this process can use"
_INSIDE = "replaces inner parts of ProcessPoolExecutor"
_INIT = "initializers and the number of tasks of a process are not options of ours: processes serve many executors"
_AT_ONCE = "what cannot be pickled is refused by submit(), at once, and not by result()"
_ITSELF = "only this call fails, with the exception itself; theirs breaks the pool"
NOT_OURS = {
    "test_max_workers_too_large": "a limit of Windows for pools",
    "test_killed_child": _PROCESSES,
    "test_processes_terminate": _PROCESSES,
    "test_del_shutdown": _PROCESSES,
    "test_shutdown_no_wait": _PROCESSES,
    "test_idle_process_reuse_one": _PROCESSES,
    "test_idle_process_reuse_multiple": _PROCESSES,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": _PROCESSES,
    "test_python_finalization_error": _INSIDE,
    "test_ressources_gced_in_workers": _SHARED,
    "test_saturation": _SHARED,
    "test_max_tasks_per_child": _INIT,
    "test_max_tasks_per_child_defaults_to_spawn_context": _INIT,
    "test_max_tasks_early_shutdown": _INIT,
    "test_initializer": _INIT,
    "test_spawn": _INIT,
    "test_forkserver": _INIT,
    "test_error_at_task_pickle": _AT_ONCE,
    "test_shutdown_deadlock_pickle": _AT_ONCE,
    "test_error_at_task_unpickle": _ITSELF,
    "test_exit_at_task_unpickle": _ITSELF,
    "test_error_during_result_unpickle_in_result_handler": _ITSELF,
    "test_exit_during_result_unpickle_in_result_handler": _ITSELF,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _INSIDE,
}
# These have their own counterparts in test_executor.py.


class MeshMixin:
    """In place of ProcessPoolForkMixin and its like."""

    worker_count = 5
    executor_kwargs = {}

    def executor_type(self, max_workers=None, mp_context=None):
        return Executor(max_workers)

    def get_context(self):
        return None

    def setUp(self):
        super().setUp()
        self.executor = self.executor_type(self.worker_count)

    def tearDown(self):
        self.executor.shutdown(wait=True)
        self.executor = None
        super().tearDown()


def modules():
    """The modules that have the tests: one until Python 3.11, then a package."""
    base = importlib.import_module("test.test_concurrent_futures")
    if not hasattr(base, "__path__"):
        return [base]
    names = ("executor", "test_as_completed", "test_deadlock", "test_process_pool", "test_shutdown", "test_wait")
    return [importlib.import_module("test.test_concurrent_futures." + n) for n in names]


def run_program(original):
    """assert_python_ok whose programs have our Executor, and our path."""

    def assert_python_ok(*args, **env):
        args = [a.replace("from concurrent.futures import Executor", "from meshnode import Executor") for a in args]
        return original(*args, __isolated=False, PYTHONPATH=PYTHON, **env)

    return assert_python_ok


def main():
    executor_type = MeshMixin.executor_type
    executor_type.__name__ = "Executor"  # what the programs of the tests import
    concurrent.futures.process._RemoteTraceback = RemoteTraceback
    found = {}
    for module in modules():
        for name in ("assert_python_ok", "BrokenProcessPool"):
            if hasattr(module, name):
                ours = WorkerLost if name == "BrokenProcessPool" else run_program(module.assert_python_ok)
                setattr(module, name, ours)
        for name in ("ExecutorTest", "ExecutorShutdownTest", "WaitTests", "AsCompletedTests",
                     "ProcessPoolExecutorTest", "ProcessPoolShutdownTest", "ExecutorDeadlockTest"):
            mixin = getattr(module, name, None)
            if mixin is not None:
                found[name] = mixin
    suite = unittest.TestSuite()
    left_out, seen = set(), set()
    for name, mixin in sorted(found.items()):
        case = type(name, (MeshMixin, mixin, unittest.TestCase), {"__module__": __name__})
        case.__qualname__ = name
        globals()[name] = case  # what is pickled is found by this name
        for test in unittest.defaultTestLoader.getTestCaseNames(case):
            key = next((k for k in (name + "." + test, test) if k in NOT_OURS), None)
            origin = next(c.__name__ for c in mixin.__mro__ if test in vars(c))
            if key is not None:
                left_out.add(key)
            elif (origin, test) not in seen and (len(sys.argv) < 2 or re.search(sys.argv[1], test)):
                seen.add((origin, test))
                suite.addTest(case(test))
    out = io.StringIO()
    result = unittest.TextTestRunner(out, verbosity=2).run(suite)
    ran = result.testsRun
    bad = [t for t, _ in result.failures + result.errors]
    if bad:
        # Some count on a call to be done before another has napped for 1.5 s, which the first call of a function, with all
        # that it imports, is not on a busy machine. What is broken fails twice.
        again = unittest.TestSuite(type(t)(t._testMethodName) for t in bad)
        result = unittest.TextTestRunner(out, verbosity=2).run(again)
    print(json.dumps({
        "ran": ran,
        "skipped": [str(t) + ": " + why for t, why in result.skipped],
        "left_out": {k: NOT_OURS[k] for k in sorted(left_out)},
        "bad": [str(t) + "\n" + tb for t, tb in result.failures + result.errors],
        "text": out.getvalue(),
    }))


if __name__ == "__main__":
    main()
