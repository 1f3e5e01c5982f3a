import pp


def work(text):
    name = os.path.basename(text)
    digest = h.sha1(name.encode()).hexdigest()[:8]
    return name, digest, math.floor(2.5), json.dumps({"a": 1}), dumps([1, 2]), C(1)


job_server = pp.Server(1)
print(job_server.submit(work, ("/a/b/c.txt",), (),
                        ("os.path", "math", "hashlib as h", "json", "from json import dumps", "from fractions import Fraction as C"))())
