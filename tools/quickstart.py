"""The whole story in one command: ``python tools/quickstart.py``; see ``--help``."""

import sys

from smarttrim_mm.engine.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
