# Tokens, heads or both; image, text or both. Where a budget cannot be reached by what a row may cut, the table says so.
# python tools/compare.py configs/compare/easy-vqa_what-is-trimmed.py --jobs 2
dense = "configs/meter/quickstart_dense.py"
budgets = [1.2, 2.0]  # heads alone, or text alone, do not get far in this model
seeds = [0, 1, 2]

_config = "configs/meter/quickstart_smarttrim.py"
_no_tokens = {"model.policy.token_trimmer": None}
_no_heads = {"model.policy.head_trimmer": None}
rows = [
    dict(name="image tokens and heads", config=_config),
    dict(name="image tokens", config=_config, options=_no_heads),
    # in every layer: in the recipe's one layer they would save next to nothing
    dict(name="heads", config=_config, options={**_no_tokens, "model.policy.head_layers": None}),
    dict(
        name="text tokens",
        config=_config,
        options={**_no_heads, "model.policy.streams": ["text"], "model.policy.token_layers": None},
    ),
    dict(
        name="image and text tokens",
        config=_config,
        options={**_no_heads, "model.policy.streams": ["image", "text"], "model.policy.token_layers.text": [0, 1]},
    ),
    dict(
        name="image and text tokens, and heads",
        config=_config,
        options={"model.policy.streams": ["image", "text"], "model.policy.token_layers.text": [0, 1]},
    ),
]
