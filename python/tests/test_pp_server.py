"""ppserver: its options, and the node that it starts."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import unittest

from pp import _processors, server
from pp_running import Case, await_gone, binary, children, end, environment


class Options(unittest.TestCase):
    """The command line."""

    def arguments(self, *options):
        settings = server.parse(list(options))
        return settings, settings.node_arguments("/data")

    def test_defaults(self):
        settings, arguments = self.arguments()
        self.assertEqual(
            arguments,
            ["up", "--with-parent", "--data-dir", "/data", "--listen", "/ip4/0.0.0.0/tcp/60000", "--slots"]
            + [str(_processors.detect()), "--no-mdns"],
        )
        self.assertEqual((settings.notes, settings.timeout, settings.pid_file), ([], None, None))

    def test_all(self):
        settings, arguments = self.arguments(
            "-d", "-f", "%(message)s", "-a", "-r", "-n", "2", "-i", "127.0.0.1", "-b", "255.255.255.255", "-p", "61000", "-w", "3",
            "-s", "secret", "-t", "10", "-k", "60", "-P", "/pid",
        )
        self.assertEqual(
            arguments,
            ["up", "--with-parent", "--data-dir", "/data", "--listen", "/ip4/127.0.0.1/tcp/61000", "--slots", "3"]
            + ["--secret-file", "-", "--log-level", "debug"],
        )
        self.assertEqual((settings.timeout, settings.pid_file, settings.secret), (10.0, "/pid", "secret"))
        self.assertEqual([n.split()[0] for n in settings.notes], ["-f", "-r", "-n", "-b", "-k"])
        self.assertTrue(all("\n" not in n for n in settings.notes))

    def test_joined_and_none(self):
        _, arguments = self.arguments("-adw0", "-p7", "-i", "::1")
        self.assertEqual(
            arguments,
            ["up", "--with-parent", "--data-dir", "/data", "--listen", "/ip6/::1/tcp/7", "--no-work", "--log-level", "debug"],
        )

    def test_wrong(self):
        for options in (
            ["-x"], ["-w"], ["-w", "x"], ["-w", "-1"], ["-p", "70000"], ["-p", "1.5"], ["-i", "here"], ["-t", "soon"], ["-t", "-1"],
            ["extra"], ["--what"], ["-s", ""], ["-s", "two\nlines"], ["-c", "/no/such/file"],
        ):
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                self.assertEqual(server.main(options), 2, options)
            self.assertEqual(len(err.getvalue().splitlines()), 1, err.getvalue())
            self.assertIn(options[0], err.getvalue())

    def test_help(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(server.main(["-h"]), 0)
        for option in "hdafrncibpwstkP":
            self.assertRegex(out.getvalue(), r"(?m)-\[?[a-zA-Z]*%s\b|-%s " % (option, option))


class File(Case):
    """Option -c."""

    def test_settings(self):
        path = self.write(
            """
            [general]
            secret = 'a word'
            debug = True
            workers = 4
            pid_file = /run/pp
            restart = no
            [network]
            autodiscovery = yes
            interface = 127.0.0.1
            port = 61001
            timeout = 7
            colour = blue
            """,
            "pp.conf",
        )
        settings = server.parse(["-c", path, "-w", "2"])
        self.assertEqual(
            settings.node_arguments("/d"),
            ["up", "--with-parent", "--data-dir", "/d", "--listen", "/ip4/127.0.0.1/tcp/61001", "--slots", "2"]
            + ["--secret-file", "-", "--log-level", "debug"],
        )
        self.assertEqual((settings.timeout, settings.pid_file), (7.0, "/run/pp"))
        self.assertEqual(settings.secret, "a word")
        self.assertEqual(len(settings.notes), 1, settings.notes)
        self.assertIn("colour", settings.notes[0])

    def test_wrong(self):
        for text, what in (("debug = 1", "-c"), ("[general]\nworkers = many", "workers"), ("[general]\ndebug = perhaps", "debug")):
            path = self.write(text, "wrong.conf")
            with self.assertRaisesRegex(server.Usage, what):
                server.parse(["-c", path])


class Node(Case):
    """The node that it starts."""

    def serve(self, *options, **more):
        module = more.pop("module", "pp.server")
        data_dir = os.path.join(self.dir, "data")
        process = subprocess.Popen(
            [sys.executable, "-m", module, "-i", "127.0.0.1", "-p", "0"] + list(options), env=environment(data_dir),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
        )
        self.addCleanup(end, process)
        self.assertRegex(process.stdout.readline(), "^ready: ")
        return process, data_dir

    def status(self, data_dir):
        out = subprocess.check_output([binary(), "status", "--json"], env=environment(data_dir), timeout=30)
        return json.loads(out.decode())

    def test_serves_programs(self):
        pid_file = os.path.join(self.dir, "pid")
        process, data_dir = self.serve("-w", "2", "-P", pid_file, "-s", "some secret")
        with open(pid_file) as f:
            self.assertEqual(int(f.read()), process.pid)
        self.assertEqual(self.status(data_dir)["slots"], 2)
        ran = self.run_source(
            """
            import pp

            def f(x):
                return x + 1

            server = pp.Server(2, secret="some secret")
            print([server.submit(f, (n,))() for n in range(3)])
            """,
            data_dir=data_dir,
        )
        self.assertEqual(ran.out, "[1, 2, 3]\n")
        self.assertEqual(ran.err, "")
        if hasattr(signal, "SIGUSR1"):
            process.send_signal(signal.SIGUSR1)
            while True:
                line = process.stderr.readline()
                self.assertTrue(line)
                if re.search("0 of 2 workers busy", line):
                    break
        process.terminate()
        self.assertEqual(process.wait(20), 0)
        self.assertFalse(os.path.exists(pid_file))

    @unittest.skipUnless(sys.platform.startswith("linux"), "looks at processes in /proc")
    def test_ends_with_it(self):
        process, _ = self.serve(module="ppft.server")
        below = children(process.pid)
        self.assertTrue(below)
        process.kill()
        process.wait(20)
        self.assertEqual(await_gone(below, 10), [])

    def test_timeout(self):
        process, data_dir = self.serve("-t", "1", module="pp")
        begun = time.monotonic()
        self.assertEqual(process.wait(30), 0)
        self.assertLess(time.monotonic() - begun, 20)
        self.assertIn("stopping", process.stderr.read())

    def test_second_one(self):
        _, data_dir = self.serve()
        again = subprocess.run(
            [sys.executable, "-m", "ppft", "-p", "0"], env=environment(data_dir), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, universal_newlines=True,
        )
        self.assertEqual(again.returncode, 125)
        self.assertEqual(again.stdout, "")
        self.assertTrue(again.stderr)


class Processors(Case):
    """What "autodetect" finds."""

    def quota(self, groups, mounts, files):
        for name, text in files.items():
            path = os.path.join(self.dir, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as f:
                f.write(text)
        return _processors._quota(
            self.write(groups, "cgroup"), self.write(mounts.replace("DIR", self.dir), "mountinfo")
        )

    def test_version_2(self):
        mounts = "30 23 0:26 / DIR/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
        group = "0::/a/b\n"
        self.assertEqual(self.quota(group, mounts, {"cg/a/b/cpu.max": "150000 100000\n"}), 1.5)
        self.assertEqual(self.quota(group, mounts, {"cg/a/cpu.max": "100000 100000\n"}), 1.0)  # those above count
        self.assertEqual(self.quota(group, mounts, {"cg/a/cpu.max": "max 100000\n"}), 1.5)
        self.assertIsNone(self.quota(group, mounts, {"cg/a/b/cpu.max": "max 100000\n"}))

    def test_version_1(self):
        mounts = "31 23 0:27 / DIR/cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        files = {"cg/cpu/x/cpu.cfs_quota_us": "50000\n", "cg/cpu/x/cpu.cfs_period_us": "100000\n"}
        self.assertEqual(self.quota("4:cpu,cpuacct:/x\n3:memory:/y\n", mounts, files), 0.5)
        self.assertIsNone(self.quota("4:cpu,cpuacct:/x\n", mounts, {"cg/cpu/x/cpu.cfs_quota_us": "-1\n"}))

    def test_inside_of_a_container(self):
        mounts = "30 23 0:26 /docker/abc DIR/cg rw - cgroup2 cgroup rw\n"
        self.assertEqual(self.quota("0::/docker/abc\n", mounts, {"cg/cpu.max": "200000 100000\n"}), 2.0)
        mounts = "30 23 0:26 /../.. DIR/cg rw - cgroup2 cgroup rw\n"
        self.assertEqual(self.quota("0::/\n", mounts, {}), 2.0)

    def test_nothing(self):
        self.assertIsNone(self.quota("", "", {}))
        self.assertIsNone(_processors._quota("/no/such", "/no/such"))
        self.assertGreaterEqual(_processors.detect(), 1)


if __name__ == "__main__":
    unittest.main()
