# Generators, decorators, default values, keyword-only work and nested functions inside of what is shipped.
import functools
import pp


def series(n, step=2, *rest):
    def count():
        for i in range(0, n, step):
            yield i
    return list(count()), rest


def key(pair):
    return pair[1]


def order(pairs):
    return functools.reduce(lambda a, b: a + [b[0]], sorted(pairs, key=key), [])


job_server = pp.Server(1)
print(job_server.submit(series, (7,))(), job_server.submit(series, (7, 3, "x"))())
print(job_server.submit(order, ([("a", 3), ("b", 1), ("c", 2)],), (key,), ("functools",))())
