import pytest
import torch

from smarttrim_mm.engine.memory import peak_growth, storage_bytes


def test_peak_of_tensors_alive():
    before = torch.zeros(1000)  # there already: not counted

    def run():
        kept = torch.zeros(2**20)  # 4 MiB
        torch.zeros(2**21)  # 8 MiB, gone at once
        return [kept, torch.zeros(2**19)]  # 2 MiB

    assert peak_growth(run, before.device) == pytest.approx(12 * 2**20, abs=4096)
    assert peak_growth(lambda: before.add_(1), before.device) < 64  # the scalar


def test_peak_in_inference_mode_and_of_what_is_computed():
    x = torch.ones(256, 1024)
    with torch.inference_mode():
        assert peak_growth(lambda: (x * 2).sum(), x.device) == pytest.approx(2**20, abs=4096)


def test_views_share_their_memory():
    x = torch.zeros(4, 8)
    assert storage_bytes([x, x[1:], x.view(-1), torch.zeros(2, dtype=torch.float64)]) == 4 * 8 * 4 + 16
