"""Checks a checkpoint against a model before anything is loaded."""

from collections.abc import Collection, Iterable, Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

_SHOWN = 8


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raises if a state dict is of another architecture; then nothing is loaded.

    The backbone must match key by key. The policy must match too, unless one side has none: fine-tuning starts from a dense
    checkpoint, and a trimmed checkpoint can be tested dense.

    Args:
        model: The model that is about to load.
        state_dict: What it would load.
        prefix: Prefix of the model's keys in it.

    Raises:
        ValueError: With the missing and unexpected keys and the mismatched shapes, and with the heads if the tasks differ.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = {key[len(prefix) :]: tuple(value.shape) for key, value in state_dict.items() if key.startswith(prefix)}
    own_policy, their_policy = (any(key.startswith("policy.") for key in keys) for keys in (own, theirs))
    if own_policy != their_policy:
        own, theirs = ({k: v for k, v in keys.items() if not k.startswith("policy.")} for keys in (own, theirs))
        print_log(
            "The checkpoint holds no policy: the model's own starts untrained."
            if own_policy
            else "The checkpoint's policy is left out: the model's policy has no weights.",
            logger="current",
        )
    problems = list_keys("missing", own.keys() - theirs.keys()) + list_keys("unexpected", theirs.keys() - own.keys())
    mismatched = [
        f"{key} {theirs[key]}, the model's {own[key]}" for key in own.keys() & theirs.keys() if own[key] != theirs[key]
    ]
    problems += list_keys("of another shape", mismatched)
    if problems:
        heads = _other_heads(model, own, theirs)
        advice = (
            "Use a config of the checkpoint's task, or a checkpoint of the config's. A training that starts from a public file "
            "(model.backbone.init_from) gets a new head."
            if heads
            else "Use the config that the checkpoint was trained with, or convert the checkpoint first."
        )
        if any(key.startswith("slices.") for key in theirs.keys() - own.keys()):
            advice = "The checkpoint's model was sliced: name it in model.sliced too, so that this one is sliced likewise."
        elif any(key.startswith("slices.") for key in own.keys() - theirs.keys()):
            advice = "The model is sliced, by model.sliced, and the checkpoint's is not: leave one of them out."
        raise ValueError(
            f"The checkpoint is of another {'task' if heads else 'architecture'} than the config's model; nothing was loaded.\n"
            + "\n".join([*heads, *problems, advice])
        )


def _other_heads(model: nn.Module, own: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """A line for an error, if the parts of two backbones differ in the head only; else no line."""
    backbone, prefix = (model.backbone, "backbone.") if hasattr(model, "backbone") else (model, "")
    ours, other = ({key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)} for keys in (own, theirs))
    head = getattr(backbone, "head_name", None)
    if ours - other != {head} or not other - ours:
        return []
    return [f"  its head is {', '.join(map(repr, sorted(other - ours)))}, the model's {head!r}"]


def check_policy_weights(model: nn.Module, names: Iterable[str], checkpoint: str) -> None:
    """Refuses to test a policy that was never trained.

    Args:
        model: The unwrapped model.
        names: Names of the checkpoint's weights.
        checkpoint: Its path, for the error.

    Raises:
        ValueError: If the model's policy has parameters and the checkpoint has none for it.
    """
    policy = getattr(model, "policy", None)
    if policy is None or not any(True for _ in policy.parameters()):
        return
    if not any(name.startswith("policy.") for name in names):
        raise ValueError(
            f"{checkpoint} has no weights 'policy.*' for the {type(policy).__name__} of this config, whose decisions would be "
            f"random; train it first (tools/train.py ... --cfg-options load_from={checkpoint}), or test with a dense policy"
        )


def load_backbone(backbone: nn.Module, checkpoint: str) -> None:
    """Loads the ``backbone.*`` weights of one of our checkpoints into a backbone.

    Args:
        backbone: The module to load into.
        checkpoint: Path of the checkpoint; only tensors and plain values are read from it.

    Raises:
        ValueError: If the weights are of another architecture; then nothing is loaded.
    """
    weights = backbone_weights(checkpoint)
    check_state_dict(backbone, weights)
    backbone.load_state_dict(weights)


def backbone_weights(checkpoint: str) -> dict[str, Tensor]:
    """The weights of the backbone in one of our checkpoints, by the backbone's keys.

    Args:
        checkpoint: Its path; only tensors and plain values are read from it.
    """
    content = load_checkpoint_file(checkpoint)
    prefix = "backbone."
    return {
        key.removeprefix(prefix): value for key, value in content.get("state_dict", content).items() if key.startswith(prefix)
    }


def list_keys(kind: str, keys: Collection[str]) -> list[str]:
    """A line for an error: how many keys are of a kind, and the first of them; no line if there are none.

    Args:
        kind: What is wrong with them: ``'missing'``.
        keys: Their names.
    """
    if not keys:
        return []
    shown = sorted(keys)[:_SHOWN]
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return [f"  {len(keys)} {kind}: {', '.join(shown)}{more}"]
