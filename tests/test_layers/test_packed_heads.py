import pytest
import torch

from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.structures import TokenStream

HEADS = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2]], ids=["one", "no head", "three"])
@torch.inference_mode()
def test_autocast_leaves_out_the_same_products(encoder_layer, fixed, dtype, rows):
    _, step = encoder_layer(True)
    tokens = torch.randn(len(rows), 200, 16)  # so many that each instance is projected by its own heads
    stream = TokenStream.start(tokens, ids=torch.arange(len(rows))).pack()
    policy = fixed(heads={"words.self": HEADS[rows]})
    exact, record = run_layer(step, {"words": stream}, policy)
    with torch.autocast("cpu", dtype):
        rounded, again = run_layer(step, {"words": stream}, policy)
    on = HEADS[rows].sum().item()
    assert record.executed == again.executed == len(tokens) * 200 * 2 * 16 * 24 + on * 4 * (4 * 200 * 16 + 2 * 200 * 200)
    torch.testing.assert_close(rounded["words"].x, exact["words"].x, atol=0.05, rtol=0, check_dtype=False)
