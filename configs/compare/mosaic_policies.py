# Where the question decides what matters: trimmers that read it against trimmers that do not, learned choices against fixed
# ones, at equal compute. Pictures of kept compute are grouped by the number of filled cells, from easy (1) to hard (9).
# python tools/compare.py configs/compare/mosaic_policies.py --jobs 2
dense = "configs/meter/mosaic_dense.py"
recipe = "configs/meter/mosaic_smarttrim.py"
budgets = [3.0, 5.0]
seeds = [0, 1, 2]
group_by = "filled_cells"

_layers = dict(image=[0, 1, 2, 3], text=[], fusion=[0, 1])
_image = dict(streams=["image"], layers=_layers)
_encoder = dict(image=[0, 1, 2, 3], text=[], fusion=[])
rows = [
    dict(name="SmartTrim", config="configs/meter/mosaic_smarttrim.py"),
    dict(name="SmartTrim, local only", config="configs/meter/mosaic_local-only.py"),
    dict(name="random", policy=dict(type="Random", **_image)),
    dict(name="DynamicViT", policy=dict(type="DynamicViT", **_image)),
    dict(name="EViT", policy=dict(type="EViT", layers=dict(image=[0, 1, 2]))),
    dict(name="ToMe", policy=dict(type="ToMe", streams=["image"], layers=_encoder), budgets=[3.0]),  # half a layer at most
    dict(name="TRIPS", policy=dict(type="TRIPS", layers=dict(image=[0, 2]))),
    dict(name="CrossGET", policy=dict(type="CrossGET", streams=["image"], layers=_encoder), budgets=[3.0]),
]
