"""Executor with real nodes: what users rely on, and what must not happen to them."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import time
import unittest
import weakref

from running import LIMIT, Limited, alive, below, mesh, wait_for

from meshnode import BrokenMesh, Client, Executor, RemoteTraceback, TaskTimeout, WorkerLost


def square(x):
    return x * x


def fail_on_seven(x):
    if x == 7:
        raise KeyError("seven")
    return x


def nap(seconds, value=None):
    time.sleep(seconds)
    return value


def mark(path, line):
    with open(path, "a") as f:
        f.write(line + "\n")


def die_on_five(x):
    if x == 5:
        os._exit(3)
    return x


class Thing:
    pass


def thing(_):
    return Thing()


class OneNode(Limited):
    """Tests that share a node with two slots."""

    @classmethod
    def setUpClass(cls):
        cls.stack = unittest.TestCase()
        cls.node = mesh(cls.stack, 1)[0]

    @classmethod
    def tearDownClass(cls):
        cls.stack.doCleanups()

    def setUp(self):
        super().setUp()
        self.client = Client(self.node.dir, patience=10)
        self.addCleanup(self.client.close)

    def executor(self, *args, **kwargs):
        ex = Executor(*args, client=self.client, **kwargs)
        self.addCleanup(ex.shutdown)
        return ex

    def test_hundred_thousand(self):
        with Executor(client=self.client) as ex:
            self.assertEqual(list(ex.map(square, range(100000))), [x * x for x in range(100000)])

    def test_submit(self):
        ex = self.executor()
        fs = [ex.submit(square, i) for i in range(5000)]
        self.assertEqual([f.result(LIMIT) for f in fs], [i * i for i in range(5000)])
        self.assertEqual(fs[0].node, "node0")
        self.assertEqual(set(concurrent.futures.as_completed(fs, LIMIT)), set(fs))
        done, rest = concurrent.futures.wait([ex.submit(nap, 0.2), ex.submit(nap, 30)], 20, concurrent.futures.FIRST_COMPLETED)
        self.assertEqual((len(done), len(rest)), (1, 1))
        self.assertTrue(rest.pop().cancel())

    def test_a_failing_call_does_not_touch_the_others(self):
        ex = self.executor()
        fs = [ex.submit(fail_on_seven, i) for i in range(500)]
        for i, f in enumerate(fs):
            if i == 7:
                with self.assertRaises(KeyError) as cm:
                    f.result(LIMIT)
                self.assertEqual(cm.exception.args, ("seven",))
                self.assertIsInstance(cm.exception.__cause__, RemoteTraceback)
                self.assertIn('raise KeyError("seven")', str(cm.exception.__cause__))
                self.assertIn("node0", str(cm.exception.__cause__))
                self.assertEqual(cm.exception.node, "node0")
            else:
                self.assertEqual(f.result(LIMIT), i)

    def test_a_dying_call_does_not_touch_the_others(self):
        ex = self.executor(1)
        list(ex.map(die_on_five, [0] * 2000))  # now many of them go together
        ex.submit(nap, 0.5)
        fs = [ex.submit(die_on_five, i) for i in range(200)]
        for i, f in enumerate(fs):
            if i == 5:
                with self.assertRaises(WorkerLost):
                    f.result(LIMIT)
                self.assertIsInstance(f.exception(), concurrent.futures.BrokenExecutor)
            else:
                self.assertEqual(f.result(LIMIT), i)
        self.assertEqual(list(ex.map(square, range(10))), [x * x for x in range(10)])

    def test_map_is_ordered_unless_it_need_not_be(self):
        ex = self.executor()
        naps = [0.4, 0.0, 0.0]
        self.assertEqual(list(ex.map(nap, naps, "abc")), list("abc"))
        self.assertEqual(list(ex.map(nap, naps, "abc", ordered=False))[-1], "a")

    def test_map_raises_in_its_place_and_drops_the_rest(self):
        ex = self.executor(2)
        results = ex.map(fail_on_seven, range(10))
        self.assertEqual([next(results) for _ in range(7)], list(range(7)))
        with self.assertRaises(KeyError):
            next(results)
        self.assertEqual(list(results), [])
        slow = ex.map(nap, [0.1] + [60] * 20, timeout=3)
        next(slow)
        with self.assertRaises(concurrent.futures.TimeoutError):
            next(slow)
        self.assertEqual(ex.submit(square, 4).result(20), 16)  # not behind twenty minutes of naps

    def test_map_reads_ahead_only_a_window_if_lazy(self):
        read = []

        def numbers():
            for i in range(10**9):
                read.append(i)
                yield i

        ex = self.executor()
        results = ex.map(square, numbers(), lazy=True)
        self.assertEqual([next(results) for _ in range(1000)], [i * i for i in range(1000)])
        self.assertLess(len(read), 70000)
        results.close()

    def test_map_runs_without_iteration(self):
        path = os.path.join(os.path.dirname(self.node.dir), "marks")
        with Executor(client=self.client) as ex:
            ex.map(mark, [path] * 20, map(str, range(20)))
        with open(path) as f:
            self.assertEqual(sorted(f.read().split(), key=int), [str(i) for i in range(20)])

    def test_max_workers_is_how_many_run_at_once(self):
        ex = self.executor(1)
        path = os.path.join(os.path.dirname(self.node.dir), "busy")

        def alone(path):
            os.mkdir(path)
            time.sleep(0.05)
            os.rmdir(path)

        list(ex.map(alone, [path] * 10))
        with self.assertRaises(FileExistsError):
            list(self.executor(2).map(alone, [path] * 10))

    def test_timeout_ends_the_call_alone(self):
        ex = self.executor(timeout=0.5)
        fs = [ex.submit(nap, t, t) for t in (0, 30, 0)]
        self.assertEqual(fs[0].result(LIMIT), 0)
        with self.assertRaises(TaskTimeout):
            fs[1].result(LIMIT)
        self.assertIsInstance(fs[1].exception(), TimeoutError)
        self.assertEqual(fs[2].result(LIMIT), 0)

    def test_retries(self):
        path = os.path.join(os.path.dirname(self.node.dir), "tries")

        def third_time_lucky(path):
            with open(path, "a") as f:
                f.write("x")
            if os.path.getsize(path) < 3:
                raise OSError("not yet")
            return os.path.getsize(path)

        self.assertEqual(self.executor(retries=5).submit(third_time_lucky, path).result(LIMIT), 3)

    def test_cancel(self):
        ex = self.executor(1)
        running = ex.submit(nap, 60)
        waiting = [ex.submit(nap, 60) for _ in range(5)]
        wait_for(running.running, "the call to be sent")
        for f in waiting:
            self.assertTrue(f.cancel())
            self.assertTrue(f.cancelled())
        begun = time.monotonic()
        self.assertTrue(running.cancel())
        self.assertEqual(ex.submit(square, 3).result(20), 9)
        self.assertLess(time.monotonic() - begun, 20)
        with self.assertRaises(concurrent.futures.CancelledError):
            running.result()
        done = ex.submit(square, 3)
        done.result(LIMIT)
        self.assertFalse(done.cancel())

    def test_cancelled_future_ends_waits(self):
        ex = self.executor(1)
        first, second = ex.submit(nap, 1), ex.submit(nap, 60)
        threading.Timer(0.2, second.cancel).start()
        done, rest = concurrent.futures.wait([first, second], 20)
        self.assertEqual((len(done), len(rest)), (2, 0))

    def test_shutdown(self):
        ex = self.executor(1)
        fs = [ex.submit(nap, 0.05) for _ in range(50)]
        fs[0].result(LIMIT)
        ex.shutdown(cancel_futures=True)
        cancelled = [f for f in fs if f.cancelled()]
        self.assertGreater(len(cancelled), 20)
        self.assertTrue(all(f.done() for f in fs))
        with self.assertRaises(RuntimeError):
            ex.submit(square, 1)

    def test_callbacks(self):
        ex = self.executor()
        called = threading.Event()
        f = ex.submit(nap, 0.2, 5)
        seen = []
        f.add_done_callback(lambda f: (seen.append(f.result()), called.set()))
        # A callback may submit, though it runs in the thread that reads results.
        more = []
        f.add_done_callback(lambda f: more.append(ex.submit(square, f.result())))
        self.assertTrue(called.wait(LIMIT))
        self.assertEqual(seen, [5])
        wait_for(lambda: more, "the second callback")
        self.assertEqual(more[0].result(LIMIT), 25)

    def test_asyncio(self):
        ex = self.executor()

        async def main():
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*[loop.run_in_executor(ex, square, i) for i in range(200)])

        self.assertEqual(asyncio.run(main()), [i * i for i in range(200)])

    def test_threads(self):
        ex = self.executor()
        sums = []

        def work():
            sums.append(sum(f.result(LIMIT) for f in [ex.submit(square, i) for i in range(500)]))
            sums.append(sum(ex.map(square, range(500))))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(LIMIT)
        self.assertEqual(sums, [sum(i * i for i in range(500))] * 12)

    def test_what_calls_print(self):
        out, _ = self.output(
            """
            import sys
            from meshnode import Executor
            def shout(text):
                print("out", text)
                sys.stderr.write("err " + text + "\\n")
            with Executor() as ex:
                f = ex.submit(shout, "a")
                list(ex.map(shout, "bcd"))
            assert f.log == "out a\\nerr a\\n", f.log
            """,
            MESHNODE_DATA_DIR=self.node.dir,
        )
        self.assertEqual(sorted(out.split("\n")), sorted("\n".join("out %s\nerr %s" % (c, c) for c in "abcd").split("\n") + [""]))

    def test_results_are_not_kept(self):
        for result in self.executor().map(thing, range(10)):
            ref = weakref.ref(result)
            del result
            self.assertIsNone(ref())

    def test_arguments_are_not_kept(self):
        class Thing:
            def method(self):
                return 5

        thing = Thing()
        gone = threading.Event()
        ref = weakref.ref(thing, lambda _: gone.set())
        f = self.executor().submit(thing.method)
        del thing
        self.assertEqual(f.result(LIMIT), 5)
        self.assertTrue(gone.wait(LIMIT))
        del ref

    def test_fork(self):
        ex = self.executor()
        pending = ex.submit(nap, 2, "parent")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with Executor(data_dir=self.node.dir) as own:
                    answer = "%d %d" % (own.submit(square, 7).result(LIMIT), ex.submit(square, 8).result(LIMIT))
                os.write(writing, answer.encode())
            except BaseException as e:
                os.write(writing, repr(e).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading) as f:
            self.assertEqual(f.read(), "49 64")
        os.waitpid(child, 0)
        self.assertEqual(pending.result(LIMIT), "parent")
        self.assertEqual(ex.submit(square, 9).result(LIMIT), 81)

    def test_multiprocessing(self):
        ex = self.executor()
        self.assertEqual(ex.submit(square, 2).result(LIMIT), 4)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            self.assertEqual(pool.map(square, range(10)), [i * i for i in range(10)])
        self.assertEqual(ex.submit(square, 3).result(LIMIT), 9)

    def test_jobs_end_with_the_executor(self):
        client = Client(self.node.dir)
        with Executor(client=client, name="to-be-closed") as ex:
            list(ex.map(square, range(10)))
            mine = [j for j in client.jobs() if j["name"] == "to-be-closed"]
            self.assertEqual([j["state"] for j in mine], ["waiting"])  # for more tasks
        wait_for(
            lambda: [j["state"] for j in client.jobs() if j["name"] == "to-be-closed"] == ["done"], "the job to be closed"
        )
        client.close()

    def test_many_functions(self):
        ex = self.executor()
        fs = [ex.submit(lambda x, k=k: x + k, 1) for k in range(150)]
        self.assertEqual([f.result(LIMIT) for f in fs], [1 + k for k in range(150)])
        wait_for(lambda: sum(j["state"] in ("running", "waiting") for j in self.client.jobs()) <= 128, "idle jobs to be closed")

    def test_a_function_that_changed(self):
        ex = self.executor()
        scope = {}
        found = []
        for k in range(3):
            scope["k"] = k
            exec("factor = k\ndef f(x):\n    return x * factor", scope)
            found.append(ex.submit(scope["f"], 10).result(LIMIT))
        self.assertEqual(found, [0, 10, 20])
        scope["factor"] = 7
        self.assertEqual(ex.submit(scope["f"], 10).result(LIMIT), 70)


class Faults(Limited):
    """Nodes that end, and come back or not."""

    def test_node_killed_and_restarted(self):
        node = mesh(self, 1)[0]
        path = os.path.join(os.path.dirname(node.dir), "marks")

        def slowly(i, path):
            time.sleep(0.005)
            with open(path, "a") as f:
                f.write("%d\n" % i)
            return i

        client = Client(node.dir)
        self.addCleanup(client.close)
        with Executor(client=client) as ex:
            fs = [ex.submit(slowly, i, path) for i in range(600)]
            results = ex.map(slowly, range(1000, 1600), [path] * 600)
            fs[50].result(LIMIT)
            node.kill()
            done = sum(f.done() for f in fs)
            self.assertLess(done, 600)
            node.start()
            self.assertEqual([f.result(LIMIT) for f in fs], list(range(600)))
            self.assertEqual(list(results), list(range(1000, 1600)))
            self.assertEqual(ex.submit(square, 3).result(LIMIT), 9)

    def test_node_killed_in_a_stream_of_short_calls(self):
        """What the node accepted, answered and forgot in its last moment."""
        node = mesh(self, 1)[0]
        client = Client(node.dir)
        self.addCleanup(client.close)
        for ordered in (True, False):
            got, began = [], time.monotonic()
            for i, x in enumerate(client.map(square, range(60000), ordered=ordered)):
                got.append(x)
                if i == 20000:
                    node.kill()
                    node.start()
            self.assertEqual(got if ordered else sorted(got), [x * x for x in range(60000)])
            self.assertLess(time.monotonic() - began, 9)  # it does not wait for a program that is there

    def test_node_killed_under_a_detached_job(self):
        node = mesh(self, 1)[0]
        client = Client(node.dir)
        self.addCleanup(client.close)
        job = client.submit_detached(nap, [0.01] * 200, range(200))
        results = job.results()
        got = [next(results) for _ in range(50)]
        node.kill()
        node.start()
        self.assertEqual(got + list(results), list(range(200)))

    def test_node_gone_for_good(self):
        node = mesh(self, 1)[0]
        client = Client(node.dir, patience=1)
        with Executor(client=client) as ex:
            f = ex.submit(nap, 60)
            waiting = [ex.submit(nap, 60) for _ in range(100)]
            results = ex.map(nap, [60, 60])
            wait_for(lambda: any(j["running"] for j in client.jobs()), "the call to run")
            node.kill()
            for f in [f] + waiting:
                with self.assertRaises(BrokenMesh):
                    f.result(LIMIT)
            with self.assertRaises(concurrent.futures.BrokenExecutor):
                next(results)
            with self.assertRaises(BrokenMesh):
                ex.submit(square, 1)
        node.start()
        with Executor(client=client) as ex:
            self.assertEqual(ex.submit(square, 2).result(LIMIT), 4)
        client.close()

    def test_worker_node_killed_midway(self):
        nodes = mesh(self, 3, slots=1)
        client = Client(nodes[0].dir)
        client.wait_for_nodes(3, LIMIT)
        with Executor(client=client) as ex:
            fs = [ex.submit(nap, 0.02, i) for i in range(400)]
            wait_for(lambda: {f.node for f in fs if f.done()} >= {"node1", "node2"}, "results of all nodes")
            nodes[2].kill()
            self.assertEqual([f.result(LIMIT) for f in fs], list(range(400)))
        client.close()

    def test_job_cancelled_by_its_owner(self):
        node = mesh(self, 1)[0]
        client = Client(node.dir)
        with Executor(client=client) as ex:
            fs = [ex.submit(nap, 60) for _ in range(5)]
            job = wait_for(lambda: [j for j in client.jobs() if j["running"]], "the call to run")[0]
            node.cli("cancel", job["id"])
            for f in fs[:2]:
                with self.assertRaises(concurrent.futures.CancelledError):
                    f.result(LIMIT)
            for f in fs:
                f.cancel()
            self.assertEqual(ex.submit(square, 2).result(LIMIT), 4)
        client.close()


class PrivateNodes(Limited):
    """Programs where no node runs."""

    def test_first_result(self):
        out, _ = self.output(
            """
            import time
            begun = time.monotonic()
            from meshnode import Executor
            with Executor() as ex:
                assert ex.submit(pow, 2, 10).result() == 1024
                print(time.monotonic() - begun)
            """
        )
        self.assertLess(float(out), 2.0)

    def test_nothing_is_left(self):
        for ending in ("", "import os; os._exit(1)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "1/0"):
            process = self.program(
                """
                import os, sys, time
                from meshnode import Client
                client = Client()
                client.submit(pow, 2, 10).result()
                client.submit(time.sleep, 0.1)
                print("ready", client.data_dir, flush=True)
                sys.stdin.read()
                time.sleep(0.3)
                """
                + ending
            )
            line = process.stdout.readline().decode().split()
            self.assertEqual(line[0], "ready", process.stderr.read().decode() if not line else line)
            children = below(process.pid)
            self.assertGreater(len(children), 1)
            process.wait(LIMIT)
            wait_for(lambda: not alive(children), "the end of the node and its workers after %r" % ending)
            if "KILL" not in ending:
                wait_for(lambda: not os.path.exists(line[1]), "the directory to go")

    def test_forked_child_does_not_keep_the_node(self):
        process = self.program(
            """
            import os, time
            from meshnode import Client
            client = Client()
            client.submit(pow, 2, 10).result()
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            print("ready", child, client._node.pid, flush=True)
            os._exit(0)
            """
        )
        _, child, node = process.stdout.readline().decode().split()
        try:
            wait_for(lambda: not alive([int(node)]), "the end of the node")
            self.assertEqual(alive([int(child)]), [int(child)])
        finally:
            os.kill(int(child), signal.SIGKILL)

    def test_private_node_killed(self):
        out, _ = self.output(
            """
            import os, signal, time
            from meshnode import Client
            def nap(x):
                time.sleep(0.01)
                return x
            with Client() as client:
                fs = [client.submit(nap, i) for i in range(200)]
                fs[10].result()
                os.kill(client._node.pid, signal.SIGKILL)
                assert [f.result(50) for f in fs] == list(range(200))
                print("all")
            """
        )
        self.assertEqual(out, "all\n")

    def test_no_binary(self):
        _, err = self.output("from meshnode import Executor\nExecutor().submit(pow, 1, 2)", code=1, MESHNODE_BIN="/nowhere/meshnode")
        self.assertIn("NoNodeError: MESHNODE_BIN is /nowhere/meshnode", err)

    def test_pending_work_is_finished_at_the_end(self):
        out, err = self.output(
            """
            import time
            from meshnode import Executor
            def late(x):
                time.sleep(0.3)
                print("late", x)
            ex = Executor()
            for i in range(3):
                ex.submit(late, i)
            """
        )
        self.assertEqual(sorted(out.split("\n")), ["", "late 0", "late 1", "late 2"])
        self.assertEqual(err, "")

    def test_ctrl_c_while_waiting(self):
        program = """
            import contextlib, time
            from meshnode import Executor
            with %s as ex:
                ex.submit(pow, 1, 2).result()
                fs = [ex.submit(time.sleep, 60) for _ in range(20)]
                print("ready", flush=True)
                fs[0].result()
            """
        for executor in ("Executor()", "contextlib.nullcontext(Executor())"):
            with self.subTest(executor):
                self.interrupt(self.program(program % executor))

    def interrupt(self, process):
        self.assertEqual(process.stdout.readline(), b"ready\n")
        children = below(process.pid)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        self.assertIn(b"KeyboardInterrupt", err)
        self.assertEqual(err.count(b"Traceback"), 1, err.decode())
        self.assertEqual(process.returncode, -signal.SIGINT)
        wait_for(lambda: not alive(children), "the end of the node and its workers")

    def test_submit_after_the_end(self):
        out, err = self.output(
            """
            import atexit
            @atexit.register
            def last():
                try:
                    ex.submit(id, None)
                except RuntimeError as e:
                    print(e)
            from meshnode import Executor
            ex = Executor()
            ex.submit(id, 42).result()
            """
        )
        self.assertEqual(out, "cannot schedule new futures after interpreter shutdown\n")


if __name__ == "__main__":
    unittest.main()
