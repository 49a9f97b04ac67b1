"""Slices a searched model: ``python tools/slice.py CONFIG CHECKPOINT --out FILE``; see ``--help``."""

from smarttrim_mm.engine.slice import main

if __name__ == "__main__":
    main()
