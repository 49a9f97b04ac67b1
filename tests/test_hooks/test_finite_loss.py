"""A NaN that is put into a known layer of a real training is found there, and nothing of it is saved."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from smarttrim_mm import cli
from smarttrim_mm.hooks.finite_loss import FiniteLossHook
from smarttrim_mm.registry import HOOKS, OPTIM_WRAPPERS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file, newest_checkpoint

ROOT = Path(__file__).parents[2]
_CONFIG = """
_base_ = {base!r}
train_cfg = dict(max_iters=4, val_interval=100)
param_scheduler = []
train_dataloader = dict(batch_size=2, dataset=dict(num_images=6))
val_dataloader = dict(batch_size=2, dataset=dict(num_images=3))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
custom_hooks = [dict(type="CurriculumHook"), dict(type="Spoil", **{spoil!r})]
log_level = "WARNING"
"""
LAYER = "backbone.vit_model.visual.transformer.resblocks.2.mlp.c_proj.weight"


@HOOKS.register_module()
class Spoil(Hook):
    """Spoils a weight, or its gradient, before the third iteration."""

    def __init__(self, parameter: str, value: float | str, gradient: bool = False, iteration: int = 2) -> None:
        self.parameter, self.value, self.gradient, self.iteration = parameter, float(value), gradient, iteration

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter == self.iteration:
            parameter = runner.model.get_parameter(self.parameter)
            if self.gradient:
                parameter.register_hook(lambda gradient: gradient * self.value)
            else:
                with torch.no_grad():
                    parameter.view(-1)[0] = self.value


@pytest.fixture
def spoilt(tmp_path):
    """Trains on real images with a spoilt parameter: the work dir, and the words of the error."""

    def train(*more: str, **spoil) -> tuple[Path, str]:
        config = tmp_path / f"{tmp_path.name}.py"
        config.write_text(_CONFIG.format(base=str(ROOT / "configs/meter/quickstart_smarttrim.py"), spoil=spoil))
        with pytest.raises(FloatingPointError) as caught:
            cli.train([str(config), "--work-dir", str(tmp_path / "run"), *more])
        return tmp_path / "run", str(caught.value)

    return train


@pytest.mark.parametrize("more", [[], ["--amp"]], ids=["fp32", "bf16"])
def test_the_layer_whose_output_is_not_finite(spoilt, more):
    work_dir, message = spoilt(*more, parameter=LAYER, value=3e38)
    assert "Training stops at iteration 3: the loss is not finite (loss_task nan, loss_distill nan, loss_budget " in message
    assert f"forward pass first leaves the finite numbers in layer 'image.2' at aten.addmm with {LAYER}" in message
    assert f"The last good checkpoint is {work_dir / 'iter_2.pth'}" in message
    assert f"--resume {work_dir / 'iter_2.pth'} --work-dir {work_dir}" in message


def test_a_weight_that_is_not_finite(spoilt):
    _, message = spoilt(parameter=LAYER, value="nan")
    assert "stops at iteration 3: the loss is not finite" in message
    assert f"The weights themselves are not finite before the step: {LAYER}." in message


def test_a_gradient_that_is_not_finite(spoilt):
    _, message = spoilt(parameter=LAYER, value="inf", gradient=True)
    assert "stops at iteration 3: gradients are not finite (loss_task " in message and "nan" not in message.split(".")[0]
    assert f"backward pass first leaves the finite numbers in layer 'image.2' at the gradient of {LAYER};" in message


def test_what_was_saved_is_whole_and_goes_on(spoilt, tmp_path):
    work_dir, _ = spoilt(parameter=LAYER, value=3e38)
    newest = newest_checkpoint(work_dir)
    assert Path(newest).name == "iter_2.pth" and not (work_dir / "iter_3.pth").exists()
    assert all(value.isfinite().all() for value in load_checkpoint_file(newest)["state_dict"].values())
    config = tmp_path / "healthy.py"
    config.write_text((tmp_path / f"{tmp_path.name}.py").read_text().replace("'value': 3e+38", "'value': 0.0"))
    runner = cli.train([str(config), "--resume", newest, "--work-dir", str(tmp_path / "again")])
    assert runner.iter == 4
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())


def test_before_anything_was_saved(spoilt):
    work_dir, message = spoilt(parameter=LAYER, value=3e38, iteration=0)
    assert "stops at iteration 1" in message and "Nothing had been saved yet: lower the learning rate" in message
    assert not list(work_dir.glob("*.pth"))


@HOOKS.register_module()
class SpoilBeforeSaving(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == 5:
            runner.model.linear.weight.data.fill_(float("inf"))


def test_weights_that_are_not_finite_are_not_saved(toy_config):
    settings = {"default_hooks.checkpoint.interval": 2, "custom_hooks": [{"type": "SpoilBeforeSaving"}]}
    runner = Runner.from_cfg(toy_config(**settings))
    with pytest.raises(FloatingPointError, match=r"iteration 6: 1 weights are not finite, the first is linear\.weight"):
        runner.train()
    assert sorted(path.name for path in Path(runner.work_dir).glob("*.pth")) == ["iter_2.pth", "iter_4.pth"]


@OPTIM_WRAPPERS.register_module()
class ScaledOnCPU(OptimWrapper):
    """mmengine's wrapper of mixed precision needs a GPU; torch's scaler of losses does not."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def backward(self, loss, **kwargs) -> None:
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update()


def test_a_step_that_a_scaler_skips_is_no_fault(toy_run):
    runner = toy_run(**{"optim_wrapper.type": "ScaledOnCPU"})
    assert runner.iter == 8
    assert 0 < runner.optim_wrapper.scaler.get_scale() < 2.0**127  # infinite gradients were skipped
    assert runner.model.linear.weight.isfinite().all()


def test_a_loss_that_is_not_finite_is_a_fault_with_a_scaler_too(toy_config):
    """The scaler would skip every step, for ever."""
    spoil = {"type": "Spoil", "parameter": "linear.weight", "value": 3e38}
    runner = Runner.from_cfg(toy_config(**{"optim_wrapper.type": "ScaledOnCPU", "custom_hooks": [spoil]}))
    with pytest.raises(FloatingPointError, match=r"iteration 3: the loss is not finite \(loss_task inf\)\. Run again"):
        runner.train()


def test_a_run_without_a_fault_is_the_same_without_the_hook(toy_config):
    weights = []
    for name in ("with", "without"):
        cfg = toy_config(name)
        if name == "without":
            del cfg.default_hooks.finite
        runner = Runner.from_cfg(cfg)
        runner.train()
        weights.append(runner.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_handles_are_given_back(toy_run):
    runner = toy_run()
    hook = next(hook for hook in runner.hooks if isinstance(hook, FiniteLossHook))
    assert not hook._handles and not runner.model._forward_hooks
