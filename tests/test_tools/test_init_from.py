"""Public weights under a Runner: read when a training starts, and only then; ``load_from`` goes over them."""

import public_checkpoints  # noqa: F401  # repairs torchvision before transformers' models are imported
import pytest
import torch
from transformers import RobertaModel

from smarttrim_mm import cli
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

PREFIX = "backbone.text_transformer."
STILL = ["optim_wrapper.optimizer.lr=0", "train_cfg.max_iters=2", "param_scheduler=[]"]  # weights stay as they start


@pytest.fixture
def folder(small_config, tmp_path):
    config = build_model(read_config(small_config(base="quickstart_dense.py"))).backbone.text_transformer.config
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    return tmp_path / "roberta"


def text_encoder(path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in load_checkpoint_file(path)["state_dict"].items() if key.startswith(PREFIX)}


def test_a_training_starts_from_public_weights(small_config, folder, tmp_path):
    config, first, second = small_config(base="quickstart_dense.py"), tmp_path / "first", tmp_path / "second"
    options = ["--no-validate", "--cfg-options", "log_level=INFO", *STILL]
    init_from = f"model.backbone.init_from.roberta={folder}"
    cli.train([config, "--work-dir", str(first), *options, init_from])
    trained, public = text_encoder(first / "iter_2.pth"), RobertaModel.from_pretrained(folder).state_dict()
    assert trained
    assert not [key for key, value in trained.items() if not torch.equal(value, public[key.removeprefix(PREFIX)])]
    said = "".join(path.read_text() for path in first.glob("*/*.log"))
    assert f"METER starts from {folder}" in said and "used" in said

    other = {"state_dict": build_model(read_config(config)).state_dict()}
    torch.save(other, tmp_path / "other.pth")
    cli.train([config, "--work-dir", str(second), *options, init_from, f"load_from={tmp_path / 'other.pth'}"])
    trained = text_encoder(second / "iter_2.pth")
    assert not [key for key, value in trained.items() if not torch.equal(value, other["state_dict"][key])]

    # testing needs the checkpoint alone
    gone = "model.backbone.init_from.roberta=/nowhere"
    cli.test([config, str(second / "iter_2.pth"), "--work-dir", str(tmp_path / "test"), "--cfg-options", gone])
    with pytest.raises(FileNotFoundError, match="/nowhere: no folder with model"):
        cli.train([config, "--work-dir", str(tmp_path / "third"), *options, gone])
