import threading
import pp


class Collector(object):
    def __init__(self):
        self.lock = threading.Lock()
        self.seen = {}

    def add(self, key, value):
        with self.lock:
            self.seen[key] = value


def power(base, exponent):
    return base**exponent


collector = Collector()
job_server = pp.Server(2)
for n in range(10):
    job_server.submit(power, (2, n), callback=collector.add, callbackargs=("2^%d" % n,))
job_server.wait()
print(sorted(collector.seen.items()))
