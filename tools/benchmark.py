"""Compares clocks: ``python tools/benchmark.py CONFIG [CHECKPOINT] --batch-sizes 1 32``; see ``--help``."""

from smarttrim_mm.engine.benchmark import main

if __name__ == "__main__":
    main()
