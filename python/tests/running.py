"""How the tests of the client run nodes and programs: real processes in folders that are removed, with time limits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.dirname(HERE)
ROOT = os.path.dirname(PYTHON)
if PYTHON not in sys.path:
    sys.path.insert(0, PYTHON)
LIMIT = 60.0
"""Seconds for what takes one on an idle machine."""


def binary():
    """The path of meshnode's binary; `make build` makes it."""
    path = os.environ.get("MESHNODE_BIN") or os.path.join(ROOT, "bin", "meshnode" + (".exe" if os.name == "nt" else ""))
    if not os.path.exists(path):
        raise unittest.SkipTest("no binary of meshnode: make build, or name one in MESHNODE_BIN")
    return os.path.abspath(path)


def environment(**more):
    """The environment without what would point to another node."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_") or k == "MESHNODE_CACHE_DIR"}
    env.update(MESHNODE_BIN=binary(), PYTHONPATH=PYTHON, PYTHONUNBUFFERED="1")
    env.update(more)
    return env


class Node:
    """A node in a folder of its own."""

    def __init__(self, directory, name, slots=2, more=()):
        self.dir, self.name = directory, name
        self.more = ["--slots", str(slots)] + list(more)
        self.process = None
        self.id = ""

    def start(self):
        command = [binary(), "up", "--data-dir", self.dir, "--name", self.name, "--no-mdns", "--with-parent"]
        command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--log-level", "error"] + self.more
        with open(self.dir + ".log", "ab") as log:
            self.process = subprocess.Popen(
                command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        guard = threading.Timer(LIMIT, self.process.kill)
        guard.start()
        try:
            line = self.process.stdout.readline().decode()
        finally:
            guard.cancel()
        if not line.startswith("ready: "):
            with open(self.dir + ".log") as log:
                raise AssertionError("node %s said %r\n%s" % (self.name, line, log.read()))
        self.id = line.split()[2]
        return self

    def kill(self):
        """Ends it as a crash would."""
        self.process.kill()
        self.stop()

    def stop(self):
        """Ends it, if it runs."""
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                pipe.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def cli(self, *arguments):
        """What a command prints."""
        command = [binary()] + list(arguments) + ["--data-dir", self.dir]
        return subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=LIMIT).stdout.decode()

    def json(self, *arguments):
        return json.loads(self.cli(*arguments, "--json"))


def mesh(case, n, slots=2, more=()):
    """n nodes of one mesh and one owner, which end with the test."""
    root = tempfile.mkdtemp(prefix="mn-")
    case.addCleanup(shutil.rmtree, root, ignore_errors=True)
    nodes = [Node(os.path.join(root, str(i)), "node%d" % i, slots, more) for i in range(n)]
    for node in nodes:
        case.addCleanup(node.stop)
    nodes[0].start()
    for node in nodes[1:]:
        node.start()
        node.cli("join", nodes[0].cli("invite", "--mine").strip())
    wait_for(lambda: all(sum(p["state"] == "connected" for p in node.json("peers")) == n - 1 for node in nodes), "the mesh")
    return nodes


def wait_for(true, what, limit=LIMIT):
    """Waits for something to become true."""
    end = time.monotonic() + limit
    while True:
        value = true()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("%s: not within %.0f s" % (what, limit))
        time.sleep(0.02)


def alive(pids):
    """Which of these processes still are, zombies left out."""
    still = []
    for pid in pids:
        try:
            with open("/proc/%d/stat" % pid) as f:
                if f.read().rpartition(")")[2].split()[0] != "Z":
                    still.append(pid)
        except OSError:
            pass
    return still


def below(pid):
    """The processes that a process started, and theirs."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name) as f:
                    parents[int(name)] = int(f.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, grown = {pid}, True
    while grown:
        more = {p for p, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found - {pid}


class Limited(unittest.TestCase):
    """Tests that hang are ended, with the stacks of all threads."""

    limit = float(os.environ.get("TEST_LIMIT", 2 * LIMIT))

    def setUp(self):
        import faulthandler

        faulthandler.dump_traceback_later(self.limit, exit=True)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)

    def program(self, source, python=sys.executable, **env):
        """Starts a program that is given as text; with no node but a private one."""
        folder = tempfile.mkdtemp(prefix="mn-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, "program.py")
        with open(path, "w") as f:
            f.write(textwrap.dedent(source))
        env.setdefault("MESHNODE_DATA_DIR", os.path.join(folder, "none"))
        process = subprocess.Popen(
            [python, path], cwd=folder, env=environment(**env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.addCleanup(end, process)
        return process

    def output(self, source, code=0, limit=LIMIT, **env):
        """What a program prints until it ends, which it must within the limit, with that exit code."""
        process = self.program(source, **env)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            out, err = process.communicate()
            self.fail("the program did not end within %.0f s\n%s\n%s" % (limit, out.decode(), err.decode()))
        self.assertEqual(process.returncode, code, out.decode() + err.decode())
        return out.decode(), err.decode()


def end(process):
    """Ends a program that a test started, if it still runs."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
