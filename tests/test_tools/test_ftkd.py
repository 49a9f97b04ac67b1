"""The quickstart's student of fewer layers, trained with the real tool from a dense checkpoint."""

from pathlib import Path

import pytest
import torch

from smarttrim_mm import cli
from smarttrim_mm.engine.building import build_model
from smarttrim_mm.engine.cost_sheet import cost_sheet
from smarttrim_mm.utils.config import read_config

DENSE, STUDENT = (str(Path(__file__).parents[2] / f"configs/meter/quickstart_{name}.py") for name in ("dense", "ftkd-2x"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    weights = build_model(read_config(DENSE)).state_dict()
    path = tmp_path_factory.mktemp("teacher") / "dense.pth"
    torch.save({"state_dict": weights}, path)
    return weights, path


def test_a_student_is_trained_and_resumed(small_config, teacher, tmp_path):
    weights, path = teacher
    config = small_config(f"model = dict(distillation=dict(frozen_teacher={str(path)!r}))", base="quickstart_ftkd-2x.py")
    still = ["--cfg-options", "optim_wrapper.optimizer.lr=0.0", "optim_wrapper.optimizer.weight_decay=0.0"]
    runner = cli.train([config, "--work-dir", str(tmp_path / "still"), "--no-validate", *still])
    blocks = runner.model.backbone.trunk.blocks
    assert len(blocks) == 2
    old = "backbone.vit_model.visual.transformer.resblocks.2.mlp.c_fc.weight"
    assert torch.equal(blocks[1].mlp.c_fc.weight, weights[old])  # nothing was learnt: the start is the teacher's third block
    assert {"train/loss_task", "train/loss_distill"} <= runner.message_hub.log_scalars.keys()

    cli.train([config, "--work-dir", str(tmp_path / "run"), "--no-validate"])
    straight, half = (tmp_path / "run" / f"iter_{number}.pth" for number in (4, 2))
    resumed = cli.train([config, "--work-dir", str(tmp_path / "again"), "--no-validate", "--resume", str(half)])
    saved = torch.load(straight, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in resumed.model.state_dict().items())


def test_the_students_compute_is_what_its_config_says():
    dense, student = (cost_sheet(build_model(read_config(path)), text_length=16).dense for path in (DENSE, STUDENT))
    assert (dense / 1e6, student / 1e6) == pytest.approx((65.43, 36.89), abs=0.01)
