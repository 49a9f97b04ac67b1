"""Converts a public METER file: ``python tools/convert_checkpoint.py SRC DST [--config CONFIG]``; see ``--help``."""

from smarttrim_mm.engine.conversion import main

if __name__ == "__main__":
    main()
