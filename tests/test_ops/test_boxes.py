import torch

from smarttrim_mm.ops.boxes import centres, corners


def test_there_and_back():
    box = torch.tensor([[0.1, 0.2, 0.5, 0.8]])
    torch.testing.assert_close(centres(box), torch.tensor([[0.3, 0.5, 0.4, 0.6]]))
    torch.testing.assert_close(corners(centres(box)), box)
