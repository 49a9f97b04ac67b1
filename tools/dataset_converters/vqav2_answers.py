"""Writes VQAv2's answer vocabulary: ``python tools/dataset_converters/vqav2_answers.py DATA_ROOT``; see ``--help``."""

from smarttrim_mm.datasets.answer_vocabulary import main

if __name__ == "__main__":
    main()
