import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.multiprocessing import spawn

from smarttrim_mm.evaluation.compute_report import ComputeReport


def sample(multiply_adds: list[float], kept: float = 0.5) -> dict:
    count = len(multiply_adds)
    trim = {
        "multiply_adds": torch.tensor(multiply_adds),
        "dense_multiply_adds": torch.full((count,), 8e6),
        "executed_multiply_adds": torch.full((count,), 5e6),
        "kept/image.3/image": torch.full((count,), kept),
        "heads/fusion.1/text.cross": torch.full((count,), 1 - kept),
    }
    return {"image_id": 1, "trim": trim}


def test_known_numbers():
    metric = ComputeReport()
    metric.process(None, [sample([1e6, 2e6, 3e6], kept=0.5), sample([10e6], kept=0.9)])
    metrics = metric.evaluate(2)
    values = np.array([1, 2, 3, 10.0])
    assert metrics == pytest.approx(
        {
            "compute/multiply_adds": 4.0,
            "compute/multiply_adds_p05": np.percentile(values, 5),
            "compute/multiply_adds_p95": np.percentile(values, 95),
            "compute/multiply_adds_std": values.std(),
            "compute/dense_multiply_adds": 8.0,
            "compute/executed_multiply_adds": 5.0,
            "compute/speedup": 2.0,
            "compute/kept/image.3/image": 0.6,
            "compute/heads/fusion.1/text.cross": 0.4,
        },
        rel=1e-6,
    )
    assert all(type(value) is float for value in metrics.values())


def test_out_file(tmp_path):
    path = tmp_path / "new" / "report.json"
    metric = ComputeReport(out_file=str(path))
    metric.process(None, [sample([4e6, 4e6])])
    metric.evaluate(1)
    report = json.loads(path.read_text())
    assert report["samples"] == 2 and report["speedup"] == 2.0 and "M per sample" in report["units"]
    assert report["kept"] == {"image.3/image": 0.5} and report["heads"] == {"fusion.1/text.cross": 0.5}


def test_a_prediction_without_trim():
    with pytest.raises(ValueError, match=r"image 3 has \['image_id'\] but no 'trim'"):
        ComputeReport().process(None, [{"image_id": 3}])


def _evaluate_as_rank(rank: int, folder: str) -> None:
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    items = [sample([1e6, 2e6]), sample([3e6], kept=1.0), sample([6e6] * 3)]
    # as DefaultSampler deals three items to two ranks: the second rank gets the first item again
    mine = [items[0], items[2]] if rank == 0 else [items[1], items[0]]
    metric = ComputeReport()
    metric.process(None, mine)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(metric.evaluate(3)))
    destroy_process_group()


def test_two_ranks_report_what_one_would(tmp_path):
    spawn(_evaluate_as_rank, args=(str(tmp_path),), nprocs=2)
    metric = ComputeReport()
    metric.process(None, [sample([1e6, 2e6]), sample([3e6], kept=1.0), sample([6e6] * 3)])
    expected = metric.evaluate(3)
    assert expected["compute/multiply_adds"] == pytest.approx(4.0)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == pytest.approx(expected)
