import torch

from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision, PackedLayout, PaddedLayout, TokenStream

IDS = torch.arange(3)


def test_how_tokens_lie(tokens):
    stream = TokenStream.start(tokens, ids=IDS)
    for kind, layout in (("masked", PaddedLayout), ("packed", PackedLayout)):
        execution = Execution(Policy(steps=[]), sample_ids=IDS, kind=kind)
        assert isinstance(execution.start(stream).layout, layout)


def test_guides_reach_the_policy(encoder_layer, tokens):
    class Listens(Policy):
        def before_layer(self, step, streams, guides):
            self.heard = guides
            return Decision()

    policy, guide = Listens(steps=[]), torch.randn(3, 5)
    execution = Execution(policy, sample_ids=IDS, kind="masked")
    execution.run([encoder_layer(True)[1]], {"words": TokenStream.start(tokens, ids=IDS)}, guides={"question": guide})
    assert policy.heard["question"] is guide
    assert len(execution.record.steps) == 1


def test_checkpointing_recomputes_the_layer(encoder_layer, tokens):
    """Dropout and all: the same numbers, and every layer is run once more in the backward pass."""
    results = []
    for checkpoint_layers in (False, True):
        torch.manual_seed(0)
        host, step = encoder_layer(False, dropout=0.2)
        host.train()
        calls = []
        host.linear1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        x = tokens.clone().requires_grad_()
        execution = Execution(Policy(steps=[]), sample_ids=IDS, kind="masked", checkpoint_layers=checkpoint_layers)
        torch.manual_seed(1)
        execution.run([step], {"words": TokenStream.start(x, ids=IDS)})["words"].x.square().sum().backward()
        results.append((x.grad, host.linear1.weight.grad, len(calls)))
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1])
    assert [calls for *_, calls in results] == [1, 2]
