# Trimmers that see both modalities against trimmers that see less: the token alone, its own stream alone. And with the text
# encoder first, so that the question guides the trimmers inside the image encoder too (without it, in the fusion layer only).
# python tools/compare.py configs/compare/easy-vqa_guides.py --jobs 2
dense = "configs/meter/quickstart_dense.py"
budgets = [1.5, 2.0, 3.0]
seeds = [0, 1, 2]

_config = "configs/meter/quickstart_smarttrim.py"
_trimmer = "model.policy.token_trimmer"
_text_first = {"model.backbone.text_first": True}
rows = [
    dict(name="cross-modal-aware", config=_config),
    dict(name="cross-modal-aware, text first", config=_config, options=_text_first),
    dict(name="local only", config="configs/meter/quickstart_local-only.py"),
    dict(name="self-global only", config=_config, options={_trimmer: dict(type="TokenTrimmer", scores=("self",))}),
    dict(name="local and self-global", config=_config, options={_trimmer: dict(type="TokenTrimmer", scores=("local", "self"))}),
    dict(
        name="cross-global only, text first",
        config=_config,
        options={_trimmer: dict(type="TokenTrimmer", scores=("cross",)), **_text_first},
    ),
]
