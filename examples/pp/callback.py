"""A callback adds up what the tasks return, as they end: ln 2 as the series 1 - 1/2 + 1/3 - 1/4 + ...

    python callback.py [NCPUS [PPSERVER...]]
"""

import math
import sys
import threading

import pp


class Sum(object):
    """A sum to which threads may add at the same time: callbacks run in threads."""

    def __init__(self):
        self.value = 0.0
        self.parts = 0
        self.lock = threading.Lock()

    def add(self, name, part):
        """name is what submit was given as callbackargs, part what the task returned."""
        with self.lock:
            self.value += part
            self.parts += 1


def part_sum(start, end):
    """The members start to end - 1 of the series."""
    total = 0.0
    for n in range(start, end):
        total += (1.0 if n % 2 else -1.0) / n
    return total


ncpus = int(sys.argv[1]) if len(sys.argv) > 1 else "autodetect"
job_server = pp.Server(ncpus, ppservers=tuple(sys.argv[2:]))
print("Starting pp with %s workers" % job_server.get_ncpus())

members, parts = 2000000, 64
step = members // parts
series = Sum()
for start in range(1, members, step):
    job_server.submit(part_sum, (start, start + step), callback=series.add, callbackargs=("ln 2",))

job_server.wait()  # all tasks have ended, and so have their callbacks
print("Parts: %s" % series.parts)
print("Partial sum is %.9f, ln 2 is %.9f" % (series.value, math.log(2)))
job_server.print_stats()
