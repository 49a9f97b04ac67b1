# The quickstart's policies at three budgets: what learned, guided trimming is worth against simpler ways to spend as little.
# python tools/compare.py configs/compare/easy-vqa_policies.py --jobs 2
dense = "configs/meter/quickstart_dense.py"
recipe = "configs/meter/quickstart_smarttrim.py"
budgets = [1.5, 2.0, 3.0]
seeds = [0, 1, 2]
rows = [
    dict(name="SmartTrim", config="configs/meter/quickstart_smarttrim.py"),
    dict(name="local only", config="configs/meter/quickstart_local-only.py"),
    dict(name="random", config="configs/meter/quickstart_random.py"),
    dict(name="dense, longer", config="configs/meter/quickstart_dense-longer.py"),
]
