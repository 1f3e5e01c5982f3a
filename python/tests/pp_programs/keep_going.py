# Some tens of servers and some thousand tasks, as loops that were written without a thought make them.
import pp


def f(i):
    return i % 7


total = 0
job_server = pp.Server(2)
jobs = [job_server.submit(f, (i,)) for i in range(2000)]
for job in jobs:
    total += job()
print(total, jobs[-1].tid, all(job.finished for job in jobs))
for _ in range(3):
    js = pp.Server(1)
    total += js.submit(f, (6,))()
    js.destroy()
print(total)
