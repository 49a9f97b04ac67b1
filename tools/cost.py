"""Counts multiply-adds: ``python tools/cost.py CONFIG [--speedup S] [--plot FILE]``; see ``--help``."""

from smarttrim_mm.engine.cost import main

if __name__ == "__main__":
    main()
