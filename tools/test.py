"""Tests a checkpoint: ``python tools/test.py configs/meter/NAME.py CHECKPOINT [--speedup-report FILE]``; see ``--help``."""

from smarttrim_mm.cli import test

if __name__ == "__main__":
    test()
