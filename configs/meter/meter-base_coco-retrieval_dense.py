# METER's recipe for retrieval on COCO (arXiv 2111.02387): as on Flickr30K, with restval joined to the training.
# bash tools/dist_train.sh configs/meter/meter-base_coco-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.init_from.meter=METER_PRETRAINED.ckpt
_base_ = "meter-base_flickr30k-retrieval_dense.py"

train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(source="coco", data_root="data/coco"))

max_iters = 88_552
train_cfg = dict(max_iters=max_iters, val_interval=8856)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=max_iters // 10),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=max_iters // 10, end=max_iters),
]
