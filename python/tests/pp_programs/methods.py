import pp


class Account(object):
    rate = 3

    def __init__(self, owner, balance):
        self.owner = owner
        self.balance = balance

    def interest(self, years):
        return self.owner, self.balance * self.rate * years // 100


job_server = pp.Server(2)
accounts = [Account("ann", 1000), Account("bob", 500)]
jobs = [job_server.submit(a.interest, (y,)) for a in accounts for y in (1, 2, 10)]
for job in jobs:
    print(job())
