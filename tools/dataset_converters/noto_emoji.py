"""Writes emoji with their names: ``python tools/dataset_converters/noto_emoji.py NOTO_EMOJI CLDR_JSON``; see ``--help``."""

from smarttrim_mm.datasets.noto_emoji_files import main

if __name__ == "__main__":
    main()
