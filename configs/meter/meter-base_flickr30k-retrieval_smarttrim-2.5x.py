_base_ = "meter-base_flickr30k-retrieval_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
