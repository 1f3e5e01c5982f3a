"""`python -m pp` is ppserver, as with Parallel Python."""

import sys

from .server import main

sys.exit(main())
