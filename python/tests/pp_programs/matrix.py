# Numeric work in blocks; lists of lists as arguments and results.
import pp


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def rows(block, columns):
    return [[dot(row, column) for column in columns] for row in block]


n = 24
a = [[(i * j) % 7 for j in range(n)] for i in range(n)]
b = [[(i + j) % 5 for j in range(n)] for i in range(n)]
columns = [list(c) for c in zip(*b)]
job_server = pp.Server(2)
jobs = [job_server.submit(rows, (a[i:i + 6], columns), (dot,)) for i in range(0, n, 6)]
product = []
for job in jobs:
    product.extend(job())
print(sum(map(sum, product)), product[3][:5])
