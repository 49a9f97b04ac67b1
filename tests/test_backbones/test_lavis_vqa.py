"""Models of LAVIS that answer in words: what a decoder gives, ranked or taught, behind trimmed encoders."""

from dataclasses import replace

import pytest
import torch
from transformers import BatchEncoding

from smarttrim_mm.backbones.given_tokens import encoding
from smarttrim_mm.inputs import TextTargets
from smarttrim_mm.losses.answers import AnswerGeneration
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, count_multiply_adds, excite, random_inputs

CASES = {name.partition("/")[2]: case for name, case in backbone_cases().items() if "_vqa " in name}
ANSWERS = [[101, *words, 102] for words in ((7,), (8, 9), (7, 5, 6), (11,), (8, 12))]
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


@pytest.fixture(params=CASES)
def build(request):
    def make(policy="Dense", **changes):
        policy = {"type": policy} if isinstance(policy, str) else policy
        case = CASES[request.param]
        backbone = {**case, "answers": ANSWERS, **changes, "text": {**case["text"], **changes.get("text", {})}}
        loss = {"type": "AnswerGeneration"}
        model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy, "task_loss": loss}).eval()
        excite(model.backbone)
        return model

    return make


@pytest.fixture
def inputs_of():
    """Four questions about two images; the second has two answers, of which one counts more."""

    def make(model, **others):
        inputs = random_inputs(model.backbone.input_format, (9, 4, 2, 7), (0, 0, 1, 1), **others)
        mask = torch.arange(5) < torch.tensor([4, 3, 5, 4, 3])[:, None]
        ids = torch.tensor(
            [[101, 7, 9, 102, 0], [101, 8, 102, 0, 0], [101, 7, 5, 6, 102], [101, 11, 3, 102, 0], [101, 7, 102, 0, 0]]
        )
        texts = TextTargets(ids, mask, torch.tensor([1, 0.7, 0.3, 1, 1]), torch.tensor([0, 1, 1, 2, 3]), samples=4)
        return replace(inputs, targets=texts)

    return make


def as_lavis(model, inputs) -> dict:
    """The batch as LAVIS's own tasks pass it."""
    every, texts = inputs.unshared(), inputs.targets
    return {
        "image": every.images,
        "text_input": encoding(every.input_ids, every.text_mask),
        "answer": encoding(texts.input_ids, texts.mask),
        "weight": texts.weights,
        "n_answers": texts.sample.bincount(),
        **{"epoch": 0, "iters": 0, "num_iters_per_epoch": 1},  # of ALBEF's momentum
    }


def test_the_loss_and_gradients_of_lavis(build, inputs_of):
    """In training mode, under equal random state."""
    model = build(text_first=False, text={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}).train()
    inputs = inputs_of(model)
    model.loss(inputs)["loss_task"].backward()
    ours = {name: p.grad for name, p in model.backbone.host.named_parameters()}
    model.zero_grad()
    model.backbone.host.alpha = 0  # ALBEF's share of what its momentum copies say
    theirs = model.backbone.host(as_lavis(model, inputs)).loss
    theirs.backward()
    torch.testing.assert_close(model.loss(inputs)["loss_task"], theirs)
    for name, p in model.backbone.host.named_parameters():
        if p.grad is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_dropout_is_lavis_own(build, inputs_of):
    model = build(text_first=False).train()
    inputs = inputs_of(model).unshared()
    losses = []
    for run in (lambda: model.trace(inputs, "masked")[0], lambda: model.host_forward(inputs)):
        torch.manual_seed(3)
        losses.append(AnswerGeneration()(run(), inputs.targets))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("candidates", [2, 5])
@torch.no_grad()
def test_the_answers_of_lavis(build, inputs_of, candidates):
    """LAVIS's predict_answers, with LAVIS's order of the candidates."""
    model = build(num_candidates=candidates, text_first=False)
    inputs = replace(inputs_of(model), targets=None)
    scores = model(inputs)
    assert scores.shape == (4, 5) and (scores.isfinite().sum(1) == candidates).all()
    torch.testing.assert_close(model.host_forward(inputs), scores, atol=1e-4, rtol=1e-4)

    class Answers(BatchEncoding):
        def __len__(self) -> int:
            return len(ANSWERS)

        def __getitem__(self, key):
            return f"answer {int(key)}" if isinstance(key, torch.Tensor) else super().__getitem__(key)

    every = inputs.unshared()
    samples = {"image": every.images, "text_input": encoding(every.input_ids, every.text_mask)}
    samples["text_input"].__class__ = type("Words", (BatchEncoding,), {"__len__": lambda self: 4})
    backbone = model.backbone
    theirs = backbone.host.predict_answers(
        samples,
        answer_list=Answers(encoding(backbone.candidate_ids, backbone.candidate_mask).data),
        num_ans_candidates=candidates,
    )
    assert theirs == [f"answer {row}" for row in scores.argmax(1).tolist()]


@pytest.mark.parametrize("policy", [SMARTTRIM, {"type": "Random", "keep_ratio": 0.7}], ids=["smarttrim", "random"])
@torch.no_grad()
def test_both_executions_give_the_same_words(build, inputs_of, policy):
    model = build(policy)
    for inputs in (inputs_of(model), replace(inputs_of(model), targets=None)):
        (masked, record), (packed, other) = (model.trace(inputs, kind) for kind in ("masked", "packed"))
        torch.testing.assert_close(masked, packed, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(record.multiply_adds(), other.multiply_adds())
        alone = model.trace(inputs.select(torch.tensor([1])))[0]
        rows = (1, 2, 3)  # of the second question: one row of scores, or 2 + 4 tokens after the first's three
        expected = packed[rows[0] : rows[0] + 1] if inputs.targets is None else packed[3:9]
        torch.testing.assert_close(alone, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropped_words_of_the_question_make_the_decoder_cheaper(build, inputs_of):
    model = build({"type": "Random", "keep_ratio": 0.5, "streams": ["text"]})
    inputs = inputs_of(model)
    record = model.trace(inputs)[1]
    entry = record.entries[-1]
    kept, real = entry.layout.counts(), entry.layout.full()
    assert (kept < real).any()
    width, layers, head = 32, 2, 32 * 32 + 32 * 120
    own = [4 * n * width**2 + 2 * n * n * width + 2 * n * width**2 + 2 * n * width * 48 for n in (4.0, 3.0, 5.0, 4.0, 3.0)]
    lengths = torch.tensor([4.0, 3.0 + 5.0, 4.0, 3.0])
    texts = torch.tensor([own[0], own[1] + own[2], own[3], own[4]])
    answers = torch.tensor([1.0, 2.0, 1.0, 1.0])
    for tokens, found in ((kept, entry.cost(lambda lay: lay.counts(), None)), (real, entry.cost(lambda lay: lay.full(), None))):
        read = tokens * (2 * answers * width**2 + 2 * lengths * width)  # keys and values for each answer, scores and sums
        torch.testing.assert_close(found, layers * (texts + read) + lengths * head)


@pytest.mark.parametrize("candidates", [2, 5])
@torch.no_grad()
def test_all_runs_of_the_decoder_are_counted(build, candidates):
    """By torch's own count, at one question and answers of one length."""
    model = build(
        SMARTTRIM,
        answers=[[101, 7 + i, 20 + i, 102] for i in range(5)],
        num_candidates=candidates,
    )
    inputs = random_inputs(model.backbone.input_format, (8,))
    (_, record), counted = count_multiply_adds(lambda: model.trace(inputs))
    assert record.executed_multiply_adds() == pytest.approx(counted, rel=0.01)
    (_, record), counted = count_multiply_adds(lambda: model.trace(inputs, policy=model.dense))
    assert float(record.dense_multiply_adds()) == pytest.approx(counted, rel=0.01)


def test_learning_the_words(build, inputs_of):
    """The loss of a batch falls under trimmers, and these get gradients."""
    model = build({"type": "SmartTrim"}).train()
    inputs = inputs_of(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        found = model.loss(inputs)
        found["loss_task"].backward()
        optimizer.step()
        losses.append(found["loss_task"].item())
    assert min(losses[-5:]) < 0.5 * losses[0]
    assert 0.5 < found["accuracy"] <= 1
    assert all(p.grad is not None for p in model.policy.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "answers is empty"),
        ({"answers": ["yes", "no"]}, "answers holds texts \\('yes'\\) and tokenizer is None"),
        ({"answers": [[101, 7, 102], [101, 7, 102]]}, r"answers 0 and 1, \[101, 7, 102\], have the same token ids"),
        ({"num_candidates": 0}, "num_candidates is 0; expected at least 1"),
    ],
    ids=["none", "tokenizer", "twice", "candidates"],
)
def test_errors_of_the_config(build, change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


WORDS = {"type": "WordTokenizer", "words": ["yes", "no", "red"]}


def test_answers_from_a_file(build, tmp_path):
    """An empty one, which VQAv2's vocabulary has, is its begin and end tokens."""
    path = tmp_path / "answers.json"
    path.write_text('["yes", "", "red no"]')
    backbone = build(answers=str(path), tokenizer=WORDS).backbone
    assert backbone.answers == ("yes", "", "red no")
    assert backbone.input_format["num_classes"] == 3
    rows = zip(backbone.candidate_ids, backbone.candidate_mask, strict=True)
    assert [ids[real].tolist() for ids, real in rows] == [[0, 4, 2], [0, 2], [0, 6, 5, 2]]
    assert build().backbone.answers is None


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"answers\.json': no such file; expected a JSON list .*/vqav2_answers\.py"),
        ("yes, no", ValueError, r"answers\.json' is no JSON \(Expecting value"),
        ('{"yes": 0}', ValueError, r"answers\.json' holds \"{'yes': 0}\"; expected a JSON list"),
        ('["yes", 2]', ValueError, r"holds \"\['yes', 2\]\""),
        ("[]", ValueError, "answers is empty"),
    ],
    ids=["missing", "no JSON", "no list", "no texts", "empty"],
)
def test_files_that_hold_no_answers(build, tmp_path, content, error, message):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        build(answers=str(path), tokenizer=WORDS)


def test_training_needs_texts(build, inputs_of):
    model = build(num_candidates=2).train()
    with pytest.raises(ValueError, match="expected texts in training; add TokenizeAnswers"):
        model.loss(replace(inputs_of(model), targets=torch.zeros(4, dtype=torch.long)))
