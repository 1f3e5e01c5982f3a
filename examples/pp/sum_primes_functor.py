"""Sums of primes by a template: the function and what it needs are named once, and each task gives arguments alone.

    python sum_primes_functor.py [NCPUS [PPSERVER...]]
"""

import math
import sys

import pp


class Sieve(object):
    """Knows the primes up to a limit; shipped to the tasks with its methods."""

    def __init__(self, limit):
        composite = bytearray(limit + 1)
        for n in range(2, int(math.sqrt(limit)) + 1):
            if not composite[n]:
                for multiple in range(n * n, limit + 1, n):
                    composite[multiple] = 1
        self.primes = [n for n in range(2, limit + 1) if not composite[n]]

    def divides(self, n):
        """Whether one of the primes divides n."""
        for prime in self.primes:
            if prime * prime > n:
                return False
            if n % prime == 0:
                return True
        return False


def sum_primes(limit):
    """The sum of all primes below limit."""
    sieve = Sieve(int(math.sqrt(limit)) + 1)
    return sum(n for n in range(2, limit) if not sieve.divides(n))


ncpus = int(sys.argv[1]) if len(sys.argv) > 1 else "autodetect"
job_server = pp.Server(ncpus, ppservers=tuple(sys.argv[2:]))
print("Starting pp with %s workers" % job_server.get_ncpus())

sum_of_primes = pp.Template(job_server, sum_primes, (Sieve,), ("math",))
print("Sum of primes below 100 is %s" % sum_of_primes.submit(100)())

inputs = (100000, 100100, 100200, 100300, 100400, 100500, 100600, 100700)
jobs = [(limit, sum_of_primes.submit(limit)) for limit in inputs]
for limit, job in jobs:
    print("Sum of primes below %s is %s" % (limit, job()))

job_server.print_stats()
