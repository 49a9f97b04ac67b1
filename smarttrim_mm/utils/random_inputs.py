"""Random inputs of the shapes that a backbone takes: for tests, and where only the shapes matter."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from smarttrim_mm.inputs import TextTargets, VLMInputs


def random_inputs(
    input_format: Mapping[str, int], lengths: Sequence[int], image_index: Sequence[int] | None = None, seed: int = 0
) -> VLMInputs:
    """Random pixels, texts and answers that a backbone accepts.

    Args:
        input_format: The backbone's ``input_format``: image_size, vocab_size, begin_id, end_id, pad_id, num_classes, and, if
            not 1, images_per_text. Without vocab_size there are no texts: as many images as lengths.
        lengths: Tokens of each text, begin and end included, at least 2 each.
        image_index: Image of each text, or its first, the next ones following; None: images of its own.
        seed: Of the random numbers.
    """
    each = input_format.get("images_per_text", 1)
    generator = torch.Generator().manual_seed(seed)
    size = input_format["image_size"]
    if "vocab_size" not in input_format:
        pixels = torch.randn(len(lengths), 3, size, size, generator=generator)
        targets = torch.randint(input_format["num_classes"], (len(lengths),), generator=generator)
        return VLMInputs.of_images(pixels, torch.arange(len(lengths)) + 1000, targets)
    vocabulary = input_format["vocab_size"]
    special = [input_format["begin_id"], input_format["end_id"], input_format["pad_id"]]
    texts, pairs = torch.arange(len(lengths)), torch.arange(len(lengths) * each)
    first = texts * each if image_index is None else torch.tensor(image_index)
    images = len(pairs) if image_index is None else int(first.max()) + 1
    index = ((first[:, None] + torch.arange(each)) % images).flatten()
    ends = torch.tensor(lengths)
    text_mask = torch.arange(max(lengths)) < ends.unsqueeze(1)
    words = torch.tensor([word for word in range(vocabulary) if word not in special])
    input_ids = words[torch.randint(len(words), text_mask.shape, generator=generator)]
    input_ids[:, 0], input_ids[texts, ends - 1] = special[0], special[1]
    input_ids[~text_mask] = special[2]
    special_mask = torch.zeros_like(text_mask)
    special_mask[:, 0] = special_mask[texts, ends - 1] = True
    return VLMInputs(
        images=torch.randn(images, 3, size, size, generator=generator),
        image_index=None if image_index is None else index,
        image_ids=torch.arange(images) + 100,
        input_ids=input_ids,
        text_mask=text_mask,
        special_mask=special_mask,
        sample_ids=pairs + 1000,
        targets=torch.randint(input_format["num_classes"], texts.shape, generator=generator),
        text_index=pairs // each if each > 1 else None,
        text_ids=texts + 500 if each > 1 else None,
        pairs_per_sample=each,
    )


def random_targets(
    kind: str, input_format: Mapping[str, int], samples: int, *, length: int, seed: int = 0
) -> Tensor | TextTargets:
    """Random targets that a loss accepts.

    Args:
        kind: The loss's ``target_kind``: ``'classes'``, one a sample; ``'scores'`` of all classes, in [0, 1]; ``'texts'`` for a
            decoder, one a sample.
        input_format: The backbone's ``input_format``.
        samples: Number of samples G.
        length: Tokens of each text, begin and end included, at least 2.
        seed: Of the random numbers.

    Raises:
        ValueError: If the kind is unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = input_format["num_classes"]
    if kind == "classes":
        return torch.randint(classes, (samples,), generator=generator)
    if kind == "scores":
        return torch.rand(samples, classes, generator=generator)
    if kind == "texts":
        texts = random_inputs({**input_format, "image_size": 1, "images_per_text": 1}, [length] * samples, seed=seed)
        return TextTargets(texts.input_ids, texts.text_mask, torch.ones(samples), torch.arange(samples), samples)
    raise ValueError(f"target_kind is {kind!r}; expected 'classes', 'scores' or 'texts'")
