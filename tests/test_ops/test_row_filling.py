import pytest
import torch

from smarttrim_mm.ops.row_filling import fill_rows, take_rows


@pytest.mark.parametrize(("rows", "filled"), [(1, 16), (16, 16), (17, 32), (511, 512), (512, 512), (513, 576)])
@torch.inference_mode()
def test_half_precision_is_rounded_up(rows, filled):
    x = torch.randn(rows, 4, dtype=torch.bfloat16)
    out = fill_rows(x)
    assert out.shape == (filled, 4)
    assert torch.equal(out[:rows], x) and torch.isfinite(out).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert fill_rows(x.float()).shape == (filled, 4)


def test_single_precision_and_training_are_left_alone():
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert fill_rows(x) is x
        assert fill_rows(x.double()).shape == (5, 4)
        assert fill_rows(x.to("meta").bfloat16()).shape == (5, 4)  # no CPU
    assert fill_rows(x.bfloat16()).shape == (5, 4)  # gradients are recorded


@torch.inference_mode()
def test_what_a_layer_gave_is_not_copied():
    whole = torch.randn(32, 4, dtype=torch.bfloat16)
    assert fill_rows(whole[:20]).data_ptr() == whole.data_ptr()
    assert fill_rows(whole[:20]).shape == (32, 4)
    assert fill_rows(whole[20:]).data_ptr() != whole[20:].data_ptr()  # nothing lies behind
    turned = torch.randn(4, 32, dtype=torch.bfloat16).t()
    assert torch.equal(fill_rows(turned[:20])[:20], turned[:20])


@torch.inference_mode()
def test_taken_rows_have_room_behind_them():
    x, rows = torch.randn(40, 4, dtype=torch.bfloat16), torch.tensor([3, 7, 39])
    taken = take_rows(x, rows)
    assert torch.equal(taken, x[rows])
    filled = fill_rows(taken)
    assert filled.data_ptr() == taken.data_ptr() and not filled[3:].any() and len(filled) == 16
    assert torch.equal(take_rows(x.float(), rows), x.float()[rows])


def test_taking_rows_passes_gradients():
    x = torch.randn(4, 2, dtype=torch.bfloat16, requires_grad=True)
    take_rows(x, torch.tensor([1, 3])).sum().backward()
    assert x.grad.float().sum(1).tolist() == [0, 2, 0, 2]
