# ALBEF's recipe for retrieval on COCO (arXiv 2107.07651): as on Flickr30K, in 5 epochs. LAVIS's config: weight decay 0.05.
# Images and texts are encoded apart, so that no text can guide the image encoder: text_first is refused.
# bash tools/dist_train.sh configs/lavis_albef/albef_coco-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=ALBEF.pth
_base_ = "albef_flickr30k-retrieval_dense.py"

model = dict(backbone=dict(model_type="coco"))
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(source="coco", data_root="data/coco"))

max_iters = 11_065
train_cfg = dict(max_iters=max_iters, val_interval=2213)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min_ratio=0.1, by_epoch=False, T_max=max_iters, end=max_iters)]
custom_hooks = [dict(type="RampUpHook", end=2 / 5)]  # two epochs
