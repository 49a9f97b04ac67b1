"""Compares policies with the same backbone, data, recipe, budgets and seeds; see ``--help``."""

import sys

from smarttrim_mm.engine.compare import main

if __name__ == "__main__":
    sys.exit(main())
