"""Quicksort, whose halves are tasks until they are small.

    python quicksort.py [NCPUS [PPSERVER...]]
"""

import random
import sys

import pp


def quicksort(numbers):
    """numbers in order, all in one task."""
    if len(numbers) < 2:
        return numbers
    pivot = numbers[len(numbers) // 2]
    return (
        quicksort([n for n in numbers if n < pivot])
        + [n for n in numbers if n == pivot]
        + quicksort([n for n in numbers if n > pivot])
    )


def parts(numbers, depth, job_server):
    """Submits what is below a pivot and what is above it, each split depth times more; yields the jobs and pivots in order."""
    if depth == 0 or len(numbers) < 2:
        return [job_server.submit(quicksort, (numbers,))]
    pivot = numbers[len(numbers) // 2]
    below = [n for n in numbers if n < pivot]
    equal = [n for n in numbers if n == pivot]
    above = [n for n in numbers if n > pivot]
    return parts(below, depth - 1, job_server) + [equal] + parts(above, depth - 1, job_server)


ncpus = int(sys.argv[1]) if len(sys.argv) > 1 else "autodetect"
job_server = pp.Server(ncpus, ppservers=tuple(sys.argv[2:]))
print("Starting pp with %s workers" % job_server.get_ncpus())

random.seed(1)
numbers = [random.randrange(1000000) for _ in range(100000)]
result = []
for part in parts(numbers, 3, job_server):
    result += part if isinstance(part, list) else part()

print("Sorted %s numbers: %s" % (len(result), result == sorted(numbers)))
print("The first: %s" % result[:5])
job_server.print_stats()
