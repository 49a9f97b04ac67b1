"""Draws pictures: ``python tools/visualize.py CONFIG CHECKPOINT --out DIR [--curves WORK_DIR]``; see ``--help``."""

from smarttrim_mm.engine.visualize import main

if __name__ == "__main__":
    main()
