"""What a prediction is, unless a backbone says so itself, and how many a data sample has."""

from collections.abc import Sequence

from mmpretrain.structures import DataSample
from torch import Tensor


def answers_of(sample: DataSample) -> int:
    """Number of answers that a data sample is for: one a question, or, of an image without any, one."""
    return len(sample.questions) if "questions" in sample else 1


def write_scores(logits: Tensor, data_samples: Sequence[DataSample]) -> None:
    """Fills in ``pred_scores`` [Q, C] of each data sample: probabilities.

    Args:
        logits: [G, C].
        data_samples: One per image, with its ``questions``.

    Raises:
        ValueError: If there is one score a sample: of a head for retrieval.
    """
    if logits.shape[1] < 2:
        raise ValueError(
            f"the model gives scores {list(logits.shape)}, from which nothing can be chosen: a ranking head compares all "
            "images with all texts. Set val_cfg=dict(type='AllPairsValLoop') and test_cfg=dict(type='AllPairsTestLoop')"
        )
    scores = logits.float().softmax(-1).split([answers_of(sample) for sample in data_samples])
    for sample, own in zip(data_samples, scores, strict=True):
        sample.set_field(own, "pred_scores", dtype=Tensor)
