"""Checks a config's data: ``python tools/check_data.py CONFIG [--all-images] [--num-images N]``; see ``--help``."""

from smarttrim_mm.engine.check_data import main

if __name__ == "__main__":
    main()
