"""Those of CPython's own concurrent.futures tests that make sense for an executor of processes, with ours: cpython_cases.py."""

import json
import os
import subprocess
import sys
import threading
import unittest

from running import HERE, Limited, environment, mesh
from versions import interpreters

LIMIT = 240.0


class CPython(Limited):
    limit = 2 * LIMIT

    def test_concurrent_futures(self):
        """Under 3.10, whose tests are one module, and under 3.13, where they are a package; both at once: most of it is naps."""
        if sys.version_info < (3, 10):
            self.skipTest("the same interpreters are run under Python 3.10 and later")
        found = {v: p for v, p in interpreters().items() if v in ("3.10", "3.13")}
        node = mesh(self, 1, slots=8)[0]
        ran = {}

        def run(version, path):
            ran[version] = subprocess.run(
                [path, os.path.join(HERE, "cpython_cases.py")],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=environment(MESHNODE_DATA_DIR=node.dir), timeout=LIMIT,
            )

        threads = [threading.Thread(target=run, args=f) for f in found.items()]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        missing = []
        for version, path in found.items():
            with self.subTest(version):
                self.assertIn(version, ran, "it did not end within %.0f s" % LIMIT)
                p = ran[version]
                if b"No module named 'test" in p.stderr:
                    missing.append(version)
                    continue
                self.assertEqual(p.returncode, 0, p.stderr.decode())
                result = json.loads(p.stdout.decode().splitlines()[-1])
                self.assertEqual(result["bad"], [], "\n".join(result["bad"]))
                self.assertGreaterEqual(result["ran"], 35)
        if not found or missing:
            self.skipTest("Python %s with its tests is not here" % " and ".join(missing or ["3.10 or 3.13"]))


if __name__ == "__main__":
    unittest.main()
