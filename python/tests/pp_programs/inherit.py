import pp


class Shape(object):
    def area(self):
        raise NotImplementedError

    def describe(self):
        return "%s of %s" % (type(self).__name__, self.area())


class Rectangle(Shape):
    def __init__(self, a, b):
        self.a, self.b = a, b

    def area(self):
        return self.a * self.b


class Square(Rectangle):
    def __init__(self, a):
        super(Square, self).__init__(a, a)


def describe(shape):
    return shape.describe()


job_server = pp.Server(1)
for shape in (Rectangle(2, 3), Square(4)):
    print(job_server.submit(describe, (shape,), (Shape, Rectangle, Square))())
