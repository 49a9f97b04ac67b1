# BLIP fine-tuned on the task with SmartTrim at half the multiply-adds of a training, from the fine-tuned file of LAVIS:
# bash tools/dist_train.sh configs/lavis_blip/blip_flickr30k-retrieval_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip_flickr_retrieval.pth
_base_ = "blip_flickr30k-retrieval_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="RampUpHook", end=2 / 6), dict(type="CurriculumHook", schedule="linear", end=0.7)]
