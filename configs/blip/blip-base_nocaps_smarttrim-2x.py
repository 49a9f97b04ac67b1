# Of a captioner that blip-base_coco-caption_smarttrim-2x.py trained.
# bash tools/dist_test.sh configs/blip/blip-base_nocaps_smarttrim-2x.py \
#     work_dirs/blip-base_coco-caption_smarttrim-2x/iter_22140.pth 8
_base_ = "blip-base_nocaps_dense.py"

model = dict(policy=dict(type="SmartTrim"), budget=dict(type="ComputeBudget", speedup=2.0))
