"""Sums of primes: the first program that anybody writes for Parallel Python.

    python sum_primes.py [NCPUS [PPSERVER...]]

NCPUS is how many processors of this machine take part: all, if it is left out; 0: none, only other nodes.
"""

import math
import sys

import pp


def is_prime(n):
    """Whether n has no divisor but 1 and itself."""
    if n < 2:
        return False
    if n % 2 == 0:
        return n == 2
    for divisor in range(3, int(math.sqrt(n)) + 1, 2):
        if n % divisor == 0:
            return False
    return True


def sum_primes(limit):
    """The sum of all primes below limit."""
    return sum(n for n in range(2, limit) if is_prime(n))


ncpus = int(sys.argv[1]) if len(sys.argv) > 1 else "autodetect"
job_server = pp.Server(ncpus, ppservers=tuple(sys.argv[2:]))
print("Starting pp with %s workers" % job_server.get_ncpus())

# One task: the function, its arguments, the functions that it calls, the modules that they need.
job = job_server.submit(sum_primes, (100,), (is_prime,), ("math",))
print("Sum of primes below 100 is %s" % job())

# Eight tasks at a time. A task is called for its result, and waits for it.
inputs = (100000, 100100, 100200, 100300, 100400, 100500, 100600, 100700)
jobs = [(limit, job_server.submit(sum_primes, (limit,), (is_prime,), ("math",))) for limit in inputs]
for limit, job in jobs:
    print("Sum of primes below %s is %s" % (limit, job()))

job_server.print_stats()
