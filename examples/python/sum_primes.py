"""The sum of the primes below n, for some n: a function that is slow enough to share.

    meshnode submit examples/python/sum_primes.py:sum_primes ::: 100000 100100 100200
    meshnode python examples/python/sum_primes.py 100000 100100 100200
"""

import math
import sys


def is_prime(n):
    if n < 2 or n % 2 == 0:
        return n == 2
    return all(n % d for d in range(3, math.isqrt(n) + 1, 2))


def sum_primes(n):
    """What travels is this function and is_prime, which it calls; and that math is to be imported."""
    return sum(x for x in range(2, n) if is_prime(x))


if __name__ == "__main__":
    from meshnode import Executor

    with Executor() as executor:
        inputs = [int(word) for word in sys.argv[1:]] or [10000, 20000, 30000]
        for n, total in zip(inputs, executor.map(sum_primes, inputs)):
            print("the primes below %d add up to %d" % (n, total))
