"""`python -m ppft.server` is ppserver: see pp.server."""

import sys

from pp.server import main

if __name__ == "__main__":
    sys.exit(main())
