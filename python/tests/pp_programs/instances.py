# Instances of the program's own classes go there and come back.
import pp


class Point(object):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __repr__(self):
        return "Point(%r, %r)" % (self.x, self.y)

    def __add__(self, other):
        return Point(self.x + other.x, self.y + other.y)


def move(points, by):
    return [p + by for p in points]


def middle(points):
    return Point(sum(p.x for p in points) / float(len(points)), sum(p.y for p in points) / float(len(points)))


job_server = pp.Server(1)
moved = job_server.submit(move, ([Point(0, 0), Point(2, 4)], Point(1, 1)), (Point,))()
print(moved, type(moved[0]) is Point)
print(job_server.submit(middle, (moved,), (Point,))())
