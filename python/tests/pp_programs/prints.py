# What a task prints comes when its result is asked for; asked again, it does not. Real pp ends it with a blank.
import sys
import pp


def talk(n):
    print("task %d" % n)
    sys.stdout.write("and more\n")
    return n


job_server = pp.Server(1)
jobs = [job_server.submit(talk, (n,), (), ("sys",)) for n in range(3)]
job_server.wait()
print("ended")
for job in reversed(jobs):
    print("->", job())
print([job() for job in jobs])
