# How much self-distillation helps, and whether its teacher should be the weights in training or the frozen dense model.
# python tools/compare.py configs/compare/easy-vqa_distillation.py --jobs 2
dense = "configs/meter/quickstart_dense.py"
budgets = [2.0]
seeds = [0, 1, 2]

_config = "configs/meter/quickstart_smarttrim.py"
_weight = "model.distillation.weight"
_frozen = {"model.distillation.frozen_teacher": "{dense_checkpoint}"}
rows = [
    dict(name="weight 1, shared teacher", config=_config),
    dict(name="weight 0", config=_config, options={_weight: 0.0}),
    dict(name="weight 0.1, shared teacher", config=_config, options={_weight: 0.1}),
    dict(name="weight 0.5, shared teacher", config=_config, options={_weight: 0.5}),
    dict(name="weight 2, shared teacher", config=_config, options={_weight: 2.0}),
    dict(name="weight 5, shared teacher", config=_config, options={_weight: 5.0}),
    dict(name="weight 0.5, frozen teacher", config=_config, options={_weight: 0.5, **_frozen}),
    dict(name="weight 1, frozen teacher", config=_config, options=_frozen),
    dict(name="weight 2, frozen teacher", config=_config, options={_weight: 2.0, **_frozen}),
    # so that the shared teacher does not drift
    dict(name="weight 1, teacher trained too", config=_config, options={"model.distillation.dense_task_weight": 1.0}),
]
