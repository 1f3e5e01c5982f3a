"""The Python side of the benchmarks: a program of a user that measures itself.

It reads a JSON object from each line of standard input, does what its "do" names, and answers with a JSON object on a
line of standard output. Times are seconds, of time.perf_counter.
"""

import concurrent.futures
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time


def noop(x):
    return x


def burn(loops):
    total = 0
    for i in range(loops):
        total += i * i
    return total


def is_prime(n):
    if n < 2 or n % 2 == 0:
        return n == 2
    return all(n % d for d in range(3, int(math.sqrt(n)) + 1, 2))


def sum_primes(n):
    return sum(x for x in range(2, n) if is_prime(x))


def check(got, want):
    if got != want:
        raise SystemExit("a wrong result: %.80r" % (got,))


class Futures:
    """Any concurrent.futures.Executor."""

    def __init__(self, executor):
        self.executor = executor

    def futures(self, n):
        submit = self.executor.submit
        began = time.perf_counter()
        futures = [submit(noop, i) for i in range(n)]
        got = [f.result() for f in futures]
        took = time.perf_counter() - began
        check(got, list(range(n)))
        return took

    def map(self, n):
        began = time.perf_counter()
        got = list(self.executor.map(noop, range(n)))
        took = time.perf_counter() - began
        check(got, list(range(n)))
        return took

    def calls(self, n):
        took = []
        for i in range(n):
            began = time.perf_counter()
            got = self.executor.submit(noop, i).result()
            took.append(time.perf_counter() - began)
            check(got, i)
        return took

    def burn(self, n, loops):
        began = time.perf_counter()
        futures = [self.executor.submit(burn, loops) for _ in range(n)]
        got = [f.result() for f in futures]
        took = time.perf_counter() - began
        check(got, [burn(loops)] * n)
        return took

    def primes(self, first, n):
        inputs = [first + 100 * i for i in range(n)]
        began = time.perf_counter()
        futures = [self.executor.submit(sum_primes, i) for i in inputs]
        got = [f.result() for f in futures]
        took = time.perf_counter() - began
        check(got[0], sum_primes(inputs[0]))
        return took

    def close(self):
        self.executor.shutdown()


class Mesh(Futures):
    def __init__(self):
        import meshnode

        super().__init__(meshnode.Executor())


class ProcessPool(Futures):
    """concurrent.futures' own, with workers at the priority of ours."""

    def __init__(self):
        super().__init__(concurrent.futures.ProcessPoolExecutor(2, initializer=os.nice, initargs=(19,)))


class Pool:
    """multiprocessing's own."""

    def __init__(self):
        self.pool = multiprocessing.Pool(2, os.nice, (19,))

    def map(self, n):
        began = time.perf_counter()
        got = list(self.pool.imap(noop, range(n)))
        took = time.perf_counter() - began
        check(got, list(range(n)))
        return took

    def close(self):
        self.pool.close()
        self.pool.join()


class Joblib:
    def __init__(self):
        import joblib

        self.run = joblib.Parallel(n_jobs=2)
        self.delayed = joblib.delayed(noop)

    def map(self, n):
        began = time.perf_counter()
        got = self.run(self.delayed(i) for i in range(n))
        took = time.perf_counter() - began
        check(got, list(range(n)))
        return took

    def close(self):
        pass


class Ppft:
    """Parallel Python itself, as its fork ppft."""

    def __init__(self):
        import ppft

        self.server = ppft.Server(2)

    def futures(self, n):
        began = time.perf_counter()
        tasks = [self.server.submit(noop, (i,)) for i in range(n)]
        got = [t() for t in tasks]
        took = time.perf_counter() - began
        check(got, list(range(n)))
        return took

    def calls(self, n):
        took = []
        for i in range(n):
            began = time.perf_counter()
            got = self.server.submit(noop, (i,))()
            took.append(time.perf_counter() - began)
            check(got, i)
        return took

    def close(self):
        self.server.destroy()


BARE = """
import os, sys
os.nice(19)
def burn(loops):
    total = 0
    for i in range(loops):
        total += i * i
    return total
burn(1000)
print("ready", flush=True)
while os.read(0, 1):
    burn(int(sys.argv[1]))
"""


def bare(n, loops):
    """What two processes take for n times burn that do nothing else but read a byte of one pipe before each."""
    tasks, more = os.pipe()
    command = [sys.executable, "-c", BARE, str(loops)]
    processes = [subprocess.Popen(command, stdin=tasks, stdout=subprocess.PIPE) for _ in range(2)]
    os.close(tasks)
    for p in processes:
        p.stdout.readline()
    began = time.perf_counter()
    os.write(more, b"x" * n)
    os.close(more)
    for p in processes:
        p.stdout.read()  # to its end
    took = time.perf_counter() - began
    for p in processes:
        p.wait()
    return took


def loops(seconds):
    """How many loops burn takes that long for, on this machine when nothing else runs."""
    best = float("inf")
    for _ in range(50):
        began = time.perf_counter()
        burn(20000)
        best = min(best, time.perf_counter() - began)
    return int(20000 * seconds / best)


def serial(first, n):
    began = time.perf_counter()
    for i in range(n):
        sum_primes(first + 100 * i)
    return time.perf_counter() - began


KINDS = {"mesh": Mesh, "processpool": ProcessPool, "pool": Pool, "joblib": Joblib, "ppft": Ppft}
OTHERS = {"bare": bare, "loops": loops, "serial": serial}


def main():
    opened = None
    for line in sys.stdin:
        request = json.loads(line)
        do, args = request["do"], request.get("args", [])
        if do == "open":
            opened = KINDS[args[0]]()
            answer = 0
        elif do in OTHERS:
            answer = OTHERS[do](*args)
        else:
            answer = getattr(opened, do)(*args)
        print(json.dumps({"answer": answer}), flush=True)
    if opened is not None:
        opened.close()


if __name__ == "__main__":
    main()
