import pytest
import torch

from smarttrim_mm.attention.base import AttentionBackend, ChosenAttention, HeadPlan, Sequences, ranked
from smarttrim_mm.registry import ATTENTION_BACKENDS

CPU = torch.device("cpu")


def test_the_best_of_a_cpu():
    assert type(ChosenAttention().on(CPU, torch.float32)).__name__ == "AdaptiveSDPA"


def test_orders_differ():
    """Else the choice would hang on the order of imports."""
    orders = [kind.order for kind in ranked()]
    assert len(set(orders)) == len(orders) and orders == sorted(orders)


@pytest.mark.parametrize("backend", ["PerSequenceSDPA", {"type": "PerSequenceSDPA"}])
def test_a_backend_by_name_or_config(backend):
    assert type(ChosenAttention(backend).on(CPU, torch.float32)).__name__ == "PerSequenceSDPA"


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(KeyError, match=r"'BucketSDPA' is not registered as a attention backend.*Did you mean 'BucketedSDPA'"):
        ChosenAttention("BucketSDPA")


def test_sequences_of_lengths():
    sequences = Sequences.of([3, 1, 2])
    assert sequences.lengths == (3, 1, 2)
    assert sequences.cu_seqlens.tolist() == [0, 3, 4, 6] and sequences.cu_seqlens.dtype == torch.int32


def test_plans_of_heads():
    plan = HeadPlan.of(torch.tensor([[0.0, 1.0, 0.3], [0.0, 0.0, 1.0]]))
    assert plan.on == ((1, 2), (2,)) and (plan.heads, plan.pairs, plan.whole) == (3, 3, False)
    assert plan.union() == (1, 2)
    some = plan.of_heads((1, 2))
    assert some.on == ((0, 1), (1,)) and torch.equal(some.gate, torch.tensor([[True, True], [False, True]]))
    assert plan.of_heads((0, 1, 2)) is plan
    assert HeadPlan.of(torch.ones(2, 3)).whole


@pytest.fixture
def spy():
    """A registered backend that counts its calls and leaves the work to another."""

    class SpyAttention(AttentionBackend):
        order = 2**40
        calls = 0

        def unavailable(self, device, dtype):
            return None

        def __call__(self, *args):
            type(self).calls += 1
            return ATTENTION_BACKENDS.build({"type": "PerSequenceSDPA"})(*args)

    ATTENTION_BACKENDS.register_module(module=SpyAttention)
    yield SpyAttention
    ATTENTION_BACKENDS.module_dict.pop("SpyAttention")


@pytest.mark.parametrize("attention", ["SpyAttention", {"type": "SpyAttention"}])
def test_a_model_runs_on_the_backend_of_its_config(make_model, make_inputs, spy, attention):
    model = make_model({"type": "Random", "keep_ratio": 0.5}, attention=attention)
    inputs = make_inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model.trace(inputs)[0], model.trace(inputs, "masked")[0], atol=1e-4, rtol=0)
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    attentions = sum(len(layer.attentions) for step in steps for layer in step.layers.values())
    assert spy.calls == attentions
