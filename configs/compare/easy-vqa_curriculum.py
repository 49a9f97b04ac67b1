# The schedule by which the budget's target falls, each with and without stable initialisation (everything kept at step 0).
# python tools/compare.py configs/compare/easy-vqa_curriculum.py --jobs 2
dense = "configs/meter/quickstart_dense.py"
budgets = [2.0]
seeds = [0, 1, 2]

_config = "configs/meter/quickstart_smarttrim.py"
_schedule = "custom_hooks.0.schedule"  # of CurriculumHook
_unstable = {"model.policy.stable_init": False}
rows = [
    dict(name="linear", config=_config),
    dict(name="cosine", config=_config, options={_schedule: "cosine"}),
    dict(name="exponential", config=_config, options={_schedule: "exponential"}),
    dict(name="step", config=_config, options={_schedule: "step"}),
    dict(name="constant", config=_config, options={_schedule: "constant"}),
    dict(name="linear, no stable init", config=_config, options=_unstable),
    dict(name="cosine, no stable init", config=_config, options={_schedule: "cosine", **_unstable}),
    dict(name="exponential, no stable init", config=_config, options={_schedule: "exponential", **_unstable}),
    dict(name="step, no stable init", config=_config, options={_schedule: "step", **_unstable}),
    dict(name="constant, no stable init", config=_config, options={_schedule: "constant", **_unstable}),
]
