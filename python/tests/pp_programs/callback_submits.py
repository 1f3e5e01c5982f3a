# A callback that submits the next task and waits for it.
import pp


def inc(x):
    return x + 1


results = []
job_server = pp.Server(2)


def again(limit, x):
    if x < limit:
        results.append(job_server.submit(inc, (x,))())
    else:
        results.append(x)


for start in (1, 5, 100):
    job_server.submit(inc, (start,), (), (), again, (50,), "outer")
job_server.wait("outer")
job_server.wait()
print(sorted(results))
