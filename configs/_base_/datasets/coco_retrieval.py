# Retrieval on COCO for METER, in data/coco (docs/data.md): as on Flickr30K, with restval joined to the training.
_base_ = "flickr30k_retrieval.py"

coco = dict(dataset=dict(source="coco", data_root="data/coco"))
train_dataloader = val_dataloader = test_dataloader = coco
