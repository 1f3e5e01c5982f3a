import ppft as pp


def double(x):
    return 2 * x


def both(x):
    return double(x) + 1


s = pp.Server(ncpus=2, ppservers=())
print(sum(s.submit(both, (n,), (double,))() for n in range(20)))
print(s.get_ncpus(), s.get_active_nodes())
s.destroy()
