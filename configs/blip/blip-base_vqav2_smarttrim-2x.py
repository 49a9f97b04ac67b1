# BLIP fine-tuned on the task with SmartTrim at half the multiply-adds of a training; a test, which ranks more answers, saves
# less. From mmpretrain's fine-tuned file:
# bash tools/dist_train.sh configs/blip/blip-base_vqav2_smarttrim-2x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty-capflit_vqa_20230505-81488941.pth
_base_ = "blip-base_vqav2_dense.py"

model = dict(
    backbone=dict(text_first=True),
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
