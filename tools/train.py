"""Trains a model: ``python tools/train.py configs/meter/NAME.py [--resume]``; see ``--help``."""

from smarttrim_mm.cli import train

if __name__ == "__main__":
    train()
