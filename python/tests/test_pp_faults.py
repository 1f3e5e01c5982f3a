"""What Parallel Python does wrong, and this does not. Each test is a program with a time limit, which real pp does not keep,
or whose output it does not have."""

import os
import re
import sys
import time
import unittest

from pp_running import SIGKILL, Case, Testnet, await_gone, children, stats_rows


class Faults(Case):
    """On a private node."""

    def check(self, source, expected, limit=30.0, **options):
        ran = self.run_source(source, limit=limit, **options)
        self.assertEqual(ran.out, expected)
        return ran

    def test_dead_worker(self):
        """pp: the task hangs, and every later one that its worker would have had."""
        out = self.run_source(
            """
            import os, signal
            import pp

            def die(how):
                if how == "exit":
                    os._exit(7)
                os.kill(os.getpid(), signal.SIGKILL)

            def fine(x):
                return x + 1

            server = pp.Server(1)
            print(server.submit(fine, (1,))())
            for how in ("exit", "kill"):
                task = server.submit(die, (how,), (), ("os", "signal"))
                later = [server.submit(fine, (n,)) for n in range(5)]
                print(task(), type(task.exception()).__name__, [t() for t in later])
            server.print_stats()
            """,
            limit=30.0,
        ).out
        self.assertEqual(out.count("An error has occured during the function execution\n"), 2, out)
        self.assertEqual(out.count("None WorkerLost [1, 2, 3, 4, 5]\n"), 2, out)
        self.assertTrue(out.startswith("2\n"), out)

    def test_innocent_tasks_beside_a_dead_worker(self):
        """Of many short tasks that share a worker process, only those that kill it fail."""
        self.check(
            """
            import os
            import pp

            def work(n):
                if n in (100, 300):
                    os._exit(1)
                return n

            server = pp.Server(2)
            tasks = [server.submit(work, (n,), (), ("os",)) for n in range(500)]
            bad = [t.tid for t in tasks if t.exception() is not None]
            print(bad, sum(t() for t in tasks if t.tid not in bad) == sum(range(500)) - 400)
            """,
            "[100, 300] True\n",
        )

    def test_unpicklable_result(self):
        """pp: None without a word, and the next task hangs."""
        out = self.run_source(
            """
            import threading
            import pp

            def lock():
                return threading.Lock()

            def generator():
                return (i for i in range(3))

            def fine(x):
                return x + 1

            server = pp.Server(1)
            for f in (lock, generator):
                task = server.submit(f, (), (), ("threading",))
                print(task(), isinstance(task.exception(), TypeError), server.submit(fine, (1,))())
            """
        ).out
        self.assertEqual(out.count("None True 2\n"), 2, out)
        self.assertEqual(out.count("An error has occured"), 2, out)
        self.assertRegex(out, "TypeError: .*lock")

    def test_output_that_fills_pipes(self):
        """pp: 200 kB on stderr, or what a child writes to stdout, blocks or breaks the worker's pipe: hang."""
        self.check(
            """
            import os, subprocess, sys
            import pp

            def loud(n):
                sys.stderr.write("e" * n)
                sys.stdout.write("o" * n)
                os.write(2, b"2" * n)
                os.write(1, b"1" * n)
                return n

            def child():
                subprocess.call("echo from a child; echo more >&2", shell=True)
                return os.system("exit 3") >> 8

            def fine(x):
                return x + 1

            server = pp.Server(1)
            task = server.submit(loud, (200000,), (), ("sys", "os"))
            sys.stdout = open(os.devnull, "w")
            value = task()
            sys.stdout = sys.__stdout__
            print(value, server.submit(fine, (1,))())
            print(server.submit(child, (), (), ("subprocess", "os"))())
            print(server.submit(fine, (2,))())
            """,
            "200000 2\nfrom a child\nmore\n3\n3\n",
        )

    def test_task_reads_stdin(self):
        """pp: it eats the worker's next task: hang."""
        self.check(
            """
            import sys
            import pp

            def read():
                return sys.stdin.read(), sys.stdin.readline()

            def ask():
                try:
                    return input()
                except EOFError:
                    return "nobody answers"

            def fine(x):
                return x + 1

            server = pp.Server(1)
            print(server.submit(read, (), (), ("sys",))(), server.submit(fine, (1,))())
            print(server.submit(ask)(), server.submit(fine, (2,))())
            """,
            "('', '') 2\nnobody answers 3\n",
        )

    def test_callback_that_raises(self):
        """pp: wait() never returns."""
        ran = self.check(
            """
            import pp

            def add(a, b):
                return a + b

            seen = []

            def callback(result):
                seen.append(result)
                raise RuntimeError("callback of %s" % result)

            server = pp.Server(2)
            tasks = [server.submit(add, (n, n), callback=callback) for n in range(4)]
            server.wait()
            print(sorted(seen), [t() for t in tasks], server.submit(add, (1, 2))())
            """,
            "[0, 2, 4, 6] [0, 2, 4, 6] 3\n",
        )
        for n in (0, 2, 4, 6):
            self.assertIn("RuntimeError: callback of %d\n" % n, ran.err)

    def test_prints_have_nothing_in_front(self):
        """pp: from the second task of a worker on, NUL bytes, as many as were printed before."""
        self.check(
            """
            import pp

            def talk(n):
                print("task %d" % n)
                return n

            server = pp.Server(1)
            for task in [server.submit(talk, (n,)) for n in range(20)]:
                task()
            """,
            "".join("task %d\n" % n for n in range(20)),
        )

    def test_functions_redefined_in_a_loop(self):
        """pp: 29 of 60 results were another function's."""
        self.check(
            """
            import pp

            import linecache

            def make(n):
                source = "def f(x):\\n    return (%d, x)\\n" % n
                file = "made-%d" % n
                linecache.cache[file] = (len(source), None, source.splitlines(True), file)
                exec(compile(source, file, "exec"), globals())

            server = pp.Server(2)
            wrong = 0
            for n in range(60):
                make(n)
                wrong += server.submit(f, (n * n,))() != (n, n * n)
            print(wrong)
            tasks = []
            for n in range(60):
                make(n)
                tasks.append(server.submit(f, (n,)))
            print(sum(task() != (n, n) for n, task in enumerate(tasks)))
            """,
            "0\n0\n",
        )

    def test_globals_do_not_leak(self):
        """pp: what a task leaves in its globals is there in later tasks, also of other clients."""
        self.check(
            """
            import pp

            def leave():
                global leftover
                leftover = "secret"
                globals()["other"] = 1
                return "left"

            def look():
                return sorted(n for n in globals() if n in ("leftover", "other", "leave"))

            server = pp.Server(1)
            print(server.submit(leave)(), server.submit(look)(), server.submit(leave)(), server.submit(look)())
            """,
            "left [] left []\n",
        )

    def test_ncpus_0_then_1(self):
        """pp: what was submitted at ncpus=0 never starts."""
        self.check(
            """
            import time
            import pp

            def f(x):
                return x + 1

            server = pp.Server(0)
            tasks = [server.submit(f, (n,)) for n in range(10)]
            time.sleep(0.3)
            print(any(t.finished for t in tasks))
            server.set_ncpus(1)
            print([t() for t in tasks])
            """,
            "False\n%s\n" % list(range(1, 11)),
        )

    def test_callback_waits_for_a_task(self):
        """pp: a callback keeps its worker, and if each waits for another task, all hang."""
        self.check(
            """
            import pp

            def inc(x):
                return x + 1

            results = []
            server = pp.Server(1)

            def callback(result):
                results.append(server.submit(inc, (result,))())

            for n in range(5):
                server.submit(inc, (n,), callback=callback)
            server.wait()
            print(sorted(results))
            """,
            "[2, 3, 4, 5, 6]\n",
        )

    def test_unreachable_node(self):
        """pp: silence, and with ncpus=0 the program waits for ever."""
        for address in ("127.0.0.1:1", "no-such-host.invalid", "nobody"):
            ran = self.run_source(
                """
                import sys, time
                import pp

                def f(x):
                    return x + 1

                begun = time.time()
                server = pp.Server(1, ppservers=(sys.argv[1],))
                took = time.time() - begun
                print(server.submit(f, (1,))(), took < 5, server.get_active_nodes())
                """,
                address,
                limit=20.0,
            )
            self.assertEqual(ran.out, "2 True {'local': 1}\n")
            self.assertIn(address, ran.err)
            self.assertLessEqual(len(ran.err.splitlines()), 2, ran.err)

    def test_unreachable_node_and_nothing_here(self):
        ran = self.run_source(
            """
            import pp

            def f(x):
                return x + 1

            try:
                server = pp.Server(0, ppservers=("127.0.0.1:1",))
            except ConnectionError as e:
                print("127.0.0.1:1" in str(e))
            """,
            limit=20.0,
        )
        self.assertEqual(ran.out, "True\n")


@unittest.skipUnless(sys.platform.startswith("linux"), "looks at processes in /proc")
class Processes(Case):
    """Nothing is left behind."""

    PROGRAM = """
        import sys, time
        import pp

        def nap(seconds):
            time.sleep(seconds)
            return seconds

        server = pp.Server(2)
        print(server.submit(nap, (0,), (), ("time",))(), flush=True)
        tasks = [server.submit(nap, (60,), (), ("time",)) for _ in range(3)]
        time.sleep(0.2)
        print("ready", flush=True)
        if sys.argv[1] == "exit":
            sys.exit(0)
        if sys.argv[1] == "raise":
            raise SystemExit(3)
        time.sleep(60)
        """

    def running(self, how):
        """Starts the program and returns it with the processes below it, once it is ready."""
        process = self.start(self.write(self.PROGRAM), how)
        self.assertEqual(process.stdout.readline(), "0\n")
        below = children(process.pid)
        self.assertEqual(process.stdout.readline(), "ready\n")
        below.update(children(process.pid))
        return process, below

    def test_after_exit(self):
        for how, code in (("exit", 0), ("raise", 3)):
            process, below = self.running(how)
            begun = time.monotonic()
            process.wait(30)
            self.assertEqual(process.returncode, code)
            self.assertLess(time.monotonic() - begun, 7)
            self.assertEqual(await_gone(below, 5), [], below)
            self.assertEqual(process.stderr.read(), "")

    def test_after_kill(self):
        process, below = self.running("wait")
        self.assertTrue(any("meshnode" in c for c in below.values()), below)
        os.kill(process.pid, SIGKILL)
        process.wait(30)
        self.assertEqual(await_gone(below, 10), [], below)

    def test_after_destroy(self):
        ran = self.run_source(
            """
            import os, time
            import pp

            def below():
                return os.popen("ps -o pid= --ppid %d" % os.getpid()).read().split()

            server = pp.Server(1)
            server.submit(len, ("abc",))()
            server.destroy()
            print(open("/proc/self/task/%d/children" % os.getpid()).read().split())
            """
        )
        self.assertEqual(ran.out, "[]\n")

    def test_first_result(self):
        """Where no node runs, the first result is there within two seconds, Python's own start included."""
        program = self.write(
            """
            import pp

            def f(x):
                return x + 1

            print(pp.Server().submit(f, (1,))())
            """
        )
        best = min(self.run_program(program).seconds for _ in range(3))
        self.assertLess(best, 2.0)


class Mesh(Case):
    """On several nodes."""

    def test_three_nodes(self):
        """With ncpus=0 the other nodes do the work; print_stats shows each with its count."""
        net = Testnet(self, 3)
        out = self.run_source(
            """
            import time
            import pp

            def nap(n):
                time.sleep(0.05)
                return n * n

            server = pp.Server(0, ppservers=("*",))
            deadline = time.time() + 20
            while len(server.get_active_nodes()) < 3 and time.time() < deadline:
                time.sleep(0.05)
            nodes = server.get_active_nodes()
            print(nodes["local"], sorted(v for k, v in nodes.items() if k != "local"))
            tasks = [server.submit(nap, (n,), (), ("time",)) for n in range(60)]
            print([t() for t in tasks] == [n * n for n in range(60)])
            server.print_stats()
            server.set_ncpus(1)
            for t in [server.submit(nap, (n,), (), ("time",)) for n in range(60)]:
                t()
            server.print_stats()
            """,
            data_dir=net.data_dir(1),
        ).out
        self.assertTrue(out.startswith("0 [1, 1]\nTrue\nJob execution statistics:\n"), out)
        first, second = out.split("Job execution statistics:\n")[1:]
        rows = stats_rows(first)
        self.assertEqual(set(rows), {"node2", "node3"}, out)
        self.assertEqual(sum(r[0] for r in rows.values()), 60, out)
        self.assertTrue(all(r[0] >= 10 for r in rows.values()), out)
        for jobs, percent, total, each in rows.values():
            self.assertAlmostEqual(percent, 100.0 * jobs / 60, places=1)
            self.assertAlmostEqual(each, total / jobs, places=4)
            self.assertTrue(0.05 <= each < 1, out)
        rows = stats_rows(second)
        self.assertEqual(set(rows), {"local", "node2", "node3"}, out)
        self.assertEqual(sum(r[0] for r in rows.values()), 120, out)

    def test_node_killed(self):
        """A node that dies in the middle changes nothing in the results."""
        net = Testnet(self, 3)
        process = self.start(
            self.write(
                """
                import time
                import pp

                def nap(n):
                    time.sleep(0.1)
                    return n + 1

                server = pp.Server(0)
                tasks = [server.submit(nap, (n,), (), ("time",)) for n in range(60)]
                while sum(t.finished for t in tasks) < 10:
                    time.sleep(0.01)
                print("now", flush=True)
                print([t() for t in tasks] == list(range(1, 61)), flush=True)
                server.print_stats()
                """
            ),
            data_dir=net.data_dir(1),
        )
        self.assertEqual(process.stdout.readline(), "now\n")
        net.kill(3)
        out, err = process.communicate(timeout=60)
        self.assertTrue(out.startswith("True\n"), out + err)
        self.assertEqual(sum(r[0] for r in stats_rows(out).values()), 60, out)

    def test_node_frozen(self):
        """pp: the tasks of a node that is frozen hang for up to an hour."""
        net = Testnet(self, 2)
        process = self.start(
            self.write(
                """
                import time
                import pp

                def nap(n):
                    time.sleep(0.05)
                    return n + 1

                server = pp.Server(1)
                tasks = [server.submit(nap, (n,), (), ("time",)) for n in range(80)]
                while "node2" not in server.get_stats():
                    time.sleep(0.01)
                print("now", flush=True)
                print([t() for t in tasks] == list(range(1, 81)), flush=True)
                """
            ),
            data_dir=net.data_dir(1),
        )
        self.assertEqual(process.stdout.readline(), "now\n")
        net.stop(2)
        self.addCleanup(net.cont, 2)
        out, err = process.communicate(timeout=40)
        self.assertEqual(out, "True\n", err)

    def test_latency_to_another_node(self):
        """pp: 92 ms, for want of TCP_NODELAY."""
        net = Testnet(self, 2)
        out = self.run_source(
            """
            import time
            import pp

            def f(x):
                return x

            server = pp.Server(0)
            server.submit(f, (0,))()
            took = []
            for n in range(40):
                begun = time.time()
                server.submit(f, (n,))()
                took.append(time.time() - begun)
            print(sorted(took)[20])
            """,
            data_dir=net.data_dir(1),
        ).out
        self.assertLess(float(out), 0.045)

    def test_stranger(self):
        """pp: a node without the secret sees sources and arguments. Here it is told nothing, and the program says why."""
        net, other = Testnet(self, 1), Testnet(self, 1)
        with open(os.path.join(other.dir, "net", "1.listen")) as f:
            address = "%s:%s" % re.match(r"/ip4/([0-9.]+)/tcp/(\d+)", f.read()).groups()
        ran = self.run_source(
            """
            import sys, time
            import pp

            def f(x):
                return x + 1

            begun = time.time()
            server = pp.Server(1, ppservers=(sys.argv[1],))
            print(time.time() - begun < 5, [server.submit(f, (n,))() for n in range(5)], server.get_active_nodes())
            server.print_stats()
            """,
            address,
            data_dir=net.data_dir(1),
            limit=30.0,
        )
        self.assertTrue(ran.out.startswith("True [1, 2, 3, 4, 5] {'local': 1}\n"), ran.out)
        self.assertEqual(set(stats_rows(ran.out)), {"local"})
        self.assertIn(address, ran.err)
        self.assertIn("[]", other.node(1, "jobs", "-a", "--json"))

    def test_client_killed(self):
        """pp: of ten tasks eight are lost. A job that is submitted detached goes on, and the program's next run has it all."""
        net = Testnet(self, 1, slots=2)
        submit = self.write(
            """
            import os, signal, sys, time
            from meshnode import Client

            def work(n):
                time.sleep(0.2)
                return n * n

            client = Client()
            if len(sys.argv) == 1:
                print(client.submit_detached(work, range(10)).id, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            print(sorted(client.job(sys.argv[1]).results()))
            """
        )
        ran = self.run_program(submit, data_dir=net.data_dir(1), code=-SIGKILL)
        job = ran.out.strip()
        self.assertEqual(self.run_program(submit, job, data_dir=net.data_dir(1)).out, "%s\n" % [n * n for n in range(10)])

    def test_ppservers(self):
        """Members by name and by address; what is not there is said, and the program goes on."""
        net = Testnet(self, 2)
        with open(os.path.join(net.dir, "net", "2.listen")) as f:
            address = "%s:%s" % re.match(r"/ip4/([0-9.]+)/tcp/(\d+)", f.read()).groups()
        program = self.write(
            """
            import sys, time
            import pp

            def f(x):
                return x + 1

            begun = time.time()
            server = pp.Server(0, ppservers=tuple(sys.argv[1:]))
            print(time.time() - begun < 5, [server.submit(f, (n,))() for n in range(5)])
            print(sorted(server.get_active_nodes().items()), sorted(server.get_stats()))
            """
        )
        for named in (["node2"], [address], ["node2", address, "*", "10.0.*.*:60000"]):
            ran = self.run_program(program, *named, data_dir=net.data_dir(1))
            self.assertEqual(ran.out, "True [1, 2, 3, 4, 5]\n[(%r, 1), ('local', 0)] ['local', 'node2']\n" % address, ran.err)
            self.assertEqual(ran.err, "")
        for wrong in ("nobody", "127.0.0.1:1", "10.255.255.1:60000"):
            ran = self.run_program(program, "node2", wrong, data_dir=net.data_dir(1))
            self.assertTrue(ran.out.startswith("True [1, 2, 3, 4, 5]\n"), ran.out)
            self.assertEqual(len(ran.err.splitlines()), 1, ran.err)
            self.assertIn(wrong, ran.err)

    def test_clients_share_a_node(self):
        """pp: task globals leak to other clients. ncpus of one client is not that of another, nor the node's."""
        net = Testnet(self, 1, slots=2)
        leave = self.write(
            """
            import pp

            def leave():
                global leftover
                leftover = "secret"
                return "left"

            server = pp.Server(2)
            print([server.submit(leave)() for _ in range(4)])
            """,
            "leave.py",
        )
        look = self.write(
            """
            import time
            import pp

            def look(n):
                time.sleep(0.1)
                return "leftover" in globals()

            server = pp.Server(1)
            begun = time.time()
            print(any([t() for t in [server.submit(look, (n,), (), ("time",)) for n in range(8)]]))
            print(time.time() - begun > 0.8)
            """,
            "look.py",
        )
        for _ in range(2):
            self.assertEqual(self.run_program(leave, data_dir=net.data_dir(1)).out, "['left', 'left', 'left', 'left']\n")
            self.assertEqual(self.run_program(look, data_dir=net.data_dir(1)).out, "False\nTrue\n")
        self.assertIn('"slots":2', net.node(1, "status", "--json").replace(" ", ""))


if __name__ == "__main__":
    unittest.main()
