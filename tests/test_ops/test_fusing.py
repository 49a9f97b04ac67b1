import torch

from smarttrim_mm.ops.fusing import fuse_rest

GONE = -torch.inf


def test_the_rest_fuses_at_the_place_of_its_best():
    scores = torch.tensor([[GONE, 0.3, 0.1, 0.5, 0.2, GONE]]).expand(6, 6)
    # 3, 1, 4, 2 by score
    assert fuse_rest(scores, torch.tensor([0, 1, 2, 3, 4, 9])).tolist() == [
        [0, 3, 3, 3, 3, 5],
        [0, 1, 1, 3, 1, 5],
        [0, 1, 4, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],  # one alone is not fused with anything
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]


def test_ties_go_to_the_lower_index_and_rows_without_tokens_stay():
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.2], [GONE] * 4, [GONE, 0.1, GONE, GONE]])
    assert fuse_rest(scores, torch.tensor([1, 0, 0])).tolist() == [[0, 1, 1, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
