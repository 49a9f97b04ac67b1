"""Every registered backend, on every device that is here: see tests/attention_cases.py for what it is held against."""

from collections.abc import Iterator

import pytest
import torch
from attention_cases import WIDTH, least_work, packed, plan_of, random_cases, written_out

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences, ranked
from smarttrim_mm.utils.flop_count import count_multiply_adds

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
NOT_COUNTED_BY_TORCH = ("NestedAttention", "FlexAttention")  # no sizes in a nested tensor, no dispatch in a compiled operator
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]
CASES = random_cases()


@pytest.fixture(params=ranked(), ids=lambda kind: kind.__name__)
def kind(request) -> type[AttentionBackend]:
    return request.param


def run(kind, case, heads=None):
    """What a backend makes of a case on the device of its tensors; skips what cannot run there."""
    backend = kind()
    reason = backend.unavailable(case[0].device, case[0].dtype)
    if reason is not None:
        pytest.skip(f"{kind.__name__} on {case[0].device} in {case[0].dtype}: {reason}")
    return backend(*case, heads)


def moved(case, heads, device):
    """A case and its plan on a device; queries and keys of one set of sequences still are."""
    q, k, v, of_q, of_k = case
    on_q = Sequences(of_q.lengths, of_q.cu_seqlens.to(device))
    on_k = on_q if of_k is of_q else Sequences(of_k.lengths, of_k.cu_seqlens.to(device))
    plan = None if heads is None else HeadPlan(heads.gate.to(device), heads.on)
    return (q.to(device), k.to(device), v.to(device), on_q, on_k), plan


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_is_attention_written_out(kind, dtype, device):
    """Over random lengths and heads: values of size 1 agree within what the dtype allows."""
    for name, lengths, rows in CASES:
        case, heads = packed(*lengths, dtype=dtype), plan_of(rows)
        expected = written_out(*case, heads)
        out, executed = run(kind, *moved(case, heads, device))
        assert out.shape == case[0].shape and out.dtype == dtype, name
        torch.testing.assert_close(
            out.float().cpu(), expected, atol=TOLERANCES[dtype], rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        if heads is not None:
            on = heads.gate.repeat_interleave(torch.tensor(lengths[0]), 0)
            assert not out.cpu()[~on].any(), f"{name}: what is off is exactly zero"
        assert executed >= least_work(case[0], *case[3:], heads), name


def test_executes_what_torch_counts(kind):
    if kind.__name__ in NOT_COUNTED_BY_TORCH:
        pytest.skip("torch's counter does not see into it")
    for name, lengths, rows in CASES:
        case, heads = packed(*lengths), plan_of(rows)
        (_, executed), counted = count_multiply_adds(lambda case=case, heads=heads: run(kind, case, heads))
        assert executed == counted, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_an_instance_gets_what_it_gets_alone(kind, dtype, device):
    """Bit for bit where the backend says so, else within the tolerance."""
    for name, lengths, rows in CASES:
        case, heads = packed(*lengths, dtype=dtype), plan_of(rows)
        out, _ = run(kind, *moved(case, heads, device))
        for b in {0, len(lengths[0]) - 1}:
            begin_q, begin_k = (sum(of[:b]) for of in lengths)
            n, m = lengths[0][b], lengths[1][b]
            q, k, v = case[0][begin_q : begin_q + n], case[1][begin_k : begin_k + m], case[2][begin_k : begin_k + m]
            of_q = Sequences.of([n])
            own = None if heads is None else HeadPlan(heads.gate[b : b + 1], heads.on[b : b + 1])
            alone, _ = run(kind, *moved((q, k, v, of_q, of_q if m == n else Sequences.of([m])), own, device))
            atol = 0 if kind.bitwise else TOLERANCES[dtype]
            part = out[begin_q : begin_q + n]
            torch.testing.assert_close(part, alone, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def chunks(tokens, heads=4) -> Iterator[torch.Tensor]:
    """q, k and v as a fused projection gives them: strided views of one tensor."""
    return (x.unflatten(-1, (heads, WIDTH)) for x in torch.randn(tokens, 3 * heads * WIDTH).chunk(3, -1))


@pytest.mark.parametrize("lengths", [(1, 2, 3), (3, 3, 3), (6,)], ids=str)
@pytest.mark.parametrize("rows", [None, "some"])
def test_takes_views_of_a_fused_projection(kind, lengths, rows):
    q, k, v = chunks(sum(lengths))
    of = Sequences.of(lengths)
    heads = plan_of([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]][: len(lengths)]) if rows else None
    with torch.inference_mode():
        out, _ = run(kind, (q, k, v, of, of), heads)
    torch.testing.assert_close(out, written_out(q, k, v, of, of, heads), atol=1e-5, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients(kind, device):
    lengths, heads = ((5, 1, 4), (2, 6, 1)), plan_of([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    case = packed(*lengths, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    weight = torch.randn(case[0].shape)
    gradients = []
    for attend, (at, plan) in (
        (written_out, (case, heads)),
        (lambda *args: run(kind, args[:5], args[5])[0], moved(case, heads, device)),
    ):
        leaves = [x.detach().clone().requires_grad_() for x in at[:3]]
        try:
            (attend(*leaves, *at[3:], plan).float().cpu() * weight).sum().backward()
        except NotImplementedError as error:
            pytest.skip(str(error))
        gradients.append([x.grad.float().cpu() for x in leaves])
    for name, expected, found in zip("qkv", *gradients, strict=True):
        torch.testing.assert_close(
            found, expected, atol=1e-5 if device == "cpu" else 6e-2, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert not gradients[1][0][5].any()  # no head of this instance is on


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_waits_for_no_gpu(kind):
    """What the host knows is all it needs: the GPU is never waited for, even where lengths and heads were never seen."""
    if kind.__name__ == "FlexAttention":
        pytest.skip("it compiles at the first call")
    for dtype in (torch.bfloat16, torch.float32):
        for name, lengths, rows in CASES[-5:]:
            case, heads = moved(packed(*lengths, dtype=dtype), plan_of(rows), "cuda")
            torch.cuda.set_sync_debug_mode("error")
            try:
                run(kind, case, heads)
            except RuntimeError as error:
                pytest.fail(f"{name}: {error}")
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_reads_nothing_from_the_device(kind):
    """Tensors without values are enough: all that decides on shapes is known to the host."""
    if kind.__name__ in NOT_COUNTED_BY_TORCH:
        pytest.skip("on a CPU torch itself reads lengths, or values")
    for name, lengths, rows in CASES:
        case, heads = moved(packed(*lengths), plan_of(rows), "meta")
        backend = kind() if kind().unavailable(torch.device("meta"), torch.float32) is None else None
        if backend is None:
            pytest.skip(f"{kind.__name__} runs on its own devices only")
        assert backend(*case, heads)[0].shape == case[0].shape, name
