# No "if __name__": the program's top level submits at once.
import math
import pp


def root(x):
    return math.sqrt(x)


job_server = pp.Server()
jobs = [job_server.submit(root, (i * i,), (), ("math",)) for i in range(12)]
for job in jobs:
    print(job())
