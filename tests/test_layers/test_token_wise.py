"""Compiled token-wise parts give what the eager ones give, and one graph serves all layers of a kind and all lengths."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.layers.token_wise import CompiledTokenWise, TokenWise
from smarttrim_mm.registry import MODELS
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import Replay, backbone_cases, excite, random_inputs

LENGTHS = [9, 4, 2, 7, 9, 3]
OTHERS = [[3, 8, 5], [6, 6], [2, 9, 9, 4]]
HOSTS = ["METER/shared images", "LavisBackbone/blip_vqa text first", "MMPretrainBackbone/BlipVQA text first"]
# Of each kind of layer (METER: image, text, fusion; BLIP: image, text) the MLP and, where norms come last, an attention's end.
GRAPHS = {HOSTS[0]: 5, HOSTS[1]: 3, HOSTS[2]: 3}
# Under autocast, METER's first fusion layer reads the bfloat16 of a Linear, the others the single precision of norms.
GRAPHS_OF_AUTOCAST = {**GRAPHS, HOSTS[0]: 6}


def _compiles() -> bool:
    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


needs_compiler = pytest.mark.skipif(not _compiles(), reason="torch.compile needs a C++ compiler, and there is none")


@pytest.fixture
def graphs():
    """Counts the graphs that are made from here on."""
    torch._dynamo.reset()
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


def make(name):
    config = {"backbone": backbone_cases()[name], "policy": {"type": "SmartTrim", "stable_init": False}}
    model = MODELS.build({"type": "TrimmedVLM", **config}).eval()
    excite(model.backbone)
    return model


def both(model, compiled, lengths):
    """Logits of the same decisions, eager and compiled."""
    inputs = random_inputs(model.backbone.input_format, lengths)
    model.token_wise = TokenWise()
    expected, record = model.trace(inputs)
    model.token_wise = compiled
    return expected, model.trace(inputs, policy=Replay(record))[0]


def check(name, tolerance):
    """Later batches of other lengths make no graph."""
    model, compiled = make(name), CompiledTokenWise()
    for number, lengths in enumerate([LENGTHS, *OTHERS]):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            expected, logits = both(model, compiled, lengths)
        atol = tolerance * float(expected.float().abs().max())
        torch.testing.assert_close(logits.float(), expected.float(), atol=atol, rtol=0)


@needs_compiler
@pytest.mark.parametrize("name", HOSTS)
@torch.inference_mode()
def test_equals_eager(name, graphs):
    check(name, 1e-5)
    assert graphs() == GRAPHS[name]


@needs_compiler
@pytest.mark.parametrize("name", HOSTS)
@torch.inference_mode()
def test_equals_eager_under_autocast(name, graphs):
    """Graphs keep in single precision what eager execution rounds between two operations."""
    with torch.autocast("cpu", torch.bfloat16):
        check(name, 0.05)
    assert graphs() == GRAPHS_OF_AUTOCAST[name]


def test_no_gradients_pass_through_graphs(encoder_layer, fixed, tokens, graphs):
    _, step = encoder_layer(False)
    stream = TokenStream.start(tokens, ids=torch.arange(3)).pack()
    compiled = CompiledTokenWise(backend="eager")
    out, _ = run_layer(step, {"words": stream}, fixed(), token_wise=compiled)
    out["words"].x.sum().backward()
    assert step.layers["words"].mlp.fc1.weight.grad is not None
    assert graphs() == 0
    with torch.no_grad():
        again, _ = run_layer(step, {"words": stream}, fixed(), token_wise=compiled)
    assert graphs() == 2
    assert torch.equal(out["words"].x, again["words"].x)


def test_a_model_is_eager_unless_it_is_told(graphs):
    config = {"type": "TrimmedVLM", "backbone": backbone_cases()[HOSTS[0]], "policy": {"type": "Dense"}}
    for compile, expected in ((False, 0), ({"backend": "eager"}, GRAPHS[HOSTS[0]])):
        model = MODELS.build({**config, "compile": compile}).eval()
        with torch.inference_mode():
            model(random_inputs(model.backbone.input_format, LENGTHS))
        assert graphs() == expected


def test_training_makes_no_graph(make_model, make_inputs, graphs):
    """Not even the pass of a teacher, which records no gradients."""
    model = make_model(distillation={"type": "SelfDistillation"}, compile={"backend": "eager"})
    model.train().loss(make_inputs(model))
    assert graphs() == 0


def test_padded_streams_share_the_graphs_of_packed_ones(encoder_layer, fixed, tokens, graphs):
    _, step = encoder_layer(True)
    compiled, stream = CompiledTokenWise(backend="eager"), TokenStream.start(tokens, ids=torch.arange(3))
    with torch.inference_mode():
        padded, packed = (run_layer(step, {"words": s}, fixed(), token_wise=compiled)[0] for s in (stream, stream.pack()))
    torch.testing.assert_close(padded["words"].pack().x, packed["words"].x)
    assert graphs() == 1


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"compile holds \['fullgraph'\]; expected True, or some of \['backend', 'mode'"):
        CompiledTokenWise(fullgraph=False)
    with pytest.raises(ValueError, match=r"compile.mode is 'reduce-overhead', which records CUDA graphs.*Choose 'default'"):
        CompiledTokenWise(mode="reduce-overhead")


def test_a_machine_without_a_compiler_is_told_what_to_do(encoder_layer, fixed, tokens, monkeypatch, graphs):
    def none(*_):
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    monkeypatch.setattr("torch._inductor.codecache.get_cpp_compiler", none, raising=False)
    _, step = encoder_layer(True)
    stream = TokenStream.start(tokens, ids=torch.arange(3)).pack()
    message = r"compile is set, but torch.compile failed on cpu: .*No working C\+\+ compiler.*leave model.compile out"
    uncached = torch._inductor.config.patch(force_disable_caches=True)
    with uncached, torch.inference_mode(), pytest.raises(RuntimeError, match=r"(?s)" + message):
        run_layer(step, {"words": stream}, fixed(), token_wise=CompiledTokenWise())
