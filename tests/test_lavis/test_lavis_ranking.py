"""LAVIS's retrieval matrices: against LAVIS's own function, on the same weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from small_lavis import ANSWERS, SIZES, TEXTS
from torch.distributed import destroy_process_group, init_process_group
from torch.multiprocessing import start_processes

from smarttrim_mm.testing import count_multiply_adds

CAPTIONS = [*TEXTS, *ANSWERS, "is it red ?", "a dog on the grass " * 12]  # the last is cut
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


class Loader(list):
    """Batches as LAVIS's loader gives them."""

    def __init__(self, images, batch_size=3, texts=CAPTIONS):
        super().__init__({"image": part} for part in images.split(batch_size))
        self.dataset = SimpleNamespace(text=texts, image=[f"{i}.png" for i in range(len(images))])


ARCHS = ["blip_retrieval", "albef_retrieval", "blip2_qformer", "blip2_image_text_matching"]


def sizes_of(arch):
    """With places for LAVIS's 35 tokens."""
    text = {**SIZES["text"], "max_position_embeddings": 40, **({"fusion_layer": 1} if arch.startswith("albef") else {})}
    return {"text": text, "queue_size": 24, "embed_dim": 16, "num_query_token": 4}


@pytest.fixture
def make_ranking(build):
    """A small trimmed model."""

    def make(arch, policy="Dense"):
        return build(arch, policy, **sizes_of(arch))

    return make


@pytest.fixture
def loader():
    return Loader(torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def matrices(model, loader, k_test):
    model.before_evaluation()
    return model.compute_sim_matrix(loader, task_cfg=OmegaConf.create({"k_test": k_test}))


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_dense_equals_lavis_own(make_ranking, lavis_own, loader, arch):
    model = make_ranking(arch)
    own = lavis_own(model, **sizes_of(arch))
    for k_test in (1, 4, 7):
        ours = matrices(model, loader, k_test)
        theirs = own.compute_sim_matrix(loader, OmegaConf.create({"k_test": k_test}))
        assert [matrix.shape for matrix in ours] == [(7, 10), (10, 7)]
        for one, other in zip(ours, theirs, strict=True):
            assert ((one > -100).sum(1) == min(k_test, one.shape[1])).all() and one[one > -100].std() > 0.01
            np.testing.assert_allclose(one, other, atol=1e-4)
    report = model.compute_report()
    assert report["samples"] == 7 and report["speedup"] == pytest.approx(1)


@torch.no_grad()
def test_more_than_there_are_means_all(make_ranking, loader):
    """LAVIS's own stops there."""
    model = make_ranking("blip_retrieval")
    texts, images = matrices(model, loader, 128)
    assert (texts > -100).all()
    np.testing.assert_array_equal(texts, images.T)
    with pytest.raises(RuntimeError, match="out of range"):
        model.host_class.compute_sim_matrix(model, loader, OmegaConf.create({"k_test": 128}))


@torch.no_grad()
def test_the_report_counts_images_with_their_pairs(make_ranking, loader):
    trimmed = make_ranking("blip_retrieval", SMARTTRIM)
    whole, few = (matrices(trimmed, loader, k_test) and trimmed.compute_report() for k_test in (10, 1))
    assert whole["samples"] == few["samples"] == 7
    assert whole["speedup"] > 1 and few["speedup"] > 1
    assert whole["dense_multiply_adds"] > 1.5 * few["dense_multiply_adds"]


@pytest.mark.parametrize("arch", ARCHS[:3])
@torch.no_grad()
def test_what_runs_is_what_the_report_counts(make_ranking, arch):
    """By an independent count of what torch dispatches; attention pads texts of unequal length."""
    model = make_ranking(arch)
    images = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texts = [f"{first} {second} dog on grass" for first in ("two", "the", "a") for second in ("red", "blue", "green")]
    _, counted = count_multiply_adds(lambda: matrices(model, Loader(images, texts=texts), 2))
    report = model.compute_report()
    for name in ("multiply_adds", "dense_multiply_adds"):
        assert report["samples"] * report[name] * 1e6 == pytest.approx(counted, rel=0.01)


def _rank_as(rank, folder, model, loader):
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(matrices(model, loader, 2), f"{folder}/{rank}.pth")
    destroy_process_group()


@pytest.mark.parametrize("images", [7, 2], ids=["several batches", "one batch for two processes"])
def test_two_processes_give_what_one_does(make_ranking, loader, tmp_path, images):
    model, some = make_ranking("blip_retrieval", SMARTTRIM), Loader(torch.cat([batch["image"] for batch in loader])[:images])
    start_processes(_rank_as, args=(str(tmp_path), model, some), nprocs=2, start_method="fork")
    for rank in (0, 1):
        for one, other in zip(torch.load(tmp_path / f"{rank}.pth", weights_only=False), matrices(model, some, 2), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


@torch.no_grad()
def test_what_is_refused(make_ranking, build, loader):
    guided = build("blip2_qformer", SMARTTRIM, {"text_first": True}, **sizes_of("blip2_qformer"))
    with pytest.raises(ValueError, match="text_first is True, and there are images without texts"):
        matrices(guided, loader, 2)
    model = make_ranking("blip_retrieval")
    with pytest.raises(ValueError, match="top_k=0: expected at least 1"):
        matrices(model, loader, 0)
    with pytest.raises(ValueError, match="the section run has no k_test"):
        model.compute_sim_matrix(loader, OmegaConf.create({}))
    loader.pop()
    with pytest.raises(ValueError, match=r"the loader gave 6 of 7 images.*use_dist_eval_sampler"):
        matrices(model, loader, 2)
