import pp


def half(x):
    if x % 2:
        raise ValueError("%d is odd" % x)
    return x // 2


job_server = pp.Server(2)
jobs = [job_server.submit(half, (n,)) for n in range(4)]
job_server.wait()
for job in jobs:
    print(repr(job()))
print(job_server.submit(half, (8,))())
