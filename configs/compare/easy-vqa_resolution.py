# A higher resolution at the compute of a lower one: policies on 64 px against the dense model on 48 px. At 2x they take less
# than it does (30 to 32 M multiply-adds; it takes 35.9 M, 1.8 times fewer than the dense model on 64 px). It and the trained
# rows have all been trained for 2,150 iterations in the end; the others are applied to a dense model of 1,700.
# python tools/compare.py configs/compare/easy-vqa_resolution.py --jobs 2
dense = "configs/meter/quickstart_dense.py"
recipe = "configs/meter/quickstart_smarttrim.py"
budgets = [2.0]
seeds = [0, 1, 2]

_at = "configs/meter/quickstart_{}.py".format
rows = [
    dict(name="dense, 48 px", config=_at("dense-48px"), fixed=True, from_dense=False),
    dict(name="SmartTrim, 64 px", config=_at("smarttrim")),
    dict(name="random, 64 px", config=_at("random")),
    dict(name="EViT, 64 px", config=_at("evit")),
    dict(name="ToMe, 64 px", config=_at("tome")),
    dict(name="ToMe, 64 px, untrained", config=_at("tome"), train=False),
    dict(name="FastV, 64 px, untrained", config=_at("fastv"), train=False),
]
