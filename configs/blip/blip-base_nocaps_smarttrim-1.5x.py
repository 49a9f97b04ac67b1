# bash tools/dist_test.sh configs/blip/blip-base_nocaps_smarttrim-1.5x.py \
#     work_dirs/blip-base_coco-caption_smarttrim-1.5x/iter_22140.pth 8
_base_ = "blip-base_nocaps_smarttrim-2x.py"

model = dict(budget=dict(speedup=1.5))
