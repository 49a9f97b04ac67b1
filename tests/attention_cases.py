"""What tests of attention backends share: packed tensors, plans of heads, and attention written out."""

import math

import torch

from smarttrim_mm.attention.base import HeadPlan, Sequences

WIDTH = 8
HEADS = {
    "all": None,
    "some": [[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]],
    "none of one": [[0] * 4, [1, 0, 0, 0], [1] * 4],
    "none at all": [[0] * 4] * 3,
}


def plan_of(rows):
    """The plan of 0 and 1 [B][H]; None: all heads."""
    return None if rows is None else HeadPlan.of(torch.tensor(rows))


def packed(lengths_q, lengths_k, heads=4, width=WIDTH, dtype=torch.float32):
    """Random q, k, v and their sequences; keys and queries of one length are one set of sequences."""
    q = torch.randn(sum(lengths_q), heads, width).to(dtype)
    k, v = torch.randn(2, sum(lengths_k), heads, width).to(dtype).unbind(0)
    of_q = Sequences.of(lengths_q)
    return q, k, v, of_q, of_q if tuple(lengths_k) == tuple(lengths_q) else Sequences.of(lengths_k)


def written_out(q, k, v, of_q, of_k, heads=None):
    """Softmax attention of one instance and head after the other, in fp32."""
    out = torch.zeros(q.shape)
    on = heads.on if heads is not None else [range(q.shape[1])] * len(of_q.lengths)
    begin_q = begin_k = 0
    for n, m, own in zip(of_q.lengths, of_k.lengths, on, strict=True):
        asks, reads = slice(begin_q, begin_q + n), slice(begin_k, begin_k + m)
        begin_q, begin_k = asks.stop, reads.stop
        for h in own:
            scores = q[asks, h].float() @ k[reads, h].float().T / math.sqrt(q.shape[-1])
            out[asks, h] = scores.softmax(-1) @ v[reads, h].float()
    return out


def least_work(q, of_q, of_k, heads=None):
    """Multiply-adds of the pairs that are on, without padding."""
    on = [len(own) for own in heads.on] if heads is not None else [q.shape[1]] * len(of_q.lengths)
    return 2 * q.shape[-1] * sum(h * n * m for h, n, m in zip(on, of_q.lengths, of_k.lengths, strict=True))


def random_cases(draws=30, heads=4, seed=0):
    """(name, (queries, keys of each instance), gates [B][H] or None): what must hold, and random draws."""
    named = [
        ("one token each", ((1, 1, 1), (1, 1, 1)), None),
        ("one instance", ((7,), (7,)), None),
        ("one instance of one token", ((1,), (9,)), [[0, 1, 0, 0]]),
        ("equal lengths", ((6, 6, 6), (6, 6, 6)), None),
        ("equal lengths, some heads", ((6, 6, 6), (6, 6, 6)), HEADS["some"]),
        ("very unequal lengths", ((1, 200), (1, 200)), None),
        ("very unequal lengths, some heads", ((200, 1, 3), (1, 200, 40)), HEADS["some"]),
        ("one head on", ((3, 4, 5), (5, 4, 3)), [[0, 0, 1, 0]] * 3),
        ("no head of an instance", ((3, 4, 5), (3, 4, 5)), HEADS["none of one"]),
        ("no head at all", ((3, 4, 5), (3, 4, 5)), HEADS["none at all"]),
        ("every head, as a plan", ((3, 4, 5), (3, 4, 5)), [[1] * heads] * 3),
    ]
    generator = torch.Generator().manual_seed(seed)
    for number in range(draws):
        batch = int(torch.randint(1, 7, (), generator=generator))
        longest = (4, 20, 60)[number % 3]
        lengths = [tuple(torch.randint(1, longest, (batch,), generator=generator).tolist()) for _ in range(2)]
        if number % 2:  # self-attention
            lengths[1] = lengths[0]
        share = (0.1, 0.5, 0.9)[number // 2 % 3]
        on = (torch.rand(batch, heads, generator=generator) < share).int().tolist()
        named.append((f"draw {number}", tuple(lengths), None if number % 5 == 0 else on))
    return named
