# bash tools/dist_test.sh configs/blip/blip-base_nocaps_smarttrim-3x.py \
#     work_dirs/blip-base_coco-caption_smarttrim-3x/iter_22140.pth 8
_base_ = "blip-base_nocaps_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
