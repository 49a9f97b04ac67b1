"""``torch.compile`` traces the token-wise parts of every backbone's layers, once for all lengths."""

import torch

from smarttrim_mm.layers.token_wise import CompiledTokenWise
from smarttrim_mm.testing import Replay


def test_later_batches_make_no_graph(build, inputs_of, backbone):
    """Traced alone: what the compiler makes of graphs is tested beside the function."""
    torch._dynamo.reset()
    model = build(backbone, {"type": "SmartTrim", "stable_init": False})
    eager, compiled = model.token_wise, CompiledTokenWise(backend="eager")
    with torch.inference_mode():
        for number, lengths in enumerate(([9, 4, 2, 7, 9, 3], [3, 8, 5], [6, 6, 9, 2])):
            inputs = inputs_of(model, lengths=lengths)
            model.token_wise = eager
            expected, record = model.trace(inputs)
            model.token_wise = compiled
            with torch._dynamo.config.patch(error_on_recompile=number > 0):
                logits, _ = model.trace(inputs, policy=Replay(record))
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
