import random

import numpy as np
import pytest
import torch

from smarttrim_mm.utils.plain_state import to_plain
from smarttrim_mm.utils.random_state import get_random_state, set_random_state


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()]


def test_continues_where_it_was():
    draw()  # gauss() and randn() hold a second value back
    state = get_random_state()
    expected = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    set_random_state(state)
    assert [draw(), draw()] == expected


def test_is_plain_data():
    state = get_random_state()
    assert to_plain(state).keys() == state.keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    torch.rand(1, device="cuda")
    state = get_random_state()
    expected = torch.rand(3, device="cuda")
    set_random_state({**state, "cuda": state["cuda"].cuda()})
    assert torch.equal(torch.rand(3, device="cuda"), expected)
