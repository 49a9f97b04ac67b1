"""LAVIS's retrieval models: the training step is LAVIS's own, and both passes of a step see the same negatives."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DefaultScope
from torch.distributed import destroy_process_group, init_process_group
from torch.multiprocessing import spawn
from torch.nn.functional import cosine_similarity

from smarttrim_mm.backbones.given_tokens import encoding
from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.models.all_pairs import PairScorer
from smarttrim_mm.pairs import draw_negatives
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import excite, random_inputs

CASES = {name.partition(" ")[0]: case for name, case in LavisBackbone.small_configs().items() if "retrieval" in name}
ARCHS = sorted(CASES)
IDS = [7, 3, 7, 9]  # two of four pairs are about one image
CONTRAST = {"type": "ContrastAndMatching"}
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


def make_model(arch, policy="Dense", task_loss=CONTRAST, others=None, **changes):
    policy = {"type": policy} if isinstance(policy, str) else policy
    config = {"backbone": {**CASES[arch], **changes}, "policy": policy, "task_loss": task_loss, **(others or {})}
    model = MODELS.build({"type": "TrimmedVLM", **config})
    excite(model.backbone)
    model.backbone.host.copy_params()
    with torch.no_grad():
        model.backbone.host.temp.fill_(0.07)
    return model.train()


def make_batch(model, seed=0, lengths=(9, 4, 2, 7), ids=IDS):
    inputs = random_inputs(model.backbone.input_format, lengths, seed=seed)
    return replace(inputs, image_ids=torch.tensor(ids))


def without_dropout(arch):
    text = {**CASES[arch]["text"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {"text": text, "vision": {**CASES[arch]["vision"], "drop_path_rate": 0.0}}


def samples_of(inputs, iters=0):
    """As LAVIS passes them; two epochs have 8 iterations."""
    words = encoding(inputs.input_ids, inputs.text_mask)
    place = {"epoch": iters // 4, "iters": iters % 4, "num_iters_per_epoch": 4}
    return {"image": inputs.images, "text_input": words, "image_id": inputs.image_ids, **place}


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


# ---- LAVIS's own training step


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("albef_retrieval", {}),
        ("albef_retrieval", {"use_distill": False}),  # which LAVIS's own cannot return
        ("blip_retrieval", {}),
        ("blip_retrieval", {"alpha": 0.9, "momentum": 0.7}),
    ],
)
def test_two_steps_of_lavis(arch, options):
    """Losses, gradients, momentum copies and queue, with dropout on."""
    model = make_model(arch, **options)
    host = model.backbone.host
    own = copy.deepcopy(host)
    if not getattr(own, "use_distill", True):
        own.use_distill, own.alpha = True, 0.0
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in own.modules())
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05) for one in (host, own)]
    queue = host.image_queue.clone()
    for step in range(2):
        inputs = make_batch(model, seed=step)
        model.backbone.ramp_up = own._rampup_factor(0, 3 + step, 4)
        torch.manual_seed(step)
        theirs = own(samples_of(inputs, 3 + step))
        torch.manual_seed(step)
        ours = model.loss(inputs)
        for name in ("loss_itc", "loss_itm"):
            torch.testing.assert_close(ours[name], theirs[name], msg=name)
        torch.testing.assert_close(total(ours), theirs.loss)
        for optimizer, loss in zip(optimizers, (total(ours), theirs.loss), strict=True):
            optimizer.zero_grad()
            loss.backward()
        expected = dict(own.named_parameters())
        for name, parameter in host.named_parameters():
            gradient = expected[name].grad
            assert (parameter.grad is None) is (gradient is None) is ("_m." in name), name
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4, msg=name)
        for optimizer in optimizers:
            optimizer.step()
        for name, value in own.state_dict().items():
            torch.testing.assert_close(host.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert int(host.queue_ptr) == 8 and host.idx_queue[0, :9].tolist() == [*IDS, *IDS, -100]
    assert not torch.equal(host.image_queue[:, :8], queue[:, :8]) and torch.equal(host.image_queue[:, 8:], queue[:, 8:])


def test_without_two_thirds_of_the_ramp_targets_are_hard():
    """By hand: with nothing of the copies, a pair's targets are shared by the pairs about its image."""
    model = make_model("albef_retrieval")
    model.backbone.ramp_up = 0.0
    wanted = model.learn(make_batch(model))[1].targets.wanted
    expected = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(wanted[:, :4], expected.repeat(2, 1))
    assert wanted.shape == (8, 4 + 24) and not wanted[:, 4:].any()
    again = model.learn(make_batch(model))[1].targets.wanted  # the queue knows the images of the first step
    torch.testing.assert_close(again[1], torch.tensor([0, 0.5, 0, 0] * 2 + [0] * 20))


def _step_as_rank(rank, folder):
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with DefaultScope.overwrite_default_scope("smarttrim_mm"):
        for arch in ARCHS:
            torch.manual_seed(0)  # of the queue
            model = make_model(arch)
            own = copy.deepcopy(model.backbone.host)
            inputs = make_batch(model, seed=rank)
            model.backbone.ramp_up = own._rampup_factor(0, 3, 4)
            torch.manual_seed(rank)
            theirs = own(samples_of(inputs, 3))
            torch.manual_seed(rank)
            torch.testing.assert_close(total(model.loss(inputs)), theirs.loss)
            for name, value in own.state_dict().items():
                torch.testing.assert_close(model.backbone.host.state_dict()[name], value, msg=name)
            assert int(own.queue_ptr) == 8
            with pytest.raises(ValueError, match="queue_size is 24, and a step has 5 pairs in each of 2 processes"):
                model.loss(make_batch(model, lengths=[3] * 5, ids=range(5)))
        assert arch == "blip_retrieval"
        model.backbone.host.negative_all_rank = True
        with pytest.raises(ValueError, match=r"2 processes.*Set model.backbone.negative_all_rank=False"):
            model.loss(inputs)
    destroy_process_group()


@pytest.mark.slow
def test_a_step_of_lavis_in_two_processes(tmp_path):
    """The queue takes the pairs of both."""
    spawn(_step_as_rank, args=(str(tmp_path),), nprocs=2)


# ---- both passes of a step


@pytest.mark.parametrize("arch", ARCHS)
def test_teacher_and_student_are_asked_the_same(arch, monkeypatch):
    """One move of copies and queue, one draw; without dropout a dense student then has nothing to learn from its teacher."""
    others = {"distillation": {"type": "SelfDistillation", "dense_task_weight": 1.0}}
    model = make_model(arch, others=others, **without_dropout(arch))
    host, given, moved = model.backbone.host, [], []
    tell_apart, move = type(model.backbone)._tell_apart, host._momentum_update
    monkeypatch.setattr(host, "_momentum_update", lambda: moved.append(1) or move())
    monkeypatch.setattr(
        type(model.backbone), "_tell_apart", lambda self, *args: given.append(tell_apart(self, *args)) or given[-1]
    )
    losses, logits = model.learn(make_batch(model))
    teacher, student = given
    assert student is logits and moved == [1] and int(host.queue_ptr) == 4
    assert teacher.targets.memory is student.targets.memory and teacher.targets.negatives is student.targets.negatives
    assert losses["loss_distill"].abs() < 1e-6 and total({n: losses[n] for n in ("loss_itc", "loss_itm")}) > 0.1
    torch.testing.assert_close(losses["loss_dense_task"], losses["loss_itc"] + losses["loss_itm"])
    # both parts are compared
    for part in ("contrast", "match"):
        noisy = replace(student, **{part: torch.randn_like(getattr(student, part))})
        assert model.distillation(noisy, teacher) > 0.01


def test_a_frozen_teacher_is_asked_what_the_student_was(tmp_path):
    model = make_model("blip_retrieval", **without_dropout("blip_retrieval"))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "teacher.pth")
    others = {"distillation": {"type": "SelfDistillation", "frozen_teacher": str(tmp_path / "teacher.pth")}}
    student = make_model("blip_retrieval", others=others, **without_dropout("blip_retrieval"))
    student.load_state_dict(model.state_dict())
    losses = student.loss(make_batch(student))
    assert losses["loss_distill"].abs() < 1e-6
    queue = student._frozen[0].host.image_queue
    assert int(student.backbone.host.queue_ptr) == 4 and torch.equal(queue, model.backbone.host.image_queue)


@pytest.mark.parametrize("arch", ARCHS)
def test_negatives_are_of_other_images(arch):
    model = make_model(arch)
    ids = torch.tensor(IDS)
    drawn = set()
    for seed in range(6):
        negatives = model.learn(make_batch(model, seed))[1].targets.negatives
        assert (ids[negatives.images] != ids).all() and (ids[negatives.texts] != ids).all()
        drawn |= {*negatives.images.tolist(), *negatives.texts.tolist()}
    assert len(drawn) > 2


def test_hard_negatives_are_likelier():
    """By hand: of three candidates with weights e^0, e^1 and e^3, the third nearly always; a hopeless row draws any."""
    hardness = torch.tensor([[0.0, 0.0, 1.0, 3.0], [500.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4])
    drawn = [draw_negatives((hardness, hardness), torch.tensor([1, 1, 2, 3])) for _ in range(200)]
    first = torch.stack([one.images for one in drawn])
    assert (first[:, 0] == 3).float().mean() == pytest.approx(torch.tensor([1.0, 3.0]).softmax(0)[1].item(), abs=0.08)
    assert set(first[:, 1].tolist()) == {2, 3}, "all of its weight lies on its own image"
    assert set(first[:, 2].tolist()) == {0, 1, 3}


# ---- what it takes


@pytest.mark.parametrize("arch", ARCHS)
def test_a_sample_takes_its_encodings_once_and_three_fusions(arch):
    """By parts of the record of single pairs; texts of one length, so that every negative costs the same."""
    model = make_model(arch, SMARTTRIM)
    inputs = make_batch(model, lengths=[6] * 4)
    record = model._run(model.backbone.prepare(inputs), model.dense, "masked")[1]
    alone = model.trace(inputs, "masked", model.dense)[1]
    fusion = sum(entry.dense() for entry in alone.steps if entry.step.stage == "fusion") + 2 * 32
    torch.testing.assert_close(record.dense_multiply_adds(), alone.dense_multiply_adds() + 2 * fusion)
    assert torch.equal(record.multiply_adds(), record.dense_multiply_adds())
    assert record.executed_multiply_adds() == pytest.approx(float(record.dense_multiply_adds().mean()))
    trimmed = model._run(model.backbone.prepare(inputs), model.policy, "masked")[1]
    assert (trimmed.multiply_adds() < record.multiply_adds()).all()
    # the share of the last layer: one true pair, two false ones
    kept = [entry.tokens["text"].counts() / 6 for entry in trimmed.steps if entry.step is model.backbone.steps["fusion"][-1]]
    assert [len(each) for each in kept] == [4, 8]
    name = model.backbone.steps["fusion"][-1].name
    expected = (kept[0] + kept[1][:4] + kept[1][4:]) / 3
    torch.testing.assert_close(trimmed.kept()[f"{name}/text"], expected)


def test_blips_text_is_whole_again_when_it_reads_the_image():
    model = make_model("blip_retrieval", {"type": "Random", "keep_ratio": 0.5}).eval()
    with torch.no_grad():
        kept = model.trace(make_batch(model, lengths=[16] * 4))[1].kept()
    shares = [kept[f"{stage}.{i}/text"].tolist() for stage in ("text", "fusion") for i in range(2)]
    assert shares == [[0.5] * 4, [0.25] * 4] * 2
    # and as in ALBEF it goes on
    model = make_model("albef_retrieval", {"type": "Random", "keep_ratio": 0.5}).eval()
    with torch.no_grad():
        kept = model.trace(make_batch(model, lengths=[16] * 4))[1].kept()
    assert [kept[f"{name}/text"].tolist() for name in ("text.0", "fusion.0")] == [[0.5] * 4, [0.25] * 4]


# ---- scores


class Loader:
    """What LAVIS's own evaluation reads of a data loader."""

    def __init__(self, images, texts):
        self.dataset = SimpleNamespace(text=texts, image=list(range(len(images))))
        self.images = images

    def __iter__(self):
        return iter([{"image": self.images}])


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_scores_are_those_of_lavis_evaluation(arch):
    from lavis.models.albef_models import compute_sim_matrix

    model = make_model(arch).eval()
    host = copy.deepcopy(model.backbone.host)
    inputs = random_inputs(model.backbone.input_format, [9, 4, 2, 7, 9, 3], [0, 0, 1, 1, 1, 2])
    words = encoding(inputs.input_ids, inputs.text_mask)
    host.tokenizer = lambda *_, **__: encoding(words.input_ids.clone(), inputs.text_mask)
    if arch == "blip_retrieval":
        host.tokenizer.enc_token_id = model.backbone.enc_token_id
    images, texts = compute_sim_matrix(host, Loader(inputs.images, ["?"] * 6), k_test=3)  # every image of a text, three texts
    every, _ = model.trace(inputs.all_pairs())
    torch.testing.assert_close(every, torch.from_numpy(texts).t(), atol=1e-4, rtol=1e-4)
    ranked = torch.from_numpy(images)
    assert (ranked > -100).sum(1).tolist() == [3, 3, 3]
    torch.testing.assert_close(every[ranked > -100], ranked[ranked > -100], atol=1e-4, rtol=1e-4)
    execution = Execution(model.dense, sample_ids=inputs.sample_ids, kind="packed")
    alone = replace(inputs, image_index=None)
    encoded = model.backbone.encode_texts(alone, execution), model.backbone.encode_images(alone, execution)
    found = model.backbone.similarities(*encoded)
    assert torch.equal(found.topk(3).indices.sort().values, (ranked > -100).nonzero()[:, 1].view(3, 3))
    states = host.visual_encoder.forward_features(inputs.images)[:, 0]
    text = host.text_encoder.forward_text(words).last_hidden_state[:, 0]
    cosines = cosine_similarity(host.vision_proj(states)[:, None], host.text_proj(text)[None], dim=-1)
    torch.testing.assert_close(found, cosines, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "policy", ["Dense", {"type": "Random", "keep_ratio": 0.7}, SMARTTRIM], ids=["dense", "random", "smarttrim"]
)
@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_all_pairs(arch, policy):
    """Each text and each image encoded once gives the scores of every pair on its own."""
    preprocessor = {"type": "VisionLanguagePreprocessor", "pad_id": 0, "special_ids": [101, 102]}
    model = make_model(arch, policy, others={"data_preprocessor": preprocessor}).eval()
    inputs = random_inputs(model.backbone.input_format, [9, 4, 2, 7, 9, 3], [0, 0, 1, 1, 1, 2])
    texts = [ids[mask].tolist() for ids, mask in zip(inputs.input_ids, inputs.text_mask, strict=True)]
    batches = [model.data_preprocessor.texts(texts[i : i + 4], inputs.sample_ids[i : i + 4]) for i in (0, 4)]
    scores, trim = PairScorer(model, batches, pairs_per_batch=4).score(inputs, images=3)
    together, record = model.trace(inputs.all_pairs())
    assert scores.std() > 0.1
    torch.testing.assert_close(scores, together, atol=1e-4, rtol=1e-4)
    pairs = inputs.unshared()
    one = model.trace(pairs)[0][:, 1]
    torch.testing.assert_close(one, scores[inputs.image_index, torch.arange(6)], atol=1e-4, rtol=1e-4)
    saved = record.dense_multiply_adds().double() - trim["dense_multiply_adds"]
    share = sum(e.dense()[0 if e.rows is None else e.rows[:6]] for e in record.steps if e.step.stage == "text").sum().double()
    torch.testing.assert_close(saved, (share + 6 * 32 * 12).expand(3) * 2 / 3)  # texts are shared by the three images


# ---- training


@pytest.mark.parametrize("arch", ARCHS)
def test_eight_pairs_are_learnt_by_heart(arch):
    """The contrast falls to log 4, as each image lies four times in batch and queue; and scores rank all pairs right."""
    budget = {"type": "ComputeBudget", "speedup": 1.1, "weight": 1.0}
    model = make_model(arch, {"type": "SmartTrim"}, others={"budget": budget}, momentum=0.9, **without_dropout(arch))
    model.backbone.ramp_up = 0.0
    inputs = make_batch(model, lengths=[5, 6, 7, 8, 5, 6, 7, 8], ids=range(8))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    scores = torch.zeros(8, 8)
    for _ in range(250):
        optimizer.zero_grad()
        losses = model.loss(inputs)
        total(losses).backward()
        optimizer.step()
        if losses["accuracy"] == 1 and losses["loss_itc"] < 1.5:
            with torch.no_grad():
                scores = model.eval().trace(inputs.all_pairs())[0]
            model.train()
            if torch.equal(scores.argmax(0), scores.argmax(1)) and torch.equal(scores.argmax(1), torch.arange(8)):
                break
    assert losses["loss_itm"] < 0.3 and 1.38 < losses["loss_itc"] < 1.5
    for axis in (0, 1):
        assert torch.equal(scores.argmax(axis), torch.arange(8))


def test_a_training_goes_on_from_its_state():
    """Queue, pointer, ids and momentum copies are in the state dict."""
    model = make_model("blip_retrieval")
    model.loss(make_batch(model))
    twin = make_model("blip_retrieval")
    twin.load_state_dict(model.state_dict())
    losses = []
    for each in (model, twin):
        torch.manual_seed(5)
        losses.append(each.loss(make_batch(model, seed=1)))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert int(twin.backbone.host.queue_ptr) == 8
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_queue_that_other_batches_have_filled():
    model = make_model("albef_retrieval")
    model.loss(make_batch(model))
    model.loss(make_batch(model, lengths=[5] * 6, ids=range(6)))
    assert model.backbone.host.idx_queue[0, :7].tolist() == [*range(6), -100] and int(model.backbone.host.queue_ptr) == 6


@pytest.mark.parametrize("arch", ARCHS)
def test_texts_of_one_image_share_its_encoding(arch):
    """In training too; for the model, each text comes with the image."""
    model = make_model(arch, **without_dropout(arch))
    twin = copy.deepcopy(model)
    inputs = random_inputs(model.backbone.input_format, [5, 6, 4, 7], [0, 1, 0, 2])
    losses = []
    for each, batch in ((model, inputs), (twin, inputs.unshared())):
        torch.manual_seed(0)
        losses.append(each.loss(batch))
    for name in ("loss_itc", "loss_itm", "multiply_adds"):
        torch.testing.assert_close(losses[0][name], losses[1][name], msg=name)


def test_ranking_by_alternatives_is_another_training():
    """As METER's: the loss over the scores of each image's texts."""
    model = make_model("albef_retrieval", task_loss={"type": "SoftTargetBCE"})
    inputs = random_inputs(model.backbone.input_format, [5, 6, 4, 7], [0, 1, 0, 2]).all_pairs()
    losses = model.loss(inputs)
    losses["loss_task"].backward()
    assert losses["loss_task"] > 0 and int(model.backbone.host.queue_ptr) == 0


# ---- errors


def test_a_text_does_not_guide_retrieval():
    with pytest.raises(ValueError, match=r"text_first=True with albef_retrieval: retrieval scores every.*Set text_first=False"):
        make_model("albef_retrieval", text_first=True)


@pytest.mark.parametrize(
    ("change", "batch", "message"),
    [
        ({}, {"lengths": [3] * 5, "ids": range(5)}, "queue_size is 24, and a step has 5 pairs in each of 1 processes"),
        ({"queue_size": 0}, {}, "queue_size is 0, and a step has 4 pairs"),
        ({}, {"ids": [6] * 4}, "all 4 pairs of the batch are about image 6: there is no negative"),
    ],
    ids=["queue", "no queue", "one image"],
)
def test_batches_that_cannot_be_contrasted(change, batch, message):
    model = make_model("blip_retrieval", **change)
    with pytest.raises(ValueError, match=message):
        model.loss(make_batch(model, **batch))


def test_alternatives_are_not_contrasted():
    model = make_model("blip_retrieval")
    inputs = random_inputs(model.backbone.input_format, [5, 6, 4, 7], [0, 1, 0, 2]).all_pairs()
    with pytest.raises(
        ValueError, match=r"a sample of the batch has 4 image-text pairs.*rank_texts=False, and false_captions=0"
    ):
        model.loss(inputs)


def test_negatives_of_all_ranks_are_those_of_the_only_one():
    """LAVIS's own needs a process group for it."""
    model = make_model("blip_retrieval")
    twin = copy.deepcopy(model)
    twin.backbone.host.negative_all_rank = True
    losses = []
    for each in (model, twin):
        torch.manual_seed(0)
        losses.append(each.loss(make_batch(model))["loss_itm"])
    assert torch.equal(*losses)


def test_a_model_without_memory_is_not_contrasted():
    backbone = LavisBackbone.small_configs()["blip_image_text_matching shared images"]
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "Dense"}, "task_loss": CONTRAST})
    with pytest.raises(TypeError, match=r"a BlipMatching, has nothing to contrast.*AnswerCrossEntropy"):
        model.loss(random_inputs(model.backbone.input_format, [5, 4]))


def test_a_step_is_not_cut_into_pieces():
    model = make_model("blip_retrieval")
    with pytest.raises(ValueError, match="which belong to its whole batch"):
        model.backbone.prepare(make_batch(model)).select(torch.tensor([0]))
