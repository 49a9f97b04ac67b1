# BLIP's recipe for retrieval on COCO (arXiv 2201.12086): as on Flickr30K, but for LAVIS's negatives, which are of one process
# here, and in BLIP of all. LAVIS's own config has lr 2e-5 and weight decay 0.04.
# Images and texts are encoded apart, so that no text can guide the image encoder: text_first is refused.
# bash tools/dist_train.sh configs/lavis_blip/blip_coco-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_capfilt_large.pth
_base_ = "blip_flickr30k-retrieval_dense.py"

model = dict(backbone=dict(model_type="coco"))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(source="coco", data_root="data/coco"))

max_iters = 13_278
train_cfg = dict(max_iters=max_iters, val_interval=2213)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
custom_hooks = [dict(type="RampUpHook", end=2 / 6)]  # two epochs
