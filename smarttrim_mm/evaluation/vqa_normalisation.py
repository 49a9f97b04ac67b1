"""Normalisation and score of an answer as in the official evaluation of VQAv2.

Rules and their oddities are those of ``PythonEvaluationTools/vqaEvaluation/vqaEval.py`` of GT-Vision-Lab/VQA (2021-03-11),
as its Python 2 runs it, where only 0 to 9 are digits.
"""

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile("[0-9],[0-9]")
_PERIOD = re.compile(r"\.(?![0-9])")  # the official look-behind for a digit is misspelt and never fails
_MAX_PERIODS = 32  # there, the flag re.UNICODE (32) stands in the place of the count
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1)
}
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# The spellings known as wrong lack exactly one apostrophe; one entry of the official table is the wrong way round. Its
# entries with a capital "I" are left out: they never meet a lower-cased word.
_CONTRACTIONS = {
    right[:i] + right[i + 1 :]: right for right in _CONTRACTED.split() for i, letter in enumerate(right) if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalise_answer(text: str) -> str:
    """Brings an answer into the form in which the official evaluation compares answers that differ.

    In this order: newlines and tabs become spaces and the ends are stripped; a punctuation mark that touches a space
    anywhere in the answer is removed, any other becomes a space (all are removed if a comma stands between two digits);
    the first 32 periods that no digit follows are removed; words are lower-cased, number words up to ten (and "none")
    become digits, articles go, and apostrophes come back into contractions. Colons and apostrophes are no punctuation.

    Args:
        text: An answer of a person or a model.

    Returns:
        The normalised answer; it may be empty.
    """
    text = _strip(text)
    remove_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    marks = {ord(p): "" if remove_all or f"{p} " in text or f" {p}" in text else " " for p in _PUNCTUATION}
    words = _PERIOD.sub("", text.translate(marks), count=_MAX_PERIODS).lower().split()
    words = [word for word in (_NUMBERS.get(word, word) for word in words) if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """The official accuracy of one answer: the mean over leave-one-out subsets of min(1, matches / 3).

    Answers are normalised only if the people's answers differ; people who all agree are matched to the letter, but for the
    white space of :func:`normalise_answer`.

    Args:
        prediction: The model's answer.
        answers: The people's answers, ten in VQAv2. With n of them, each is left out once and the mean is over n subsets;
            a single answer thus gives 0.

    Returns:
        The score, 0-1; with ten answers 0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2, 3, or at least 4 matches.

    Raises:
        ValueError: If there are no answers.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers={answers!r}: expected the list of the people's answers, ten in VQAv2")
    prediction, people = _strip(prediction), [_strip(answer) for answer in answers]
    if len(set(people)) > 1:
        prediction, people = normalise_answer(prediction), [normalise_answer(answer) for answer in people]
    count, matches = len(people), people.count(prediction)
    without_a_match, without_another = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * without_a_match + (count - matches) * without_another) / count


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
