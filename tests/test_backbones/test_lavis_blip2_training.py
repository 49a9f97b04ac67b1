"""BLIP-2's pre-training: the step is LAVIS's own, and both passes of a step see the same negatives."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from mmengine.registry import DefaultScope
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.multiprocessing import spawn

from smarttrim_mm.backbones.given_tokens import encoding
from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.pairs import draw_negatives
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import Strip, count_multiply_adds, excite, random_inputs

CASES = {name: case for name, case in LavisBackbone.small_configs().items() if name.startswith("blip2")}
EVA = {**CASES["blip2_image_text_matching text first"], "text_first": False}
CLIP = {**CASES["blip2_qformer shared images"], "freeze_vit": False}
CONTRAST = {"type": "ContrastAndMatching"}
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
LENGTHS = [9, 4, 2, 7]
PARTS = ("loss_itc", "loss_itm", "loss_lm")


def make_model(case=CLIP, policy="Dense", others=None, dropout=True, **changes):
    policy = {"type": policy} if isinstance(policy, str) else policy
    if not dropout:
        changes["text"] = {**case["text"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {"backbone": {**case, **changes}, "policy": policy, "task_loss": CONTRAST, **(others or {})}
    model = MODELS.build({"type": "TrimmedVLM", **config})
    excite(model.backbone)
    with torch.no_grad():
        model.backbone.host.temp.fill_(0.2)
    return model.train()


def make_batch(model, seed=0, lengths=LENGTHS):
    return random_inputs(model.backbone.input_format, lengths, seed=seed)


@contextmanager
def one_process():
    """LAVIS's own step asks for a process group."""
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def lavis_step(host, inputs):
    samples = {"image": inputs.images, "text_input": encoding(inputs.input_ids, inputs.text_mask)}
    with one_process():
        return import_lavis("lavis.models.blip2_models.blip2_qformer").Blip2Qformer.forward(host, samples)


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


# ---- LAVIS's own training step


@pytest.mark.parametrize("case", [EVA, CLIP, {**CLIP, "freeze_vit": True}], ids=["eva", "clip", "frozen"])
def test_a_step_of_lavis(case):
    """Losses and gradients, with dropout and stochastic depth on."""
    model = make_model(case)
    host = model.backbone.host
    own = copy.deepcopy(host)
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in own.modules())
    for step in range(3):
        inputs = make_batch(model, step)
        torch.manual_seed(step)
        theirs = lavis_step(own, inputs)
        torch.manual_seed(step)
        ours = model.loss(inputs)
        for name in PARTS:
            torch.testing.assert_close(ours[name], theirs[name], msg=name)
        torch.testing.assert_close(total(ours), theirs.loss)
        for one, loss in ((host, total(ours)), (own, theirs.loss)):
            one.zero_grad()
            loss.backward()
        expected = dict(own.named_parameters())
        for name, parameter in host.named_parameters():
            gradient = expected[name].grad
            assert (parameter.grad is None) is (gradient is None), name
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4, msg=name)
        assert host.temp.grad.abs() > 0 and host.Qformer.cls.predictions.bias.grad.abs().max() > 0


def test_losses_by_hand():
    """Of what the model gives: contrast with a tenth of the target spread, words likewise."""
    model = make_model()
    inputs = make_batch(model)
    losses, logits = model.learn(inputs)
    wanted = torch.full((8, 4), 0.1 / 4)
    wanted[range(8), [0, 1, 2, 3] * 2] += 0.9
    torch.testing.assert_close(logits.targets.wanted, wanted)
    torch.testing.assert_close(losses["loss_itc"], -(logits.contrast.log_softmax(1) * wanted).sum() / 8)
    given = [ids[1:length] for ids, length in zip(inputs.input_ids, LENGTHS, strict=True)]
    assert torch.equal(logits.targets.words, torch.cat(given)) and logits.words.shape == (sum(LENGTHS) - 4, 120)
    chances = logits.words.log_softmax(1)
    each = 0.9 * chances[range(18), torch.cat(given)] + 0.1 * chances.mean(1)
    torch.testing.assert_close(losses["loss_lm"], -each.mean())


def test_no_negative_is_too_unlikely():
    """LAVIS adds 1e-4 to every chance: of a row that is sure of its own pair, any other is drawn."""
    sure = 500 * torch.eye(3)
    drawn = [draw_negatives((sure, sure), torch.arange(3), least=1e-4) for _ in range(60)]
    assert {int(each.images[0]) for each in drawn} == {1, 2} and {int(each.texts[2]) for each in drawn} == {0, 1}


# ---- several processes


def _step_as_rank(rank, folder):
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with DefaultScope.overwrite_default_scope("smarttrim_mm"):
        model = make_model(dropout=False)
        host = model.backbone.host
        own = copy.deepcopy(host)
        inputs = make_batch(model, seed=rank)
        samples = {"image": inputs.images, "text_input": encoding(inputs.input_ids, inputs.text_mask)}
        theirs = own(samples)
        ours, logits = model.learn(inputs)
        for name in ("loss_itc", "loss_lm"):
            torch.testing.assert_close(ours[name], theirs[name], msg=name)
        gradients = []
        for one, losses in ((host, ours), (own, theirs)):
            (losses["loss_itc"] + losses["loss_lm"]).backward()
            gradients.append({name: weight.grad for name, weight in one.named_parameters() if weight.grad is not None})
        assert logits.contrast.shape == (8, 8) and gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[1].items():
            torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
        drawn = logits.targets.negatives
        own_pairs = torch.arange(4)
        assert (
            set(drawn.images.tolist()) <= {0, 1, 2, 3}
            and (drawn.images != own_pairs).all()
            and (drawn.texts != own_pairs).all()
        )
    destroy_process_group()


@pytest.mark.slow
def test_contrast_is_with_all_processes(tmp_path):
    """As LAVIS's; its negatives are of all processes too, ours of the own."""
    spawn(_step_as_rank, args=(str(tmp_path),), nprocs=2)


# ---- both passes of a step


def test_teacher_and_student_are_asked_the_same():
    """Without dropout a dense student then has nothing to learn from its teacher; all three parts are compared."""
    others = {"distillation": {"type": "SelfDistillation", "dense_task_weight": 1.0}}
    model = make_model(others=others, dropout=False)
    losses, student = model.learn(make_batch(model))
    assert losses["loss_distill"].abs() < 1e-5
    torch.testing.assert_close(losses["loss_dense_task"], sum(losses[name] for name in PARTS))
    for part in ("contrast", "match", "words"):
        noisy = replace(student, **{part: torch.randn_like(getattr(student, part))})
        assert model.distillation(noisy, student) > 0.01


@pytest.mark.parametrize("checkpointed", [False, True])
def test_decisions_learn(checkpointed):
    others = {
        "distillation": {"type": "SelfDistillation"},
        "budget": {"type": "ComputeBudget", "speedup": 1.3},
        "checkpoint_layers": checkpointed,
    }
    model = make_model(policy=SMARTTRIM, others=others)
    losses = model.loss(make_batch(model))
    assert {"loss_distill", "loss_budget", *PARTS} <= losses.keys() and losses["speedup"] > 1
    sum(losses[name] for name in PARTS).backward()
    reached = {name: weight.grad for name, weight in model.policy.named_parameters()}
    assert len(reached) > 20 and all(gradient is not None for gradient in reached.values())


def test_texts_of_one_image_share_its_encoding():
    """For the model, each text comes with the image."""
    model = make_model(dropout=False)
    inputs = random_inputs(model.backbone.input_format, [5, 6, 4, 7], [0, 1, 0, 2])
    losses = []
    for batch in (inputs, inputs.unshared()):
        torch.manual_seed(0)
        losses.append(model.loss(batch))
    for name in (*PARTS, "multiply_adds"):
        torch.testing.assert_close(losses[0][name], losses[1][name], msg=name)


# ---- what it takes


def test_all_compute_is_counted():
    """By torch's own counter, which sees the products of the contrast too: of texts and queries, both ways."""
    model = make_model()
    inputs = model.backbone.prepare(make_batch(model, lengths=[6] * 4))
    (_, record), counted = count_multiply_adds(lambda: model._run(inputs, model.dense, "masked"))
    products = 2 * 4 * 4 * 5 * 256
    assert 4 * record.executed_multiply_adds() == pytest.approx(counted - products, rel=1e-3)
    assert torch.equal(record.multiply_adds(), record.dense_multiply_adds())
    assert 4 * record.executed_multiply_adds() == pytest.approx(float(record.dense_multiply_adds().sum()), rel=1e-5)


def test_trimming_saves():
    model = make_model(policy={"type": "Random", "keep_ratio": 0.5})
    inputs = model.backbone.prepare(make_batch(model))
    record = model._run(inputs, model.policy, "masked")[1]
    assert (record.multiply_adds() < record.dense_multiply_adds()).all()
    words = [entry for entry in record.entries if getattr(entry, "name", "") == "decoder.words"]
    assert len(words) == 1 and torch.equal(words[0].layout.counts(), torch.full((4,), 5.0)), "it reads all queries"


@torch.no_grad()
def test_a_plan_knows_what_is_whole_again():
    """The text alone, after the queries alone: with nothing kept that may go, a step takes what its plan says."""
    model = make_model(policy=SMARTTRIM)
    inputs = model.backbone.prepare(make_batch(model))
    logits, record = model._run(inputs, model.policy, "masked")
    stripped = model._run(inputs.after(logits), Strip(model.policy), "masked")[1]
    torch.testing.assert_close(record.least_multiply_adds(), stripped.multiply_adds(), rtol=1e-5, atol=1)


# ---- training


def test_eight_pairs_are_learnt_by_heart():
    budget = {"type": "ComputeBudget", "speedup": 1.1, "weight": 1.0}
    model = make_model(policy={"type": "SmartTrim"}, others={"budget": budget}, dropout=False)
    inputs = make_batch(model, lengths=[5, 6, 7, 8, 5, 6, 7, 8])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    first = model.loss(inputs)
    for _ in range(200):
        optimizer.zero_grad()
        losses = model.loss(inputs)
        total(losses).backward()
        optimizer.step()
        if losses["accuracy"] == 1 and losses["loss_lm"] < 1 and losses["loss_itc"] < 0.8:
            break
    # no less is possible with the targets' spread than 0.47 of eight pairs and 0.80 of 120 words
    assert losses["loss_itm"] < 0.3 and losses["loss_itc"] < 0.8 and losses["loss_lm"] < 1.5 < first["loss_lm"]


# ---- errors


@pytest.mark.parametrize(
    ("case", "lengths", "message"),
    [
        ({**EVA, "text_first": True}, LENGTHS, r"text_first=True, and blip2_image_text_matching is trained to contrast"),
        (CLIP, [4], "the batch has 1 pair: there is no negative"),
    ],
    ids=["guide", "one pair"],
)
def test_batches_that_cannot_be_contrasted(case, lengths, message):
    model = make_model(case)
    with pytest.raises(ValueError, match=message):
        model.loss(make_batch(model, lengths=lengths))


def test_alternatives_are_not_contrasted():
    model = make_model()
    inputs = random_inputs(model.backbone.input_format, [5, 6], [0, 1]).all_pairs()
    with pytest.raises(ValueError, match=r"2 image-text pairs; blip2_qformer is trained with single ones"):
        model.loss(inputs)
