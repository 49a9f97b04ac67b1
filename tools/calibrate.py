"""Sets a policy's speed-up: ``python tools/calibrate.py CONFIG CHECKPOINT --speedup 2.0 --out NEW.pth``; see ``--help``."""

from smarttrim_mm.engine.calibration import main

if __name__ == "__main__":
    main()
