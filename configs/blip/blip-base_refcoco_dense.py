# mmpretrain's recipe for RefCOCO: batch 128 (8 GPUs x 16), 120 epochs of 120,624 phrases, 384 px, lr 1.5e-5; but for its crops
# and hues (see the data set's file), and, as in the other configs of BLIP here, weight decay not on norms and biases.
# bash tools/dist_train.sh configs/blip/blip-base_refcoco_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=START.pth train_dataloader.batch_size=16
_base_ = [
    "../_base_/datasets/mmpretrain_refcoco.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

bert = dict(
    vocab_size=30524,
    pad_token_id=0,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
    layer_norm_eps=1e-12,
    encoder_width=768,
    add_type_embeddings=False,
    add_cross_attention=True,
)
model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="BlipGrounding",
            visual_encoder=dict(type="VisionTransformer", arch="b", img_size=384, patch_size=16, out_type="raw"),
            text_encoder=dict(type="XBertEncoder", med_config=bert),
            multimodal_encoder=dict(type="XBertEncoder", med_config=bert),
            head=dict(type="GroundingHead", decoder=dict(type="XBertLMHeadDecoder", med_config=bert)),
        ),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="BoxGeneration"),
)
del bert

max_iters = 113_040
train_cfg = dict(max_iters=max_iters, val_interval=9420)
optim_wrapper = dict(optimizer=dict(lr=1.5e-5, weight_decay=0.02))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=128)
