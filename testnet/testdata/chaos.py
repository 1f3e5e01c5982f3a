"""Calls through the mesh, round after round, until standard input ends. Each result is compared with what is computed here, and each
must come once. Called with the folder of the packages, the node's data directory and a seed; prints a line for each round."""

import collections
import concurrent.futures
import random
import sys
import threading

packages, data_dir, seed = sys.argv[1:]
sys.path.insert(0, packages)

import meshnode  # noqa: E402


class Odd(Exception):
    """What a call raises; it travels with the function."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def work(number):
    total = 0
    for i in range(number):
        total = (total * 31 + i * i) % 1000003
    if number % 7 == 3:
        raise Odd(number)
    return total


def expected(number):
    try:
        return work(number)
    except Odd as e:
        return ("odd", e.number)


def got(future):
    e = future.exception()
    if e is None:
        return future.result()
    if type(e).__name__ != "Odd":
        raise e
    return ("odd", e.number)


def main():
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    rnd = random.Random(int(seed))
    calls = rounds = 0
    with meshnode.Executor(data_dir=data_dir) as executor:
        if executor.submit(work, 50_000).result() != expected(50_000):
            sys.exit("the first result is wrong")
        print("ready", flush=True)
        while not stop.is_set():
            numbers = [rnd.randrange(50_000, 300_000) for _ in range(rnd.randrange(10, 60))]
            if rounds % 2:
                numbers = [n if n % 7 != 3 else n + 1 for n in numbers]
                results = list(executor.map(work, numbers))
            else:
                came = collections.Counter()
                futures = [executor.submit(work, n) for n in numbers]
                for i, f in enumerate(futures):
                    f.add_done_callback(lambda f, i=i: came.update([i]))
                for f in concurrent.futures.as_completed(futures):
                    got(f)
                results = [got(f) for f in futures]
                if came != collections.Counter(range(len(numbers))):
                    sys.exit("results came %r times" % came)
            for n, r in zip(numbers, results):
                if r != expected(n):
                    sys.exit("%d gave %r, and is %r" % (n, r, expected(n)))
            if len(results) != len(numbers):
                sys.exit("%d results of %d calls" % (len(results), len(numbers)))
            calls += len(numbers)
            rounds += 1
            print("round", rounds, "calls", calls, flush=True)
    print("done", calls, flush=True)


if __name__ == "__main__":
    main()
