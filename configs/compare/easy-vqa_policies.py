# SmartTrim against the published policies, each fine-tuned alike from the same dense model, or applied to it as it is.
# PuMer is left out: in so small a METER it gains 1.04x at most (configs/meter/quickstart_pumer.py).
# python tools/compare.py configs/compare/easy-vqa_policies.py --jobs 2
dense = "configs/meter/quickstart_dense.py"
recipe = "configs/meter/quickstart_smarttrim.py"
budgets = [1.5, 2.0, 3.0]
seeds = [0, 1, 2]

_at = "configs/meter/quickstart_{}.py".format
_teacher = {"model.distillation.frozen_teacher": "{dense_checkpoint}"}
rows = [
    dict(name="SmartTrim", config=_at("smarttrim")),
    dict(name="SmartTrim, text first", config=_at("smarttrim"), options={"model.backbone.text_first": True}),
    dict(name="SmartTrim, local only", config=_at("local-only")),
    dict(name="SmartTrim, fixed counts", config=_at("smarttrim-topk")),
    dict(name="random", config=_at("random")),
    dict(name="dense, longer", config=_at("dense-longer")),
    dict(name="AdaViT", config=_at("adavit")),
    dict(name="CrossGET", config=_at("crossget")),
    dict(name="DynamicViT", config=_at("dynamicvit")),
    dict(name="EViT", config=_at("evit")),
    dict(name="LTP", config=_at("ltp")),
    # its threshold is not learned, and its compute moves while it trains
    dict(name="MADTP", config=_at("madtp"), calibrate_first=True),
    dict(name="ToMe", config=_at("tome")),
    dict(name="TRIPS", config=_at("trips")),
    dict(name="UPop", config=_at("upop-2x"), options=_teacher),
    dict(name="FTKD", config=_at("ftkd-2x"), options=_teacher, fixed=True, from_dense=False),
    dict(name="FastV, untrained", config=_at("fastv"), train=False),
    dict(name="MADTP, untrained", config=_at("madtp"), train=False),
    dict(name="MuE, untrained", config=_at("mue"), train=False, budgets=[1.5, 2.0]),  # 2.86x is the most
    dict(name="PyramidDrop, untrained", config=_at("pyramid-drop"), train=False),
    dict(name="ToMe, untrained", config=_at("tome"), train=False),
    dict(
        name="VisionZip, untrained",
        config=_at("visionzip"),
        options={"model.policy.layers": {"image": [1]}},  # its own place, the last layer, gains 1.27x at most, this one 2.78x
        train=False,
        budgets=[1.5, 2.0],
    ),
]
