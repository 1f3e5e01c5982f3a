"""Functions travel to every interpreter that there is."""

import os
import subprocess
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from versions import interpreters

HERE = os.path.dirname(os.path.abspath(__file__))
FOUND = interpreters()


def version(text):
    return tuple(map(int, text.split(".")))


def run_cases(client, workers):
    """The lines that ship_cases.py prints: what is wrong, and at last how much ran."""
    out = subprocess.run(
        [FOUND[client], "-E", os.path.join(HERE, "ship_cases.py")] + ["%s=%s" % (w, FOUND[w]) for w in workers],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    return out.stdout.decode()


class Versions(unittest.TestCase):
    def check(self, client, workers):
        out = run_cases(client, workers)
        last = out.strip().split("\n")[-1].split()
        self.assertEqual(last[2:], ["wrong", "0"], out)
        self.assertGreater(int(last[1]), 80 * len(workers), out)

    def test_from_this_one_to_all(self):
        self.check("%d.%d" % sys.version_info[:2], list(FOUND))

    def test_from_the_others(self):
        clients = [v for v in FOUND if version(v) >= (3, 8) and FOUND[v] != sys.executable]
        versions = list(FOUND)

        def one(client):
            self.check(client, sorted({versions[0], versions[-1], client}, key=version))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(one, clients))


if __name__ == "__main__":
    unittest.main()
