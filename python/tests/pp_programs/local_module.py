# A module that lies beside the program, not in the current directory.
import pp
import pp_local_helper


def use(x):
    return pp_local_helper.triple(x)


job_server = pp.Server(1)
print(job_server.submit(use, (14,), (), ("pp_local_helper",))())
print(job_server.submit(pp_local_helper.triple, (5,))())
