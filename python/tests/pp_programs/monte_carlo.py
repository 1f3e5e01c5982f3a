import pp


def inside(seed, n):
    r = random.Random(seed)
    hits = 0
    for _ in range(n):
        x, y = r.random(), r.random()
        if x * x + y * y <= 1.0:
            hits += 1
    return hits


ppservers = ()
job_server = pp.Server(ppservers=ppservers)
n, parts = 20000, 10
inputs = [(seed, n) for seed in range(parts)]
jobs = [(i, job_server.submit(inside, i, (), ("random",))) for i in inputs]
total = sum(job() for i, job in jobs)
print("pi is about %.4f" % (4.0 * total / (n * parts)))
