"""Programs and ppservers that know the same secret, and belong to no mesh."""

import json
import os
import re
import subprocess
import sys
import time
import unittest

from pp_running import Case, binary, end, environment

SECRET = "correct horse battery staple"

PROGRAM = """
import sys, time
import pp

class Point:
    def __init__(self, x):
        self.x = x

def where(p):
    import os
    time.sleep(0.05)
    return Point(p.x + 1), os.getppid()

import time
begun = time.time()
server = pp.Server(int(sys.argv[1]), tuple(sys.argv[3:]), sys.argv[2] or None)
took = time.time() - begun
results = [t() for t in [server.submit(where, (Point(n),)) for n in range(24)]]
assert [p.x for p, _ in results] == list(range(1, 25)), results
print(took, sorted(server.get_active_nodes()), len({parent for _, parent in results}))
"""


class Secret(Case):
    """What a secret admits, and what is said where it does not."""

    def serve(self, name, *options):
        """Starts a ppserver on this machine alone, with a data directory of its own, and returns its address."""
        data_dir = os.path.join(self.dir, name)
        log = open(os.path.join(self.dir, name + ".log"), "w+")
        self.addCleanup(log.close)
        process = subprocess.Popen(
            [sys.executable, "-m", "pp.server", "-i", "127.0.0.1", "-p", "0", "-w", "2"] + list(options), env=environment(data_dir),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, universal_newlines=True,
        )
        self.addCleanup(end, process)
        ready = process.stdout.readline()
        self.assertRegex(ready, "^ready: ")
        return process, "127.0.0.1:%s" % re.search(r"/tcp/(\d+)", ready).group(1)

    def peers(self, name):
        out = subprocess.check_output([binary(), "peers", "--json"], env=environment(os.path.join(self.dir, name)), timeout=30)
        return json.loads(out.decode())

    def test_program_without_node(self):
        """pp: any node in the network with the public default secret runs what it is given. Here the secret is proven, and not sent."""
        _, first = self.serve("first", "-s", SECRET)
        _, second = self.serve("second", "-s", SECRET)
        ran = self.run_source(PROGRAM, "1", SECRET, first, second, limit=40.0)
        took, nodes = ran.out.split(" ", 1)
        self.assertEqual(nodes, "%s 3\n" % sorted(["local", first, second]))
        self.assertEqual(ran.err, "")
        self.assertLess(float(took), 9)
        print("admitted to two ppservers by the secret in %s s" % took, file=sys.stderr)
        # The two are one mesh now, and the program's node no member that anybody waits for.
        for name in ("first", "second"):
            self.assertEqual(len([p for p in self.peers(name) if p["state"] in ("self", "connected")]), 2)
        # The next program, which may run nothing itself, and names the other first.
        ran = self.run_source(PROGRAM, "0", SECRET, second, first, limit=40.0)
        self.assertIn(first, ran.out)
        self.assertEqual(ran.err, "")

    def test_wrong(self):
        """pp: a wrong secret, and a node that is not there, are silence."""
        _, good = self.serve("good", "-s", SECRET)
        _, none = self.serve("none-here")
        ran = self.run_source(PROGRAM, "1", "another horse altogether", good, none, "127.0.0.1:1", limit=40.0)
        took = float(ran.out.split()[0])
        self.assertLess(took, 9)
        print("a wrong secret was told in %g s" % took, file=sys.stderr)
        self.assertRegex(ran.out, r"\['local'\] 1\n$")
        told = {re.search(r"127\.0\.0\.1:\d+", line).group(): line for line in ran.err.splitlines()}
        self.assertEqual(set(told), {good, none, "127.0.0.1:1"}, ran.err)
        self.assertIn("the two secrets are not the same", told[good])
        self.assertIn("takes no shared secret", told[none])
        self.assertIn("nothing listens there", told["127.0.0.1:1"])
        with open(os.path.join(self.dir, "good.log")) as f:
            self.assertIn("the two secrets are not the same", f.read())
        ran = self.run_source(PROGRAM, "0", "another horse altogether", good, limit=40.0, code=1)
        self.assertIn("ConnectionError", ran.err)
        ran = self.run_source(PROGRAM, "1", "", good, limit=40.0)  # none at all
        self.assertIn("give pp.Server the secret", ran.err)

    def test_with_a_node(self):
        """The node of this machine gets the secret of the program, and has the ppserver in its mesh."""
        _, there = self.serve("there", "-s", SECRET)
        _, _ = self.serve("here")
        ran = self.run_source(PROGRAM, "1", SECRET, there, data_dir=os.path.join(self.dir, "here"), limit=40.0)
        self.assertIn(there, ran.out)
        self.assertEqual(ran.err, "")
        end_of = time.monotonic() + 20
        while not any(p["state"] == "connected" for p in self.peers("there")):
            self.assertLess(time.monotonic(), end_of)

    def test_ppserver_comes_back(self):
        """A ppserver that ends and starts again is the program's as before."""
        process, there = self.serve("there", "-s", SECRET)
        program = self.write(
            """
            import sys, time
            import pp

            def f(n):
                time.sleep(0.02)
                return n

            server = pp.Server(1, (sys.argv[2],), sys.argv[1])
            print(len(server.get_active_nodes()), flush=True)
            while True:
                server.submit(f, (1,), (), ("time",))()
                if len(server.get_active_nodes()) == 1:
                    break
            print("gone", flush=True)
            while len(server.get_active_nodes()) == 1:
                time.sleep(0.05)
            print("back")
            """
        )
        running = self.start(program, SECRET, there)
        self.assertEqual(running.stdout.readline(), "2\n")
        process.terminate()
        process.wait(20)
        self.assertEqual(running.stdout.readline(), "gone\n")
        self.serve("there", "-s", SECRET, "-p", there.rsplit(":", 1)[1])
        out, err = running.communicate(timeout=40)
        self.assertEqual((out, err), ("back\n", ""))

    def test_short(self):
        """A secret that can be guessed is refused where others can try it, and taken on this machine alone."""
        refused = subprocess.run(
            [sys.executable, "-m", "pp.server", "-p", "0", "-s", "secret"], env=environment(os.path.join(self.dir, "short")),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, universal_newlines=True,
        )
        self.assertEqual((refused.returncode, refused.stdout), (125, ""))
        self.assertIn("at least 16 characters", refused.stderr)
        _, here = self.serve("here", "-s", "secret")
        ran = self.run_source(PROGRAM, "1", "secret", here, limit=40.0)
        self.assertIn(here, ran.out)


if __name__ == "__main__":
    unittest.main()
