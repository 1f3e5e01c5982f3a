import pp


def sq(x):
    return x * x


job_server = pp.Server(1)
for n in (1, 2, 4, 1):
    job_server.set_ncpus(n)
    print(n, job_server.get_ncpus(), job_server.get_active_nodes()["local"], [job_server.submit(sq, (x,))() for x in range(5)])
job_server.set_ncpus("autodetect")
print(job_server.get_ncpus() >= 1)
