"""Client with real nodes: values sent once, jobs that outlive the program, other nodes, options."""

import json
import os
import re
import socket
import tempfile
import threading
import time
import unittest
from unittest import mock

from running import LIMIT, PYTHON, Limited, mesh

from meshnode import Client, Executor, MeshError, NodeError, NoNodeError, ShipError


def square(x):
    return x * x


def length(data, more=None):
    return len(data) + (len(more) if more is not None else 0)


def host(x, seconds=0.0):
    time.sleep(seconds)
    return x


def fail_on(x, bad):
    if x == bad:
        raise ValueError("bad %d" % x)
    return x


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

    def stored(self):
        return {b["id"]: b["size"] for b in self.client._jobs.connection.call("GET", "/v1/blobs")["blobs"]}

    def test_submit_and_map(self):
        self.assertEqual(self.client.submit(square, 5).result(LIMIT), 25)
        self.assertEqual(list(self.client.map(square, range(1000))), [x * x for x in range(1000)])
        self.assertEqual(sorted(self.client.map(square, range(1000), ordered=False)), [x * x for x in range(1000)])

    def test_functions_that_are_alike(self):
        before = len(self.client.jobs())
        futures = [self.client.submit(lambda i=i: square(i)) for i in range(100)]
        self.assertEqual([f.result(LIMIT) for f in futures], [i * i for i in range(100)])
        self.assertLessEqual(len(self.client.jobs()) - before, 3)

    def test_input_that_raises(self):
        def numbers():
            yield 1
            yield 2
            raise OSError("the file ends here")

        results = self.client.map(square, numbers())
        self.assertEqual([next(results), next(results)], [1, 4])
        with self.assertRaisesRegex(OSError, "the file ends here"):
            next(results)
        with self.assertRaisesRegex(OSError, "the file ends here"):
            list(Executor(client=self.client).map(square, numbers()))

    def test_options(self):
        f = self.client.function(square, name="my squares", priority=3, retries=1)
        self.assertEqual([f.submit(i).result(LIMIT) for i in range(3)], [0, 1, 4])
        self.assertEqual(list(f.map(range(50))), [i * i for i in range(50)])
        job = [j for j in self.client.jobs() if j["name"] == "my squares"]
        self.assertEqual([(j["priority"], j["retries"]) for j in job], [(3, 1)])
        for bad in ({"priority": 101}, {"timeout": -1}, {"spare": "perhaps"}, {"local_only": True, "remote_only": True}):
            with self.assertRaises(ValueError):
                self.client.function(square, **bad)
        with self.assertRaises(TypeError):
            self.client.function(square, colour="blue")
        with self.assertRaisesRegex(NodeError, "nonsense"):
            self.client.function(square, on="nonsense ((").submit(1).result(LIMIT)

    def test_what_cannot_travel(self):
        lock = threading.Lock()
        with self.assertRaisesRegex(ShipError, "lock"):
            self.client.submit(lambda: lock)
        with self.assertRaises(ShipError):
            self.client.submit(square, lock)
        self.assertEqual(self.client.submit(square, 2).result(LIMIT), 4)

    def test_put(self):
        data = os.urandom(3 << 20)
        ref = self.client.put(data)
        self.assertGreaterEqual(ref.size, len(data))
        fs = [self.client.submit(length, ref) for _ in range(20)]
        self.assertEqual({f.result(LIMIT) for f in fs}, {len(data)})
        self.assertEqual(list(self.client.map(length, [ref] * 300, [ref] * 300)), [2 * len(data)] * 300)
        before = self.stored()
        self.assertEqual(self.client.put(data).id, ref.id)
        other = Client(self.node.dir)
        self.addCleanup(other.close)
        asked = []
        persist = other._jobs.connection.persist
        other._jobs.connection.persist = lambda *args: (asked.append(args[0]), persist(*args))[1]
        self.assertEqual(other.put(data).id, ref.id)
        self.assertEqual(asked, ["HEAD"])  # nothing was sent again
        self.assertEqual(self.stored(), before)
        with self.assertRaises(ShipError):
            self.client.put(threading.Lock())

    def test_large_arguments_and_results(self):
        data = os.urandom(1 << 20)
        before = len(self.stored())
        fs = [self.client.submit(length, data, bytes(i)) for i in range(30)]
        self.assertEqual([f.result(LIMIT) for f in fs], [len(data) + i for i in range(30)])
        self.assertLessEqual(len(self.stored()) - before, 2)  # the bundle and the data, once
        for size in (60 << 10, 70 << 10, 2 << 20, 20 << 20):
            self.assertEqual(len(self.client.submit(bytes, size).result(LIMIT)), size)
        self.assertEqual([len(b) for b in self.client.map(bytes, [100 << 10] * 50)], [100 << 10] * 50)

    def test_detached(self):
        job = self.client.submit_detached(square, range(100), chunksize=7, name="squares")
        self.assertEqual(list(job.results()), [i * i for i in range(100)])
        self.assertEqual(sorted(job.results(ordered=False)), [i * i for i in range(100)])
        self.assertEqual(job.wait(LIMIT)["state"], "done")
        again = Client(self.node.dir)
        self.assertEqual(list(again.job(job.id).results()), [i * i for i in range(100)])
        self.assertEqual(again.job(job.id[:10]).id, job.id)
        again.close()
        with self.assertRaises(NodeError):
            self.client.job("0123456789abcdef0123456789abcdef")

    def test_detached_failures(self):
        job = self.client.submit_detached(fail_on, range(10), [4] * 10, chunksize=3)
        found = list(job.results(return_exceptions=True))
        self.assertEqual([r for r in found if not isinstance(r, ValueError)], [0, 1, 2, 3, 5, 6, 7, 8, 9])
        self.assertEqual(str(found[4]), "bad 4")
        results = job.results()
        self.assertEqual([next(results) for _ in range(4)], [0, 1, 2, 3])
        with self.assertRaises(ValueError):
            next(results)
        slow = self.client.submit_detached(host, range(3), [60] * 3)
        with self.assertRaises(TimeoutError):
            slow.wait(0.1)
        slow.cancel()
        self.assertEqual(slow.wait(LIMIT)["state"], "cancelled")

    def test_detached_from_another_program(self):
        out, _ = self.output(
            """
            from meshnode import Client
            def slowly(x):
                import time
                time.sleep(0.05)
                return x + 1
            with Client() as client:
                print(client.submit_detached(slowly, range(40)).id)
            """,
            MESHNODE_DATA_DIR=self.node.dir,
        )
        self.assertEqual(list(self.client.job(out.strip()).results()), list(range(1, 41)))

    def test_no_node(self):
        with self.assertRaisesRegex(NoNodeError, "no node runs in"):
            Client(os.path.join(os.path.dirname(self.node.dir), "nowhere")).submit(square, 1)
        with self.assertRaises(ValueError):
            Client(self.node.dir, private=True)

    def test_closed(self):
        client = Client(self.node.dir)
        f = client.submit(square, 3)
        client.close()
        self.assertEqual(f.result(0), 9)
        with self.assertRaises(RuntimeError):
            client.submit(square, 1)
        other = Client(self.node.dir)
        f = other.submit(host, 1, 60)
        other.close(wait=False)
        with self.assertRaises(MeshError):
            f.result(LIMIT)

    def test_local_limit(self):
        self.client.set_local_limit(0)
        f = self.client.submit(square, 3)
        time.sleep(0.5)
        self.assertFalse(f.done())
        self.client.set_local_limit(None)
        self.assertEqual(f.result(LIMIT), 9)

    def test_readme(self):
        """The examples of the README run, with the node here in place of three."""
        with open(os.path.join(PYTHON, "README.md"), encoding="utf-8") as f:
            blocks = re.findall(r"```python\n(.*?)```", f.read(), re.S)
        self.assertGreaterEqual(len(blocks), 5)
        for block in blocks:
            block = block.replace("wait_for_nodes(3", "wait_for_nodes(1").replace("10**7", "10**5").replace("range(1, 100000)", "range(1, 5000)")
            out, _ = self.output("from meshnode import Executor\n" + block, MESHNODE_DATA_DIR=self.node.dir)
            self.assertNotEqual(out, "", block)

    def test_private_node_has_no_detached_jobs(self):
        with Client(private=True) as client:
            self.assertEqual(client.submit(square, 3).result(LIMIT), 9)
            with self.assertRaisesRegex(MeshError, "private node"):
                client.submit_detached(square, range(3))


class ThreeNodes(Limited):
    """Tests that share three nodes with one slot each."""

    @classmethod
    def setUpClass(cls):
        cls.stack = unittest.TestCase()
        cls.nodes = mesh(cls.stack, 3, slots=1)

    @classmethod
    def tearDownClass(cls):
        cls.stack.doCleanups()

    def setUp(self):
        super().setUp()
        self.client = Client(self.nodes[0].dir)
        self.addCleanup(self.client.close)

    def test_nodes(self):
        nodes = self.client.wait_for_nodes(3, LIMIT)
        self.assertEqual(sorted(n["name"] for n in nodes), ["node0", "node1", "node2"])
        self.assertEqual(self.client.nodes()[0]["state"], "self")
        with self.assertRaisesRegex(TimeoutError, "3 of 4 nodes"):
            self.client.wait_for_nodes(4, 0.2)

    def test_all_nodes_work(self):
        self.client.wait_for_nodes(3, LIMIT)
        fs = [self.client.submit(host, i, 0.05) for i in range(60)]
        self.assertEqual([f.result(LIMIT) for f in fs], list(range(60)))
        self.assertEqual({f.node for f in fs}, {"node0", "node1", "node2"})

    def test_placement(self):
        self.client.wait_for_nodes(3, LIMIT)
        there = self.client.function(host, remote_only=True)
        fs = [there.submit(i, 0.02) for i in range(20)]
        self.assertEqual([f.result(LIMIT) for f in fs], list(range(20)))
        self.assertNotIn("node0", {f.node for f in fs})
        here = self.client.function(host, local_only=True)
        fs = [here.submit(i) for i in range(20)]
        self.assertEqual([f.result(LIMIT) for f in fs], list(range(20)))
        self.assertEqual({f.node for f in fs}, {"node0"})
        not_one = self.client.function(host, not_=(self.nodes[1].id,))
        fs = [not_one.submit(i, 0.02) for i in range(30)]
        self.assertEqual([f.result(LIMIT) for f in fs], list(range(30)))
        self.assertNotIn("node1", {f.node for f in fs})

    def test_large_argument_on_all(self):
        self.client.wait_for_nodes(3, LIMIT)
        data = os.urandom(8 << 20)
        fs = [self.client.submit(length, data, bytes(i)) for i in range(40)]
        self.assertEqual([f.result(LIMIT) for f in fs], [len(data) + i for i in range(40)])


class NoAnswer(Limited):
    def test_a_node_that_is_frozen(self):
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        with open(os.path.join(folder.name, "control.json"), "w") as f:
            json.dump({"address": "127.0.0.1:%d" % listener.getsockname()[1], "token": "t"}, f)
        with mock.patch("meshnode._connection._CALL_TIMEOUT", 0.3):
            client = Client(folder.name, private=False)
            self.addCleanup(client.close)
            with self.assertRaisesRegex(NoNodeError, "the node does not answer"):
                client.submit(square, 5)


if __name__ == "__main__":
    unittest.main()
