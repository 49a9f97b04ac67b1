"""Learning rates by name that leave the rules of weight decay as they are."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.nn import GroupNorm, LayerNorm
from torch.nn.modules.batchnorm import _NormBase

from smarttrim_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NamedRates(DefaultOptimWrapperConstructor):
    """mmengine's constructor whose ``custom_keys`` change what they name, and nothing else.

    In mmengine ``norm_decay_mult`` and ``bias_decay_mult`` do not reach a parameter that a custom key catches: a layer with a
    learning rate of its own would have its norms and biases decay. Here they do, unless the key has a ``decay_mult``; and a
    bias is what METER's recipe (arXiv 2111.02387) takes for one, a name that ends so (``in_proj_bias``). The arguments are
    mmengine's.
    """

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: int | float | None = None
    ) -> None:
        """Adds a group for each parameter of a module."""
        super().add_params(params, module, prefix=prefix, is_dcn_module=is_dcn_module)
        if prefix or self.base_wd is None:
            return  # the outermost call corrects the groups of all modules
        factors = self._decay_factors(module)
        for group in params:
            factor = factors.get(id(group["params"][0]))
            if factor is not None and "decay_mult" not in group:
                group["weight_decay"] = self.base_wd * factor

    def _decay_factors(self, module: nn.Module) -> dict[int, float | None]:
        """Factors of norms and biases, by the parameter's ``id``; None: no rule."""
        of_norms, of_biases = (self.paramwise_cfg.get(f"{kind}_decay_mult") for kind in ("norm", "bias"))
        factors = {}
        for part in module.modules():
            is_norm = isinstance(part, LayerNorm | GroupNorm | _NormBase)
            for name, parameter in part.named_parameters(recurse=False):
                if is_norm or name.endswith("bias"):
                    factors[id(parameter)] = of_norms if is_norm else of_biases
        return factors
