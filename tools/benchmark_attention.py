"""What attention backends cost: ``python tools/benchmark_attention.py --batch 8 --mean-length 150``; see ``--help``."""

from smarttrim_mm.engine.attention_benchmark import main

if __name__ == "__main__":
    main()
