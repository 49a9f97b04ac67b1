"""Kernels of GPUs: what they are given is checked here by functions of the same arguments; a GPU runs test_every_backend.py."""

import inspect
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from attention_cases import least_work, packed, plan_of, random_cases, written_out
from torch.nn.attention import varlen

from smarttrim_mm.attention.base import ChosenAttention, HeadPlan, Sequences
from smarttrim_mm.attention.flash_varlen import FlashVarlenAttention
from smarttrim_mm.attention.varlen import VarlenAttention

CUDA, BF16 = torch.device("cuda"), torch.bfloat16
VARLEN_SIGNATURE = inspect.signature(varlen.varlen_attn)


def checked(q, k, v, cu_q, cu_k, max_q, max_k, scale):
    """What kernels for sequences of different lengths demand, and what they compute."""
    assert q.dim() == k.dim() == 3 and q.shape[1:] == k.shape[1:] and k.shape == v.shape
    assert q.shape[2] % 8 == 0 and {x.stride(-1) for x in (q, k, v)} == {1}
    lengths = []
    for cu, tokens, longest in ((cu_q, len(q), max_q), (cu_k, len(k), max_k)):
        assert cu.dtype == torch.int32 and cu.is_contiguous() and cu[0] == 0 and cu[-1] == tokens
        lengths.append(cu.diff().tolist())
        assert type(longest) is int and min(lengths[-1]) > 0 and max(lengths[-1]) == longest
    assert len(lengths[0]) == len(lengths[1])
    q = q * scale * q.shape[2] ** 0.5
    return written_out(q, k, v, *map(Sequences.of, lengths)).to(v.dtype)


@pytest.fixture
def of_torch(monkeypatch):
    def varlen_attn(*args, **kwargs):
        given = VARLEN_SIGNATURE.bind(*args, **kwargs).arguments
        assert given.keys() == {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale"}
        return checked(*given.values())

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    return VarlenAttention


@pytest.fixture
def of_package(monkeypatch):
    """The arguments of flash-attn 2."""

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
    ):
        assert (dropout_p, causal, window_size) == (0.0, False, (-1, -1))
        return checked(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)

    package = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return FlashVarlenAttention


@pytest.fixture(params=["of_torch", "of_package"])
def kind(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("price", [0, 2**40], ids=["pairs", "all heads"])
@pytest.mark.parametrize("width", [8, 12])
def test_what_the_kernel_is_given(kind, price, width):
    backend = kind(multiply_adds_per_move=price)
    for name, lengths, rows in random_cases():
        case, heads = packed(*lengths, width=width), plan_of(rows)
        out, executed = backend(*case, heads)
        torch.testing.assert_close(out, written_out(*case, heads), msg=lambda m, n=name: f"{n}: {m}")
        none = heads is not None and heads.pairs == 0
        expected = least_work(case[0], *case[3:], heads if price == 0 or none else None)
        assert executed == expected, name


def test_views_of_a_fused_projection_and_gradients(kind):
    qkv = torch.randn(6, 3 * 4 * 8, requires_grad=True)
    q, k, v = (x.unflatten(-1, (4, 8)) for x in qkv.chunk(3, -1))
    of, heads = Sequences.of([1, 2, 3]), plan_of([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]])
    weight = torch.randn(6, 4, 8)
    (kind(multiply_adds_per_move=0)(q, k, v, of, of, heads)[0] * weight).sum().backward()
    found, qkv.grad = qkv.grad, None
    (written_out(q, k, v, of, of, heads) * weight).sum().backward()
    torch.testing.assert_close(found, qkv.grad)


@pytest.mark.parametrize("price", [0, 2**40], ids=["pairs", "all heads"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_function_of_torch_takes_it_and_nothing_is_read(price, dtype):
    """Tensors without values go through torch's own operator: its schema holds, and no value decides on a shape."""
    for name, lengths, rows in random_cases(draws=6):
        q, k, v, of_q, of_k = packed(*lengths, dtype=dtype)
        plan = None if rows is None else HeadPlan(torch.tensor(rows).bool().to("meta"), plan_of(rows).on)
        of_q, of_k = (Sequences(of.lengths, of.cu_seqlens.to("meta")) for of in (of_q, of_k))
        out, _ = VarlenAttention(multiply_adds_per_move=price)(*(x.to("meta") for x in (q, k, v)), of_q, of_k, plan)
        assert out.shape == q.shape and out.dtype == dtype, name


@pytest.mark.parametrize("kind", [VarlenAttention, FlashVarlenAttention])
def test_where_it_cannot_run(kind, monkeypatch):
    assert kind().unavailable(torch.device("cpu"), BF16) == "it is for GPUs"
    assert kind().unavailable(CUDA, torch.float32) == "it computes in bf16 and fp16 only"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kind().unavailable(CUDA, BF16) == "the GPU's compute capability is 7.5, and it needs 8.0 (Ampere)"


def test_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("smarttrim_mm.attention.varlen.find_spec", lambda name: None)
    monkeypatch.setattr("smarttrim_mm.attention.flash_varlen.find_spec", lambda name: None)
    assert "has no torch.nn.attention.varlen" in VarlenAttention().unavailable(CUDA, BF16)
    assert FlashVarlenAttention().unavailable(CUDA, BF16) == "the package flash-attn is not installed"


def test_the_best_of_a_gpu(monkeypatch, of_package):
    """torch's function first, then the package's, then padded calls; those alone in fp32."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def best(dtype, index):  # a device of its own for each question, as answers are remembered
        return type(ChosenAttention().on(torch.device("cuda", index), dtype)).__name__

    assert best(BF16, 100) == best(torch.float16, 100) == "VarlenAttention"
    assert best(torch.float32, 100) == "BucketedSDPA"
    monkeypatch.setattr("smarttrim_mm.attention.varlen.find_spec", lambda name: None)
    assert best(BF16, 101) == "FlashVarlenAttention"
    monkeypatch.setattr("smarttrim_mm.attention.flash_varlen.find_spec", lambda name: None)
    assert best(BF16, 102) == "BucketedSDPA"


def test_named_on_a_cpu():
    message = r"attention is 'VarlenAttention', which cannot run on cpu in torch.bfloat16: it is for GPUs. Choose 'auto'"
    with pytest.raises(ValueError, match=message):
        ChosenAttention("VarlenAttention").on(torch.device("cpu"), BF16)


def test_a_model_that_names_it_fails_on_a_cpu(make_model, make_inputs):
    model = make_model(attention="VarlenAttention")
    with pytest.raises(ValueError, match="attention is 'VarlenAttention', which cannot run on cpu"):
        model.trace(make_inputs(model))
