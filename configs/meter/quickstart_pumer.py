# Image tokens that the question does not look at are pruned in the fusion layer, similar ones merge. The image encoder stays
# whole, and there is one fusion layer, whose MLPs alone gain: 1.04x is out of reach. More fusion layers gain more.
# As PuMer is trained, with the dense model as a frozen teacher, at the ratios of VQAv2:
# python tools/train.py configs/meter/quickstart_pumer.py --cfg-options load_from=work_dirs/quickstart_dense/iter_1700.pth \
#     model.distillation.frozen_teacher=work_dirs/quickstart_dense/iter_1700.pth
_base_ = "quickstart_smarttrim.py"

model = dict(policy=dict(_delete_=True, type="PuMer"), budget=None)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.4)]
