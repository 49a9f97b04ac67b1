import torch

from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.drawing import draw_pairs


def test_pairs_are_unshared_new_and_drawn_by_the_seed(small_config):
    cfg = read_config(small_config("dense"))
    model, loader = build_model(cfg), build_loader(cfg, "test")

    def draw(seed: int):
        return list(draw_pairs(model, loader, batch_size=4, rounds=3, seed=seed))

    first, again, other = draw(1), draw(1), draw(2)
    items = [loader.dataset[i]["data_samples"] for i in range(len(loader.dataset))]
    questions = {int(q): item.image_id for item in items for q in item.question_ids}
    for inputs in first:
        assert inputs.image_index is None
        assert inputs.images.shape[0] == inputs.input_ids.shape[0] == 4
        assert int(inputs.text_mask.sum(1).max()) == inputs.input_ids.shape[1]  # padded to the longest, no further
        assert [questions[int(q)] for q in inputs.sample_ids] == inputs.image_ids.tolist()
    every = torch.cat([inputs.image_ids for inputs in first])
    assert every[:6].unique().numel() == 6  # all images before any comes again
    assert all(torch.equal(a.sample_ids, b.sample_ids) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a.sample_ids, b.sample_ids) for a, b in zip(first, other, strict=True))
