# The question is encoded first and guides the image encoder, whose encoding then is that question's alone.
# python tools/train.py configs/lavis_blip/blip-small_easy-vqa-single_smarttrim-2x.py \
#     --cfg-options load_from=work_dirs/blip-small_easy-vqa-single_dense/iter_3400.pth
_base_ = "blip-small_easy-vqa_smarttrim-2x.py"

model = dict(backbone=dict(text_first=True))
train_dataloader = dict(batch_size=96, dataset=dict(questions_per_image=None, group_questions=False))
val_dataloader = test_dataloader = dict(batch_size=96, dataset=dict(group_questions=False))
auto_scale_lr = dict(base_batch_size=96)
