# Functions of one name made in a loop; the results of each are its own.
import pp

job_server = pp.Server(2)
jobs = []
for i in range(1, 4):
    exec(compile("def f(x):\n    return x * %d\n" % i, "made.py", "exec"))
    import linecache

    linecache.cache["made%d.py" % i] = (0, None, ["def f(x):\n", "    return x * %d\n" % i], "made%d.py" % i)
    exec(compile("def f(x):\n    return x * %d\n" % i, "made%d.py" % i, "exec"))
    print([job_server.submit(f, (x,))() for x in range(4)])
