"""What SmartTrim costs in training: ``python tools/train_cost.py CONFIG --random-inputs --batch-size 2``; see ``--help``."""

from smarttrim_mm.engine.train_cost import main

if __name__ == "__main__":
    main()
