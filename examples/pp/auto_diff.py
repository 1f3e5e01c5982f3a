"""Automatic differentiation: numbers that carry their derivative along, as arguments and results of tasks.

    python auto_diff.py [NCPUS [PPSERVER...]]
"""

import math
import sys

import pp


class Dual(object):
    """The value of a function at a point, and its derivative there."""

    def __init__(self, value, derivative=0.0):
        self.value = float(value)
        self.derivative = float(derivative)

    def __add__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value + other.value, self.derivative + other.derivative)

    __radd__ = __add__

    def __mul__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value * other.value, self.derivative * other.value + self.value * other.derivative)

    __rmul__ = __mul__

    def __pow__(self, exponent):
        return Dual(self.value**exponent, exponent * self.value ** (exponent - 1) * self.derivative)

    def __str__(self):
        return "%.6f, derivative %.6f" % (self.value, self.derivative)


def sine(x):
    """sin x of a Dual."""
    return Dual(math.sin(x.value), math.cos(x.value) * x.derivative)


def function(x):
    """x^3 + 2 x sin x"""
    return x**3 + 2 * x * sine(x)


ncpus = int(sys.argv[1]) if len(sys.argv) > 1 else "autodetect"
job_server = pp.Server(ncpus, ppservers=tuple(sys.argv[2:]))
print("Starting pp with %s workers" % job_server.get_ncpus())

points = [i / 10.0 for i in range(1, 21)]
jobs = [(x, job_server.submit(function, (Dual(x, 1.0),), (Dual, sine), ("math",))) for x in points]
for x, job in jobs:
    print("%.1f: %s" % (x, job()))

job_server.print_stats()
