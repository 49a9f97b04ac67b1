"""The policies that a command line names: registered classes, or config files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.utils.config import read_config


def named_policies(model: TrimmedVLM, names: Sequence[str] | None, checkpoint: str | None = None) -> dict[str, Policy]:
    """Policies for a model, by the names to show.

    Args:
        model: The model; its own policy stands for the class that it is of.
        names: Names of ``POLICIES``, with their default settings, or config files with ``policy = dict(type=...)`` or a model
            that has one, shown by their file's name; None: the model's own policy, unless it keeps everything.
        checkpoint: File of the model's weights; None: they are random.

    Raises:
        KeyError: If there is no such policy; the message holds the nearest names.
        ValueError: If a file has no policy, two have the same name, or a policy needs weights that the checkpoint lacks.
    """
    if names is None:
        return {} if isinstance(model.policy, Dense) else {type(model.policy).__name__: model.policy}
    found: dict[str, Policy] = {}
    for name in names:
        label, policy = _build(model, name)
        if label in found:
            raise ValueError(f"--policies names {label!r} twice; expected different names: rename one of the files")
        if checkpoint is not None and policy is not model.policy and any(True for _ in policy.parameters()):
            raise ValueError(
                f"--policies holds {name!r}, whose weights {checkpoint} does not hold, being those of "
                f"{type(model.policy).__name__}; leave one of the two out"
            )
        found[label] = policy
    return found


def _build(model: TrimmedVLM, name: str) -> tuple[str, Policy]:
    if name.endswith(".py"):
        cfg = read_config(name)
        settings: Any = cfg.get("policy") or cfg.get("model", {}).get("policy")
        if settings is None:
            raise ValueError(f"--policies: {name} has no policy; expected policy = dict(type=...), or model = dict(policy=...)")
        label = Path(name).stem
    elif name == type(model.policy).__name__:
        return name, model.policy
    else:
        label, settings = name, {"type": name}
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    policy: Policy = POLICIES.build(dict(settings), default_args={"steps": steps})
    return label, policy.to(next(model.parameters()).device).eval()
