# globals: its modules are imported, its functions shipped.
import math
import os.path as path
import pp


def inner(x):
    return math.floor(x) + 1


def outer(x):
    return inner(x), path.join("a", str(inner(x)))


def main():
    job_server = pp.Server(1)
    print(job_server.submit(outer, (2.7,), globals=globals())())


main()
