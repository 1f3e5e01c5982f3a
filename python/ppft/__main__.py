"""`python -m ppft` is ppserver."""

import sys

from pp.server import main

sys.exit(main())
