"""VQA accuracy as the official VQAEval computes it (GT-Vision-Lab/VQA, revision a013f004)."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MATCHES = 3  # a human answer given by three others counts in full
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # colon, apostrophe, %, $, * and & stay
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# The forms that the official table writes, without capitals (its keys "Im", "Ive" never match a
# text in small letters). A written form is found by leaving out one apostrophe.
_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
    wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
"""
_TWO_APOSTROPHES = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll
    y'all'd've you'd've 'ow's'at
"""
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official pattern means "not after a digit" but says (?!<=\d), which is always true.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the official call gives re.UNICODE, 32, where the count stands


def normalise(text: str) -> str:
    """Return an answer in the form in which VQAEval compares it.

    Args:
        text: an answer as it was given.

    Returns:
        The answer without punctuation and articles, numbers to ten as digits, in small letters:
        `The red-bus.` becomes `red bus`.
    """
    return digits_and_articles(strip_punctuation(clean(text)))


def clean(text: str) -> str:
    """Return a text with blanks for line ends and tabs, and none around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """Return a text with its punctuation left out or as blanks.

    A sign is left out everywhere where it stands beside a blank somewhere in the text, or where
    the text has a comma between digits; else it becomes a blank.
    """
    out, has_comma = text, _DIGIT_COMMA_DIGIT.search(text)
    for sign in PUNCTUATION:
        is_loose = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if is_loose or has_comma else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


def digits_and_articles(text: str) -> str:
    """Return a text in small letters, with digits for numbers to ten and without articles."""
    numbers = {name: str(value) for value, name in enumerate(NUMBERS)} | {"none": "0"}
    words = [numbers.get(word, word) for word in text.lower().split()]
    forms = _contractions()
    return " ".join(forms.get(word, word) for word in words if word not in ARTICLES)


def contractions() -> dict[str, str]:
    """Return what the official table writes for words that lack an apostrophe."""
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _TWO_APOSTROPHES.split():
        places = [at for at, sign in enumerate(word) if sign == "'"]
        table |= {word[:at] + word[at + 1 :]: word for at in places}
    return table | {"somebody'd": "somebodyd"}  # an oddity of the table


@functools.cache
def _contractions() -> dict[str, str]:
    return contractions()


def texts_of(answers: Iterable[Any]) -> list[str]:
    """Return human answers as texts; in the official files they are records with `answer`."""
    return [str(one["answer"] if isinstance(one, Mapping) else one) for one in answers]


def accuracy(prediction: str, answers: Iterable[Any]) -> float:
    """Return the accuracy of a prediction, from 0 to 1.

    Each human answer in turn is left out; the prediction scores a third for each of the others
    that equals it, at most 1; the mean counts. Answers that are all the same are compared as they
    are, without `normalise`: then `Yes` is not `yes`.

    Args:
        prediction: the answer of a model; LLaVA submits `textvqa.normalise` of what it said.
        answers: the human answers, usually 10: texts, or official records with `answer`.

    Returns:
        0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2, 3 or more equal ones of 10.

    Raises:
        ValueError: there are no answers.
    """
    given, wanted = clean(prediction), [clean(answer) for answer in texts_of(answers)]
    if len(set(wanted)) > 1:
        given, wanted = normalise(given), [normalise(answer) for answer in wanted]
    return agreement(given, wanted)


def agreement(given: str, wanted: Sequence[str]) -> float:
    """Return the mean over `wanted` of min(1, equal ones among the others / 3).

    Raises:
        ValueError: `wanted` is empty.
    """
    if not wanted:
        raise ValueError("there are no human answers to compare with")
    equal = sum(answer == given for answer in wanted)
    parts = [min(1.0, (equal - (answer == given)) / MATCHES) for answer in wanted]
    return sum(parts) / len(parts)
