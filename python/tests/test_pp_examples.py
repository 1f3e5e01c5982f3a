"""The seven programs of examples/pp, and programs of other shapes: their output is what real Parallel Python's
is, but for its faults."""

import os
import unittest

from pp_running import EXAMPLES, PROGRAMS, Case, stats_rows


def programs():
    """Those with an expected output beside them."""
    return sorted(f[:-4] for f in os.listdir(PROGRAMS) if f.endswith(".txt"))


def without_frames(out):
    """A program's output without the lines of tracebacks that differ between versions: they begin with blanks."""
    return "".join(line for line in out.splitlines(True) if not line.startswith("  "))


PRIMES = [
    "Starting pp with 2 workers",
    "Sum of primes below 100 is 1060",
    "Sum of primes below 100000 is 454396537",
    "Sum of primes below 100100 is 454996777",
    "Sum of primes below 100200 is 455898156",
    "Sum of primes below 100300 is 456700218",
    "Sum of primes below 100400 is 457603451",
    "Sum of primes below 100500 is 458407033",
    "Sum of primes below 100600 is 459412387",
    "Sum of primes below 100700 is 460217613",
]

# name: (arguments, lines before the statistics, jobs in the statistics)
SEVEN = {
    "sum_primes": (["2"], PRIMES, 9),
    "sum_primes_functor": (["2"], PRIMES, 9),
    "callback": (
        ["2"],
        ["Starting pp with 2 workers", "Parts: 64", "Partial sum is 0.693146931, ln 2 is 0.693147181"],
        64,
    ),
    "dynamic_ncpus": ([], ["%d workers: partial sum is 0.693146931" % n for n in (1, 2, 4, 1)], 128),
    "quicksort": (
        ["2"],
        ["Starting pp with 2 workers", "Sorted 100000 numbers: True", "The first: [4, 9, 19, 24, 26]"],
        8,
    ),
    "reverse_md5": (
        ["2"],
        ["Starting pp with 2 workers", "Reversing hash 48ae4d2d384dcc470e471f4169daa96a", "Reversed: 1829182"],
        128,
    ),
    "auto_diff": (
        ["2"],
        ["Starting pp with 2 workers", "0.1: 0.020967, derivative 0.428668", "0.2: 0.087468, derivative 0.909365"],
        20,
    ),
}


class Examples(Case):
    """Each of the seven."""


class Programs(Case):
    """The programs of pp_programs."""


def _example(name):
    def test(self):
        arguments, lines, jobs = SEVEN[name]
        ran = self.run_program(os.path.join(EXAMPLES, name + ".py"), *arguments)
        out = ran.out.splitlines()
        self.assertEqual(out[: len(lines)], lines)
        at = out.index("Job execution statistics:")
        self.assertEqual(out[at + 1], " job count | % of all jobs | job time sum | time per job | job server")
        rows = stats_rows(ran.out)
        self.assertEqual(list(rows), ["local"])
        self.assertEqual(rows["local"][:2], (jobs, 100.0))
        self.assertRegex(out[at + 3], r"^Time elapsed since server creation \d+\.\d+$")
        self.assertRegex(out[at + 4], r"^0 active tasks, \d+ cores$")
        self.assertEqual(out[at + 5 :], [""])
        if name != "dynamic_ncpus":
            self.assertEqual(ran.err, "")

    return test


def _program(name):
    def test(self):
        ran = self.run_program(os.path.join(PROGRAMS, name + ".py"), cwd="/")
        with open(os.path.join(PROGRAMS, name + ".txt")) as f:
            self.assertEqual(without_frames(ran.out), f.read())
        self.assertEqual(ran.err, "")

    return test


for _name in SEVEN:
    setattr(Examples, "test_" + _name, _example(_name))
for _name in programs():
    setattr(Programs, "test_" + _name, _program(_name))

if __name__ == "__main__":
    unittest.main()
