# mmpretrain's recipe for retrieval on COCO: as on Flickr30K, from mmpretrain's fine-tuned file.
# bash tools/dist_train.sh configs/blip/blip-base_coco-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-retrieval_20230419-a1804d2c.pth
_base_ = "blip-base_flickr30k-retrieval_dense.py"

train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(source="coco", data_root="data/coco"))

max_iters = 13_278
train_cfg = dict(max_iters=max_iters, val_interval=2213)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
