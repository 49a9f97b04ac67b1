"""What a trimmed model spends, and how that spreads over instances and layers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from smarttrim_mm.registry import METRICS
from smarttrim_mm.utils.checkpoint_io import write_atomically

_MILLION = 1e6
_RATIOS = ("kept/", "heads/", "runs/")


@METRICS.register_module()
class ComputeReport(BaseMetric):
    """Multiply-adds per sample (in M) and kept ratios (0-1), from the ``trim`` of a model's predictions.

    A sample is an image-question pair, a sentence with its two images, or, in retrieval, an image with all texts of the split.

    Metrics: ``multiply_adds`` (mean over samples of what the decisions leave), its spread ``multiply_adds_p05``,
    ``multiply_adds_p95`` and ``multiply_adds_std``; ``dense_multiply_adds``; ``executed_multiply_adds`` (what really
    ran); ``speedup`` (dense mean / decided mean, of the whole model); ``packed`` (share of the samples that ran packed; the
    others ran in dense shapes, as the model's ``packed_from`` has it; where a test tells); of a sliced model,
    ``unsliced_multiply_adds`` (the dense model before it was sliced; ``dense_multiply_adds`` and ``speedup`` are those of the
    sliced one); ``kept/<step>/<stream>``, ``heads/<step>/<attention>`` and, of parts of layers that may be skipped, the share
    of samples that run them, ``runs/<step>/<part>``.

    Args:
        out_file: Also write them to this file as JSON, with the number of samples and the units; None: do not.
        prefix: Prefix of the metrics' names.
        **kwargs: Further arguments of mmengine's `BaseMetric`.
    """

    default_prefix = "compute"

    def __init__(self, *, out_file: str | None = None, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init__(prefix=prefix, **kwargs)
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the numbers of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``trim``: per name a tensor [Q], one value a question.

        Raises:
            ValueError: If a sample has no ``trim``.
        """
        for sample in data_samples:
            if "trim" not in sample:
                raise ValueError(
                    f"the prediction of image {sample.get('image_id')} has {sorted(sample)} but no 'trim': "
                    "ComputeReport expects a TrimmedVLM; take it out of the evaluator for other models"
                )
            self.results.append({name: value.detach().double().cpu().numpy() for name, value in sample["trim"].items()})

    def compute_metrics(self, results: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Averages over samples (not over items, which have different numbers of them).

        Args:
            results: For each item, per name its values [Q].

        Returns:
            The metrics named in the class's docstring.
        """
        values = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
        unsliced = "unsliced_multiply_adds"
        decided = values["multiply_adds"] / _MILLION
        dense = values["dense_multiply_adds"] / _MILLION
        metrics = {
            "multiply_adds": decided.mean(),
            "multiply_adds_p05": np.percentile(decided, 5),
            "multiply_adds_p95": np.percentile(decided, 95),
            "multiply_adds_std": decided.std(),
            "dense_multiply_adds": dense.mean(),
            "executed_multiply_adds": values["executed_multiply_adds"].mean() / _MILLION,
            "speedup": dense.mean() / decided.mean(),
            **({"unsliced_multiply_adds": values[unsliced].mean() / _MILLION} if unsliced in values else {}),
            **({"packed": values["packed"].mean()} if "packed" in values else {}),
        }
        metrics |= {name: value.mean() for name, value in values.items() if name.startswith(_RATIOS)}
        metrics = {name: float(value) for name, value in metrics.items()}
        if self.out_file is not None:
            self._write(Path(self.out_file), metrics, samples=len(decided))
        return metrics

    def _write(self, path: Path, metrics: dict[str, float], samples: int) -> None:
        ratios = {
            prefix[:-1]: {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
            for prefix in _RATIOS
        }
        whole = {name: value for name, value in metrics.items() if not name.startswith(_RATIOS)}
        units = (
            "multiply-adds in M per sample (an image-question pair, a sentence with its images, or an image with all texts "
            "that it is ranked against); samples share nothing but, in retrieval, the texts' encodings; ratios in 0-1"
        )
        content = {"samples": samples, "units": units, **whole, **ratios}
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
