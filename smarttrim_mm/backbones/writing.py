"""How a decoder of LAVIS writes: beam search, or nucleus sampling (Holtzman et al., arXiv 1904.09751)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

NUCLEUS_PENALTY = 1.1  # of repetitions: LAVIS's nucleus sampling has no other

# ids that a decoder runs on [A, t], which instance each row is about [A], which rows were finished before, bool [A]
OnRun = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Settings of a decoder that writes. The defaults are those of LAVIS's captioner.

    Attributes:
        num_beams: Beams; 1: greedily.
        max_length: Most tokens of a text, with what it continues, its begin and its end token.
        min_length: Tokens before which no text ends, counted likewise.
        nucleus: Whether tokens are drawn instead, with torch's global generator, from the likeliest that make up ``top_p``;
            of those no more than 50, as in transformers.
        top_p: Their probability.
        repetition_penalty: What the score of a token that was given already is divided by, or multiplied if it is negative.

    Raises:
        ValueError: If a number is out of range.
    """

    num_beams: int = 3
    max_length: int = 30
    min_length: int = 10
    nucleus: bool = False
    top_p: float = 0.9
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        expected = {
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "max_length": (self.max_length >= 2, "at least 2"),
            "min_length": (0 <= self.min_length <= self.max_length, f"0 to max_length, which is {self.max_length}"),
            "top_p": (0 < self.top_p <= 1, "more than 0, at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0; 1 is none"),
        }
        for name, (fits, words) in expected.items():
            if not fits:
                raise ValueError(f"generation has {name}={getattr(self, name)}; expected {words}")

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> Writing:
        """Checks the settings of a config.

        Raises:
            ValueError: If one is unknown, out of range, or has no effect beside ``nucleus``.
        """
        known = [each.name for each in fields(cls)]
        unknown = sorted(section.keys() - set(known))
        if unknown:
            raise ValueError(f"generation has {', '.join(map(repr, unknown))}; expected settings of {', '.join(known)}")
        nucleus = section.get("nucleus", False)
        idle = "num_beams" if nucleus else "top_p"
        if idle in section:
            raise ValueError(f"generation has {idle}, which has no effect with nucleus={nucleus}; leave one of the two out")
        return cls(**section)


@torch.no_grad()
def write(
    decoder: nn.Module,
    begun: Tensor,
    states: Tensor,
    mask: Tensor,
    how: Writing,
    *,
    end_id: int,
    pad_id: int,
    on_run: OnRun,
    **more: Tensor,
) -> Tensor:
    """Lets a decoder write by transformers' ``generate``.

    With several beams each text is searched for alone: transformers goes on with all of a batch until the last is found, and
    may find others for those that were found before.

    Args:
        decoder: LAVIS's ``XBertLMHeadDecoder``, or BLIP-2's Q-Former.
        begun: What is there of the texts, long [A, t].
        states: What it reads, padded on the right, [A, M, D].
        mask: True at what is real of it, bool [A, M].
        how: Settings.
        end_id: Id of the token that ends a text.
        pad_id: Id behind it.
        on_run: Called before each run of the decoder.
        **more: What the decoder gets besides, a row for each text.

    Returns:
        Token ids, what was there and the end tokens included, long [A, L].
    """
    rows = torch.arange(len(begun), device=begun.device)
    settings: dict[str, Any] = {"max_length": how.max_length, "min_length": how.min_length}
    settings |= {"repetition_penalty": how.repetition_penalty, "eos_token_id": end_id, "pad_token_id": pad_id}
    settings |= {"do_sample": True, "top_p": how.top_p} if how.nucleus else {"num_beams": how.num_beams}
    alone = not how.nucleus and how.num_beams > 1
    written = []
    for some in rows.split(1) if alone else [rows]:

        def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any], some: Tensor = some) -> None:
            ids = args[0] if args else kwargs["input_ids"]
            done = (ids[:, begun.shape[1] :] == end_id).any(1)
            on_run(ids, some.repeat_interleave(len(ids) // len(some)), done)

        width = int(mask[some].sum(1).max())
        count = decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            found = decoder.generate(  # type: ignore[operator]
                input_ids=begun[some],
                encoder_hidden_states=states[some, :width],
                encoder_attention_mask=mask[some, :width].long(),
                **{name: each[some] for name, each in more.items()},
                **settings,
            )
        finally:
            count.remove()
        written += list(found)
    return pad_sequence(written, batch_first=True, padding_value=pad_id)
