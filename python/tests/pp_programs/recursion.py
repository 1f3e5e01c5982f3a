import pp


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


job_server = pp.Server(ncpus=2)
print([job_server.submit(fib, (n,))() for n in range(15)])
print([job_server.submit(even, (n,), (odd,))() for n in range(6)])
