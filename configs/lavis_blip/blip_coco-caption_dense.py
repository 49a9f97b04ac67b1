# BLIP's recipe for COCO's captions (arXiv 2201.12086, as in LAVIS): batch 256, 5 epochs, 384 px, lr 1e-5; captions are written
# with three beams, 5 to 20 tokens with their prompt. Needs LAVIS (docs/lavis.md), and Java for the official scores.
# bash tools/dist_train.sh configs/lavis_blip/blip_coco-caption_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_capfilt_large.pth
_base_ = [
    "../_base_/datasets/blip_coco_caption.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="LavisBackbone",
        arch="blip_caption",
        model_type="base_coco",
        tokenizer=_base_.tokenizer,
        generation=dict(num_beams=3, max_length=20, min_length=5),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="AnswerGeneration", per_token=True),
)

max_iters = 11_070
train_cfg = dict(max_iters=max_iters, val_interval=2214)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
