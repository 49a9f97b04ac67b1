# bash tools/dist_train.sh configs/meter/meter-base_vqav2_ftkd-2x.py 8 --amp
# The static baseline: every second layer of the dense METER, fine-tuned with knowledge distillation (FTKD) from it.
# The student's dense pass takes 120.79 G multiply-adds with 50 text tokens, the teacher's 228.26 G (tools/cost.py on either
# config): 1.89 times fewer. Reports of this model call its own number dense: compare it with trimmed models by multiply-adds.
_base_ = "meter-base_vqav2_dense.py"

model = dict(
    backbone=dict(vision=dict(layers=6), text=dict(num_hidden_layers=6), fusion=dict(num_hidden_layers=3)),
    distillation=dict(
        type="SelfDistillation",
        frozen_teacher="work_dirs/meter-base_vqav2_dense/iter_25700.pth",
        teacher_backbone={{_base_.model.backbone}},
    ),
    init_layers={
        "vit_model.visual.transformer.resblocks": [0, 2, 4, 6, 8, 10],
        "text_transformer.encoder.layer": [0, 2, 4, 6, 8, 10],
        "cross_modal_image_layers": [0, 2, 4],
        "cross_modal_text_layers": [0, 2, 4],
    },
)
