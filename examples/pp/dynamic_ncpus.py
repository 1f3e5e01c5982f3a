"""The number of processors changes while the program runs; the result does not, the time does.

    python dynamic_ncpus.py [PPSERVER...]
"""

import sys
import time

import pp


def part_sum(start, end):
    """The members start to end - 1 of the series 1 - 1/2 + 1/3 - 1/4 + ..."""
    total = 0.0
    for n in range(start, end):
        total += (1.0 if n % 2 else -1.0) / n
    return total


members, parts = 2000000, 32
step = members // parts
job_server = pp.Server(1, ppservers=tuple(sys.argv[1:]))

for ncpus in (1, 2, 4, 1):
    job_server.set_ncpus(ncpus)
    begun = time.time()
    jobs = [job_server.submit(part_sum, (start, start + step)) for start in range(1, members, step)]
    total = sum(job() for job in jobs)
    print("%s workers: partial sum is %.9f" % (job_server.get_ncpus(), total))
    sys.stderr.write("%s workers: %.2f s\n" % (ncpus, time.time() - begun))

job_server.print_stats()
