import time
import pp


def nap(seconds, value):
    time.sleep(seconds)
    return value


def long_nap(value):
    time.sleep(2.5)
    return value


job_server = pp.Server(2)
slow = job_server.submit(long_nap, ("slow",), (), ("time",), group="slow")
quick = [job_server.submit(nap, (0.01, i), (), ("time",), group="quick") for i in range(5)]
job_server.wait("quick")
print([j.finished for j in quick], slow.finished, slow.group, quick[0].group)
job_server.wait()
print(slow.finished, slow(), [j() for j in quick], [j.tid for j in [slow] + quick])
