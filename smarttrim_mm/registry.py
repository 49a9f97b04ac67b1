"""Registries of the package: children of mmengine's, so that configs name classes by strings.

Each registry knows the folder where its classes live and imports it at the first look-up. The folders import all their
files, so a new file is found without any list being edited.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from mmengine import registry as _mm
from mmengine.config.utils import MODULE2PACKAGE

_SCOPE = "smarttrim_mm"
MODULE2PACKAGE[_SCOPE] = _SCOPE  # mmengine reads `PACKAGE::CONFIG` from the packages of this list only


def import_submodules(package: str, path: Iterable[str]) -> None:
    """Imports every module of a package, so that its classes register themselves.

    Args:
        package: Dotted name of the package (its ``__name__``).
        path: Its ``__path__``.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


class Registry(_mm.Registry):
    """A mmengine registry whose look-ups fail with the nearest registered names."""

    def get(self, key: str) -> Any:
        """Returns the class registered as ``key``.

        Args:
            key: A registered name, ``scope.name``, or the dotted path of a class.

        Raises:
            KeyError: If nothing is registered under ``key`` here or in a parent.
        """
        try:
            found = super().get(key)
        except RuntimeError:  # mmengine's answer to a dotted name that cannot be imported
            found = None
        if found is None or isinstance(found, ModuleType):  # mmengine imports 'random' as Python's module of that name
            raise KeyError(self._unknown(key))
        return found

    def _unknown(self, key: str) -> str:
        names: set[str] = set()
        registry: _mm.Registry | None = self
        while registry is not None:
            names |= set(registry.module_dict)
            registry = registry.parent
        own = sorted(self.module_dict)
        lower = {name.lower(): name for name in names}
        near = [lower[name] for name in difflib.get_close_matches(key.lower(), lower, n=3, cutoff=0.5)]
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Registered here: {', '.join(own)}."
        return (
            f"{key!r} is not registered as a {self.name} of {_SCOPE}. {hint} A class of your own is found if its module is "
            "imported: put the file into the package's folder, or name it in the config's custom_imports."
        )


def _child(name: str, parent: _mm.Registry | None = None, folders: tuple[str, ...] = ()) -> Registry:
    return Registry(name, parent=parent, scope=_SCOPE, locations=[f"{_SCOPE}.{folder}" for folder in folders])


POLICIES = _child("policy", folders=("policies",))
TRIMMERS = _child("trimmer", folders=("trimmers",))
ATTENTION_BACKENDS = _child("attention backend", folders=("attention",))
TOKENIZERS = _child("tokenizer", folders=("datasets",))
LAVIS_ARCHS = _child("LAVIS architecture", folders=("backbones",))
MMPRETRAIN_MODELS = _child("backbone for a model of mmpretrain", folders=("backbones",))

MODELS = _child("model", _mm.MODELS, ("models", "backbones", "losses"))
HOOKS = _child("hook", _mm.HOOKS, ("hooks",))
LOG_PROCESSORS = _child("log processor", _mm.LOG_PROCESSORS, ("hooks",))
DATASETS = _child("dataset", _mm.DATASETS, ("datasets",))
TRANSFORMS = _child("transform", _mm.TRANSFORMS, ("datasets",))
METRICS = _child("metric", _mm.METRICS, ("evaluation",))
LOOPS = _child("loop", _mm.LOOPS, ("loops",))
OPTIM_WRAPPERS = _child("optimizer wrapper", _mm.OPTIM_WRAPPERS, ("optim",))
OPTIM_WRAPPER_CONSTRUCTORS = _child("optimizer wrapper constructor", _mm.OPTIM_WRAPPER_CONSTRUCTORS, ("optim",))
VISUALIZERS = _child("visualizer", _mm.VISUALIZERS, ("visualization.trim_visualizer",))
VISBACKENDS = _child("vis_backend", _mm.VISBACKENDS, ("visualization.picture_backend",))

# Nothing of our own lives in these yet; without them mmengine warns at every build under our scope.
RUNNERS = _child("runner", _mm.RUNNERS)
RUNNER_CONSTRUCTORS = _child("runner constructor", _mm.RUNNER_CONSTRUCTORS)
DATA_SAMPLERS = _child("data sampler", _mm.DATA_SAMPLERS)
MODEL_WRAPPERS = _child("model_wrapper", _mm.MODEL_WRAPPERS)
WEIGHT_INITIALIZERS = _child("weight initializer", _mm.WEIGHT_INITIALIZERS)
OPTIMIZERS = _child("optimizer", _mm.OPTIMIZERS)
PARAM_SCHEDULERS = _child("parameter scheduler", _mm.PARAM_SCHEDULERS)
EVALUATOR = _child("evaluator", _mm.EVALUATOR)
TASK_UTILS = _child("task util", _mm.TASK_UTILS)
FUNCTIONS = _child("function", _mm.FUNCTIONS)
INFERENCERS = _child("inferencer", _mm.INFERENCERS)
STRATEGIES = _child("strategy", _mm.STRATEGIES)
