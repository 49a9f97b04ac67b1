# The same model on easy-VQA with one question an image and sample, as an application without a batch of questions asks it.
# python tools/train.py configs/lavis_blip/blip-small_easy-vqa-single_dense.py
_base_ = "blip-small_easy-vqa_dense.py"

train_dataloader = dict(batch_size=96, dataset=dict(questions_per_image=None, group_questions=False))
val_dataloader = test_dataloader = dict(batch_size=96, dataset=dict(group_questions=False))
auto_scale_lr = dict(base_batch_size=96)
