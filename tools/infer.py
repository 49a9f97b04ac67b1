"""Answers about images: ``python tools/infer.py CONFIG CHECKPOINT --image FILE --text "what is it?"``; see ``--help``."""

from smarttrim_mm.engine.infer import main

if __name__ == "__main__":
    main()
