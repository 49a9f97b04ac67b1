"""Converts checkpoints from and to LAVIS: ``python tools/convert_lavis.py import CONFIG SRC DST``; see ``--help``."""

from smarttrim_mm.engine.lavis_conversion import main

if __name__ == "__main__":
    main()
