"""How the tests of pp run programs: each in a process of its own, with a time limit, in folders that are removed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.dirname(HERE)
ROOT = os.path.dirname(PYTHON)
PROGRAMS = os.path.join(HERE, "pp_programs")
EXAMPLES = os.path.join(ROOT, "examples", "pp")
LIMIT = 60.0  # seconds, for a program that takes one on an idle machine


def binary():
    """The path of meshnode's binary; it is built by `make build`."""
    path = os.environ.get("MESHNODE_BIN") or os.path.join(ROOT, "bin", "meshnode" + (".exe" if os.name == "nt" else ""))
    if not os.path.exists(path):
        raise unittest.SkipTest("no binary of meshnode: make build, or name one in MESHNODE_BIN")
    return os.path.abspath(path)


def environment(data_dir, **more):
    """The environment of a program whose node is the one in data_dir, or a private one if none runs there."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_") or k == "MESHNODE_CACHE_DIR"}
    env.update(MESHNODE_BIN=binary(), MESHNODE_DATA_DIR=data_dir, PYTHONPATH=PYTHON, PYTHONUNBUFFERED="1")
    env.update(more)
    return env


class Ran:
    """How a program ended: code, out, err, seconds."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds


class Case(unittest.TestCase):
    """A test with a folder of its own, and programs that end with it."""

    def setUp(self):
        binary()
        self.dir = tempfile.mkdtemp(prefix="mn-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.no_node = os.path.join(self.dir, "none")

    def write(self, source, name="program.py"):
        path = os.path.join(self.dir, name)
        with open(path, "w") as f:
            f.write(textwrap.dedent(source))
        return path

    def start(self, path, *arguments, **options):
        """Starts a program. Options: data_dir, python, cwd, env."""
        process = subprocess.Popen(
            [options.get("python", sys.executable), path] + list(arguments),
            env=environment(options.get("data_dir", self.no_node), **options.get("env", {})),
            cwd=options.get("cwd", self.dir), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True,
        )
        self.addCleanup(end, process)
        return process

    def run_program(self, path, *arguments, **options):
        """Runs a program to its end, which must come within the limit and be a good one."""
        limit = options.pop("limit", LIMIT)
        code = options.pop("code", 0)
        begun = time.monotonic()
        process = self.start(path, *arguments, **options)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            self.fail("%s did not end within %.0f s\n%s\n%s" % (os.path.basename(path), limit, out, err))
        ran = Ran(process.returncode, out, err, time.monotonic() - begun)
        self.assertEqual(ran.code, code, "%s\n%s" % (out, err))
        return ran

    def run_source(self, source, *arguments, **options):
        """Runs a program that is given as text."""
        return self.run_program(self.write(source), *arguments, **options)


def end(process):
    """Ends a program that a test started, if it still runs."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def children(pid):
    """The processes below pid, whoever started them: {pid: command}. Linux."""
    parents, commands = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name) as f:
                    stat = f.read()
                with open("/proc/%s/cmdline" % name, "rb") as f:
                    commands[int(name)] = f.read().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    below, grown = {pid}, True
    while grown:
        more = {p for p, parent in parents.items() if parent in below} - below
        below |= more
        grown = bool(more)
    return {p: commands.get(p, "") for p in below - {pid}}


def alive(pids):
    """Which of these processes still are, zombies left out. Linux."""
    still = []
    for pid in pids:
        try:
            with open("/proc/%d/stat" % pid) as f:
                if f.read().rpartition(")")[2].split()[0] not in "ZX":
                    still.append(pid)
        except OSError:
            pass
    return still


def await_gone(pids, seconds):
    """Waits until none of these processes is left; returns those that are after so many seconds."""
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive(pids)


class Testnet:
    """Nodes of one mesh on this machine, by testnet.sh."""

    def __init__(self, case, nodes, slots=1):
        self._case = case
        self.dir = tempfile.mkdtemp(prefix="mn-")
        case.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        case.addCleanup(self._run, "down")
        self._run("up", str(nodes), "--slots", str(slots))

    def _run(self, *arguments):
        env = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_") or k == "MESHNODE_CACHE_DIR"}
        env.update(MESHNODE_BIN=binary(), MESHNODE_TESTNET=os.path.join(self.dir, "net"))
        done = subprocess.run(
            ["sh", os.path.join(ROOT, "testnet", "testnet.sh")] + list(arguments), env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, universal_newlines=True,
        )
        if done.returncode != 0:
            self._case.fail("testnet.sh %s: %s%s" % (" ".join(arguments), done.stdout, done.stderr))
        return done.stdout

    def data_dir(self, i):
        return os.path.join(self.dir, "net", str(i))

    def node(self, i, *arguments):
        """The command line of meshnode, for node i."""
        return self._run("node", str(i), *arguments)

    def kill(self, i):
        self._run("kill", str(i))

    def stop(self, i):
        self._run("stop", str(i))

    def cont(self, i):
        self._run("cont", str(i))


def stats_rows(out):
    """The rows of print_stats in out: {name: (jobs, percent, seconds, seconds per job)}."""
    rows = {}
    row = re.compile(r"^    ( {0,5}\d+) \|        ( {0,3}\d+\.\d\d) \|     ( *\d+\.\d{4}) \|  ( *\d+\.\d{6}) \| (.+)$", re.M)
    for jobs, percent, total, each, name in row.findall(out):
        rows[name] = (int(jobs), float(percent), float(total), float(each))
    return rows


SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)
