"""Finds the number whose MD5 sum is known, by trying all of them.

    python reverse_md5.py [NCPUS [PPSERVER...]]
"""

import hashlib
import sys

import pp


def find(digest, start, end):
    """The number from start to end - 1 whose decimal digits have that MD5 sum; None, if there is none."""
    for n in range(start, end):
        if hashlib.md5(str(n).encode("ascii")).hexdigest() == digest:
            return n
    return None


ncpus = int(sys.argv[1]) if len(sys.argv) > 1 else "autodetect"
job_server = pp.Server(ncpus, ppservers=tuple(sys.argv[2:]))
print("Starting pp with %s workers" % job_server.get_ncpus())

secret = 1829182
digest = hashlib.md5(str(secret).encode("ascii")).hexdigest()
print("Reversing hash %s" % digest)

# More parts than processors: then none is idle while the last ones run.
numbers, parts = 2000000, 128
step = numbers // parts + 1
jobs = [
    job_server.submit(find, (digest, start, min(start + step, numbers)), (), ("hashlib",))
    for start in range(0, numbers, step)
]
found = None
for job in jobs:
    answer = job()
    if answer is not None:
        found = answer

print("Reversed: %s" % found)
job_server.print_stats()
