"""Keeps everything: the baseline, and the teacher of self-distillation."""

from smarttrim_mm.policies.base import Policy
from smarttrim_mm.registry import POLICIES


@POLICIES.register_module()
class Dense(Policy):
    """Keeps every token and every head."""
