import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.models.layer_subset import choose_layers, load_layers
from smarttrim_mm.registry import MODELS

TEACHER = METER.small_configs()["shared images"]  # 3 layers of the image, 2 of the text, 2 of fusion
STUDENT = {
    "vision": {**TEACHER["vision"], "layers": 2},
    "text": {**TEACHER["text"], "num_hidden_layers": 1},
    "fusion": {**TEACHER["fusion"], "num_hidden_layers": 1},
}
VISION = "vit_model.visual.transformer.resblocks"
LAYERS = {
    VISION: [0, 2],
    "text_transformer.encoder.layer": [1],
    "cross_modal_image_layers": [0],
    "cross_modal_text_layers": [0],
}


@pytest.fixture
def teacher(make_model, tmp_path):
    model = make_model({"type": "SmartTrim"})
    path = tmp_path / "teacher.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return model, str(path)


def student_of(make_model, path, **changes):
    distillation = {"type": "SelfDistillation", "frozen_teacher": path, "teacher_backbone": TEACHER, **changes}
    return make_model("Dense", STUDENT, distillation=distillation, init_layers=LAYERS)


def test_a_teacher_of_another_depth_teaches(make_model, make_inputs, teacher):
    deep, path = teacher
    student = student_of(make_model, path).train()
    inputs = make_inputs(student)
    taught = deep.host_forward(inputs)
    torch.testing.assert_close(student._teach(inputs), taught, atol=1e-5, rtol=0)
    expected = kl_div(student.eval()(inputs).log_softmax(-1), taught.log_softmax(-1), reduction="batchmean", log_target=True)
    losses = student.loss(inputs)
    assert losses["loss_distill"].item() == pytest.approx(expected.item(), rel=1e-3) and losses["loss_distill"] > 0.01
    assert {"loss_task", "loss_distill"} == {name for name in losses if "loss" in name}


def test_nothing_of_the_teacher_is_saved_or_trained(make_model, make_inputs, teacher):
    _, path = teacher
    student = student_of(make_model, path)
    names = set(student.state_dict())
    student.train().loss(make_inputs(student))["loss_distill"].backward()
    [frozen] = student.frozen
    assert set(student.state_dict()) == names
    assert len(frozen.trunk.blocks) == 3 and len(student.backbone.trunk.blocks) == 2
    assert not frozen.training and not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    trained = {id(p) for p in student.parameters()}
    assert not trained & {id(p) for p in frozen.parameters()}
    assert not [module for module in student.modules() if module is frozen]


def test_the_student_starts_from_the_chosen_layers(make_model, teacher):
    deep, path = teacher
    student = student_of(make_model, path)
    student.init_weights()
    theirs, ours = deep.backbone, student.backbone
    pairs = [
        (ours.trunk.blocks[0], theirs.trunk.blocks[0]),
        (ours.trunk.blocks[1], theirs.trunk.blocks[2]),
        (ours.text_transformer.encoder.layer[0], theirs.text_transformer.encoder.layer[1]),
        (ours.cross_modal_text_layers[0], theirs.cross_modal_text_layers[0]),
        (ours.text_transformer.embeddings, theirs.text_transformer.embeddings),
        (ours.head, theirs.head),
    ]
    for mine, other in pairs:
        for name, value in other.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({**LAYERS, "resblocks": [0]}, r"init_layers names 'resblocks'; the teacher's lists of layers are .*'text_transformer"),
        ({**LAYERS, VISION: [0, 3]}, r"init_layers names layers \[3\] of 'vit_model.*'; the teacher has 0 to 2"),
        ({**LAYERS, VISION: [1, 1]}, r"is \[1, 1\]; expected each layer once"),
        ({**LAYERS, VISION: [0, 1, 2]}, r"chooses 3 layers, the model has 2 there; choose as many, or change model\.backbone"),
        ({VISION: [0, 2]}, r"another architecture.*\n.*unexpected: cross_modal_image_layers\.1\."),
    ],
)
def test_layers_that_do_not_fit(make_model, teacher, layers, message):
    _, path = teacher
    student = make_model("Dense", STUDENT)
    before = {name: value.clone() for name, value in student.backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_layers(student.backbone, path, layers)
    assert all(torch.equal(before[name], value) for name, value in student.backbone.state_dict().items())


def test_names_that_begin_alike_are_told_apart():
    weights = {f"{name}.{i}.weight": torch.tensor(float(i)) for name in ("part", "part2") for i in range(3)}
    chosen = choose_layers(weights, ["part.0.weight", "part2.0.weight", "part2.1.weight", "part2.2.weight"], {"part": [2]})
    assert {name: value.item() for name, value in chosen.items()} == {
        "part.0.weight": 2.0,
        **{f"part2.{i}.weight": float(i) for i in range(3)},
    }


def test_settings_that_do_not_fit(make_model, make_inputs, teacher):
    _, path = teacher
    with pytest.raises(
        ValueError, match=r"init_layers names layers of \['vit_model.*'\], but there is no teacher .*frozen_teacher"
    ):
        make_model("Dense", STUDENT, init_layers={VISION: [0, 2]})
    with pytest.raises(ValueError, match="teacher_backbone is a METER, but frozen_teacher is None; expected the checkpoint of"):
        make_model("Dense", distillation={"type": "SelfDistillation", "teacher_backbone": TEACHER})
    other_head = make_model(
        "Dense",
        {**STUDENT, "num_classes": 9},
        distillation={"type": "SelfDistillation", "frozen_teacher": path, "teacher_backbone": TEACHER},
    )
    with pytest.raises(
        ValueError, match=r"the teacher's logits are \[6, 7\], the student's \[6, 9\]; expected scores of the same"
    ):
        other_head.loss(make_inputs(other_head))
    too_deep = student_of(make_model, path, teacher_backbone={**TEACHER, "vision": {**TEACHER["vision"], "layers": 4}})
    with pytest.raises(ValueError, match=r"another architecture.*\n.*missing: vit_model\.visual\.transformer\.resblocks\.3"):
        too_deep.loss(make_inputs(too_deep))
    assert not too_deep.frozen


def test_a_teacher_is_built_by_its_config_alone(make_model, make_inputs, teacher):
    """Its config is not changed, and a built model may be trained on from its own checkpoint without the file."""
    _, path = teacher
    config = {"type": "SelfDistillation", "frozen_teacher": path, "teacher_backbone": TEACHER}
    student = make_model("Dense", STUDENT, distillation=config)
    student.loss(make_inputs(student))
    again = MODELS.build({"type": "TrimmedVLM", "backbone": {**TEACHER, **STUDENT}, "policy": {"type": "Dense"}})
    again.load_state_dict(student.state_dict())
    assert isinstance(again.backbone, nn.Module) and config["teacher_backbone"] == METER.small_configs()["shared images"]
