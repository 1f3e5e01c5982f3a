"""Meshes whose nodes differ: in their Python, in its modules, in their owners. Real nodes, over loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from meshnode import Client  # noqa: E402

BINARY = os.environ.get("MESHNODE_BIN") or shutil.which("meshnode")



def others():
    """Interpreters of other versions than ours, by version."""
    found = {}
    for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python")):
        version = ".".join(path.parent.parent.name.split(".")[:2])
        if version != "%d.%d" % sys.version_info[:2]:
            found[version] = str(path)
    for minor in range(6, 20):
        version, path = "3.%d" % minor, shutil.which("python3.%d" % minor)
        if path and version != "%d.%d" % sys.version_info[:2]:
            found.setdefault(version, path)
    return found


def where(x):
    import sys
    import time

    time.sleep(0.02)
    return "%d.%d" % sys.version_info[:2], x


def slow(x):
    import time

    time.sleep(0.03)
    return x


def neighbour(x):
    import time

    import meshnode_test_neighbour

    time.sleep(0.02)
    return meshnode_test_neighbour.VALUE + x


class Node:
    """A node in a directory of its own, always at the same port."""

    def __init__(self, test, name, *flags):
        self.name, self.dir = name, tempfile.mkdtemp(prefix="mn")
        test.addCleanup(shutil.rmtree, self.dir, True)
        self.log = open(os.path.join(self.dir, "log"), "wb")
        test.addCleanup(self.log.close)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            listen = "/ip4/127.0.0.1/tcp/%d" % s.getsockname()[1]
        self.command = [BINARY, "up", "--no-mdns", "--listen", listen, "--name", name, "--with-parent", "--slots", "1"] + list(flags)
        self.start()
        test.addCleanup(self.end)

    def start(self):
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=dict(os.environ, MESHNODE_DATA_DIR=self.dir),
        )
        if not self.process.stdout.readline().startswith(b"ready: "):
            raise AssertionError(self.said())

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def said(self):
        self.log.flush()
        with open(os.path.join(self.dir, "log"), errors="replace") as f:
            return f.read()

    def call(self, *args):
        """What a command says."""
        p = subprocess.run(
            [BINARY, "--data-dir", self.dir] + list(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60
        )
        if p.returncode:
            raise AssertionError("%s: %s" % (args, p.stderr.decode()))
        return p.stdout.decode().strip()

    def ask(self, *args):
        return json.loads(self.call(*args, "--json"))

    def connected(self):
        return {p["name"] for p in self.ask("peers") if p["state"] == "connected"}


def eventually(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(0.02)


@unittest.skipUnless(BINARY, "no meshnode binary: set MESHNODE_BIN")
class Mixed(unittest.TestCase):
    def mesh(self, first, *joining):
        """Has nodes join the mesh of the first, each by the kind of ticket that is beside it."""
        for node, kind in joining:
            node.call("join", first.call("invite", *kind))
        for node, _ in joining:
            eventually(lambda: node.name in first.connected(), "%s is not connected: %s" % (node.name, node.said()))

    def client(self, node):
        client = Client(data_dir=node.dir)
        self.addCleanup(client.close, False)
        return client

    def worked(self, node):
        """Who did how many tasks of the last job, by name, and the job."""
        job = node.ask("job", "@last")
        return {p["name"]: p["tasks"] for p in job["peers"]}, job

    def test_versions(self):
        """Each node runs what its Python can, the origin runs all with that of the program."""
        theirs = others()
        if not theirs:
            self.skipTest("there is only one Python here")
        version, path = sorted(theirs.items())[0]
        ours = "%d.%d" % sys.version_info[:2]
        origin = Node(self, "origin", "--python", "none")
        other = Node(self, "other", "--python", path)
        bare = Node(self, "bare", "--python", "none")
        self.mesh(origin, (other, ["--mine"]), (bare, ["--mine"]))
        peers = {p["name"]: p for p in origin.ask("peers")}
        self.assertIn("python" + version, peers["other"]["runtimes"])
        self.assertEqual(peers["other"]["sandbox"], "wasm; python: none")
        self.assertEqual((peers["bare"]["runtimes"], peers["bare"]["sandbox"]), (["wasm"], "wasm"))
        client = self.client(origin)
        got = list(client.map(where, range(40)))
        self.assertEqual([x for _, x in got], list(range(40)))
        self.assertEqual({v for v, _ in got}, {ours, version})
        done, job = self.worked(origin)
        self.assertEqual(set(done), {"origin", "other"})
        self.assertEqual(job["failed"], 0)

        # Nobody but the origin may run it here, and it is to run elsewhere: it waits, and says for what.
        elsewhere = client.function(where, name="elsewhere", remote_only=True, not_=[peers["other"]["id"]])
        future = elsewhere.submit(1)
        why = eventually(lambda: self.waits(origin), "the job does not wait")
        self.assertIn("bare does not run python", why)
        self.assertTrue(future.cancel() or not future.done())

    def waits(self, node):
        """All that why says of the last job, once it waits for a node."""
        job = node.ask("job", "@last")
        if job.get("waits_for") != "no_node":
            return None
        why = node.ask("why", job["id"])
        for reason in why["reasons"]:
            self.assertTrue(reason["text"] and reason["fix"], reason)
        return " ".join([job["reason"]] + [r["text"] for r in why["reasons"]])

    def test_modules(self):
        """A node without a module gives the tasks back; one that has it runs them; while there is none, the job waits."""
        modules = tempfile.mkdtemp(prefix="mn")
        self.addCleanup(shutil.rmtree, modules, True)
        with open(os.path.join(modules, "meshnode_test_neighbour.py"), "w") as f:
            f.write("VALUE = 1000\n")
        # As a user installs it: in an environment of its own.
        venv = os.path.join(modules, "venv")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", venv], check=True, timeout=60)
        site = next(Path(venv).glob("lib/python*/site-packages"))
        shutil.copy(os.path.join(modules, "meshnode_test_neighbour.py"), site)

        origin = Node(self, "origin", "--no-work")
        lacks = Node(self, "lacks", "--python", sys.executable)
        self.mesh(origin, (lacks, ["--mine"]))
        client = self.client(origin)
        sys.path.append(modules)
        self.addCleanup(sys.path.remove, modules)
        results = client.map(neighbour, range(20))
        why = eventually(lambda: self.waits(origin), "the job does not wait")
        self.assertIn("lacks gave it back", why)
        self.assertIn("meshnode_test_neighbour", why)
        has = Node(self, "has", "--python", os.path.join(venv, "bin", "python"))
        self.mesh(origin, (has, ["--mine"]))
        self.assertEqual(list(results), list(range(1000, 1020)))
        done, job = self.worked(origin)
        self.assertEqual(set(done), {"has"})
        self.assertEqual(job["failed"], 0)

    def test_origin_killed(self):
        """The node of a program is killed and started again: the program goes on, and its limit of that node holds."""
        origin = Node(self, "origin", "--python", sys.executable)
        other = Node(self, "other", "--python", sys.executable)
        self.mesh(origin, (other, ["--mine"]))
        for limit in (None, 0):
            with self.subTest(limit=limit):
                client = self.client(origin)
                if limit is not None:
                    client.set_local_limit(limit)
                results = client.map(slow, range(120))
                first = [next(results) for _ in range(10)]
                origin.kill()
                origin.start()
                began = time.monotonic()
                self.assertEqual(first + list(results), list(range(120)))
                # 10 s would be the time that a node waits for workers, or for a client, that do not come back.
                self.assertLess(time.monotonic() - began, 9)
                done, job = self.worked(origin)
                self.assertEqual(job["failed"], 0)
                if limit == 0:
                    self.assertEqual(set(done), {"other"})
                else:  # most of it after the start
                    self.assertGreater(done["origin"], 25)
                client.close()

    def test_owners(self):
        """Python runs between machines of one owner only, whoever asks, and each says so."""
        first = Node(self, "first", "--python", sys.executable)
        own = Node(self, "own", "--python", sys.executable)
        friend = Node(self, "friend", "--python", sys.executable)
        guest = Node(self, "guest", "--python", sys.executable)
        self.mesh(first, (own, ["--mine"]), (friend, []), (guest, ["--guest"]))
        eventually(lambda: len(friend.connected()) >= 2, friend.said)
        got = list(self.client(first).map(where, range(60)))
        self.assertEqual([x for _, x in got], list(range(60)))
        self.assertEqual(set(self.worked(first)[0]), {"first", "own"})
        for node in (friend, guest):
            got = list(self.client(node).map(where, range(20)))
            self.assertEqual([x for _, x in got], list(range(20)))
            self.assertEqual(set(self.worked(node)[0]), {node.name})
        nowhere = self.client(friend).function(where, name="nowhere", remote_only=True)
        nowhere.submit(1)
        why = eventually(lambda: self.waits(friend), "the job does not wait")
        self.assertRegex(why, "first.*is not to run python of this node|is not to run python of this node .*first")
        self.assertIn("one owner", friend.call("why", "@last"))


if __name__ == "__main__":
    unittest.main()
