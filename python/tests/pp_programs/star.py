# Auto-discovery where nobody is: the program runs here.
import pp


def f(x):
    return x + 0.5


job_server = pp.Server(ppservers=("*",))
print([job_server.submit(f, (i,))() for i in range(3)], job_server.get_active_nodes().get("local") == job_server.get_ncpus())
