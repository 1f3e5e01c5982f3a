from ppft import Server, Template, DestroyedServerError
from ppft import version


def mul(a, b):
    return a * b


server = Server(1)
times = Template(server, mul)
print([times.submit(a, b)() for a in range(3) for b in range(3)])
server.destroy()
try:
    server.submit(mul, (1, 2))
except DestroyedServerError as e:
    print("destroyed")
print(isinstance(version, str))
