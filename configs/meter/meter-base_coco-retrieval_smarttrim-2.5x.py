_base_ = "meter-base_coco-retrieval_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
