_base_ = "meter-base_vqav2_smarttrim-2x.py"

model = dict(budget=dict(speedup=1.5))
