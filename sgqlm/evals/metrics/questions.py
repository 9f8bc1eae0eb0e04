"""Quality of asked questions from their text alone: variety, kinds, form, agreement of answers."""

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence

# kinds of `kind`, in the order of a report
KINDS = (
    *("choice", "reasoning", "why", "how many", "how", "what", "where", "which", "who", "when"),
    *("yes/no", "instruction", "other"),
)
_WH = {
    **{word: word for word in ("what", "where", "which", "who", "when", "why", "how")},
    **dict.fromkeys(("who's", "whom", "whose"), "who"),
    "what's": "what",
    "where's": "where",
}
_AUXILIARY = (
    *("is", "are", "was", "were", "am", "do", "does", "did", "can", "could", "will", "would"),
    *("should", "shall", "may", "might", "must", "has", "have", "had", "ca", "wo"),
)
_INSTRUCTION = (
    *("describe", "explain", "name", "list", "identify", "tell", "give", "count", "discuss"),
    *("provide", "write", "summarize", "summarise", "compare", "analyze", "analyse"),
)
_JOINS = (
    *("please", "and", "so", "then", "but", "also", "now"),
    *("in", "on", "at", "of", "for", "from", "to", "by", "with", "about"),
)
_OPTION = re.compile(r"(?:^|\s)\(?[A-F][.)]\s")
_OR = re.compile(r"(?<!\bone )\bor\b(?! (?:not|more|less|fewer|so|anything|something)\b)")
_LISTED = re.compile(r"[,:?][^?]*\bor\b")
# words of a question whose answer is concluded rather than seen
_CONCLUDED = re.compile(
    r"\b(?:infer(?:red)?|suggests?|impl(?:y|ies)|likely|probably|purpose|reasons?|significance|"
    r"conclu(?:de|sion)|indicates?|implications?|consequences?|benefits?|challenges?|"
    r"contributes?|relationship between)\b"
)
_SUPPOSED = re.compile(r"\b(?:might|could|would|possible|possibly|potential|potentially|if)\b")
_FEWEST_WORDS, _MOST_WORDS = 3, 60
_EPSILON = 0.1  # method 1 of Chen and Cherry (2014): what a missing n-gram counts


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+(?:['\u2019]\w+)*", text.lower())


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct-n: different n-grams over all n-grams of all texts (Li et al., 2016).

    Example: "a b a" and "a b" have three bigrams, two of them different: 2 / 3.

    Args:
        texts: the questions.
        n: words of an n-gram.

    Returns:
        0..1; 0 without any n-gram.
    """
    found = [gram for text in texts for gram in _grams(words(text), n)]
    return len(set(found)) / len(found) if found else 0.0


def bleu(candidate: str, references: Sequence[str], *, max_n: int = 4) -> float:
    """Return the BLEU of one sentence (Papineni et al., 2002), 0..1.

    Equal weights for 1..`max_n`; an order without a match counts 0.1 instead of 0 (method 1 of Chen
    and Cherry, 2014, as in the published self-BLEU), no shared word at all gives 0.

    Args:
        candidate: the sentence.
        references: what it is compared with.
        max_n: longest n-gram.
    """
    given, known = words(candidate), [words(text) for text in references]
    if not given or not known:
        return 0.0
    logs = []
    for n in range(1, max_n + 1):
        counts = collections.Counter(_grams(given, n))
        most: collections.Counter = collections.Counter()
        for other in known:
            most |= collections.Counter(_grams(other, n))
        hits = (counts & most).total()
        if n == 1 and not hits:
            return 0.0
        logs.append(math.log((hits or _EPSILON) / max(counts.total(), 1)))
    nearest = min((abs(len(other) - len(given)), len(other)) for other in known)[1]
    brevity = min(0.0, 1 - nearest / len(given))
    return math.exp(brevity + sum(logs) / max_n)


def self_bleu(texts: Sequence[str], *, max_n: int = 4) -> float:
    """Return the mean BLEU of every text against the others (Zhu et al., 2018); lower: more varied.

    Args:
        texts: the questions about one image; at least two.
        max_n: longest n-gram.

    Returns:
        0..1.

    Raises:
        ValueError: there is nothing to compare.
    """
    if len(texts) < 2:
        raise ValueError("self-BLEU needs two texts")
    scores = [bleu(t, [*texts[:i], *texts[i + 1 :]], max_n=max_n) for i, t in enumerate(texts)]
    return sum(scores) / len(scores)


def kind(text: str) -> str:
    """Return which of `KINDS` a question is, by rules for English.

    Options after the question or alternatives ("... red or blue?") make it a choice; words of
    conclusion ("what might ...", "... suggest", "purpose") reasoning; else its question word
    decides, also behind an opening clause ("In the picture, what ...").
    """
    if len(_OPTION.findall(text)) > 1:
        return "choice"
    plain = " ".join(text.lower().replace("\u2019", "'").split())
    lead, follows = _lead(plain)
    if lead in ("instruction", "other"):
        return lead
    behind = plain.partition(lead)[2]
    is_listed = lead in ("yes/no", "which") or _LISTED.search(behind)
    if is_listed and _OR.search(behind or plain):
        return "choice"
    if lead == "why":
        return "why"
    if _CONCLUDED.search(plain) or (lead != "yes/no" and _SUPPOSED.search(plain)):
        return "reasoning"
    return "how many" if lead == "how" and follows in ("many", "much") else lead


def is_well_formed(text: str) -> bool:
    """Tell whether a text reads as one question.

    One line that begins with a letter or digit and ends with its only question mark, 3 to 60 words,
    a question word or verb in front, no word three times in a row. Options on lines of their own
    (A. ... B. ...) may follow.
    """
    text = text.strip()
    if len(_OPTION.findall(text)) > 1:
        text = text[: _OPTION.search(text).start()].strip()  # pyright: ignore
    found = words(text)
    return (
        text.endswith("?")
        and text.count("?") == 1
        and "\n" not in text
        and "\ufffd" not in text
        and text[0].isalnum()
        and _FEWEST_WORDS <= len(found) <= _MOST_WORDS
        and not any(a == b == c for a, b, c in zip(found, found[1:], found[2:], strict=False))
        and kind(text) != "other"
    )


def agreement(answers: Sequence[str]) -> float:
    """Return how much several answers to one question say the same, 0..1.

    The mean over all pairs of the F1 of their words (as in SQuAD: articles and punctuation left
    out); an empty answer agrees with none. Example: "red", "red" and "blue" give 1 / 3.

    Args:
        answers: at least two.

    Raises:
        ValueError: there is nothing to compare.
    """
    if len(answers) < 2:
        raise ValueError("agreement needs two answers")
    bags = [
        collections.Counter(word for word in words(text) if word not in ("a", "an", "the"))
        for text in answers
    ]
    scores = [_f1(a, b) for a, b in itertools.combinations(bags, 2)]
    return sum(scores) / len(scores)


def measure(asked: Sequence[Sequence[str]]) -> dict:
    """Measure the questions about some images.

    Args:
        asked: the questions about each image.

    Returns:
        `images`, `questions`, `distinct_questions` (different ones over all), `distinct_1`,
        `distinct_2`, `self_bleu` (mean over images with two questions, None without any),
        `well_formed`, `mean_words`, `kinds` (kind -> share); shares 0..1.
    """
    texts = [text for about in asked for text in about]
    total = max(len(texts), 1)
    compared = [self_bleu(about) for about in asked if len(about) > 1]
    kinds = collections.Counter(map(kind, texts))
    same = {" ".join(words(text)) for text in texts}
    return {
        "images": len(asked),
        "questions": len(texts),
        "distinct_questions": len(same) / total,
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "self_bleu": sum(compared) / len(compared) if compared else None,
        "well_formed": sum(map(is_well_formed, texts)) / total,
        "mean_words": sum(len(words(text)) for text in texts) / total,
        "kinds": {name: kinds[name] / total for name in KINDS},
    }


def lines(found: Mapping) -> list[str]:
    """Return what `measure` found as lines of text."""
    bleu_text = "-" if found["self_bleu"] is None else f"{found['self_bleu']:.3f}"
    kinds = ", ".join(f"{name} {share:.1%}" for name, share in found["kinds"].items() if share)
    return [
        f"{found['questions']} questions about {found['images']} images, "
        f"{found['mean_words']:.1f} words each",
        f"variety      {found['distinct_questions']:.1%} different, distinct-1 "
        f"{found['distinct_1']:.3f}, distinct-2 {found['distinct_2']:.3f}, self-BLEU {bleu_text}",
        f"well formed  {found['well_formed']:.1%}",
        f"kinds        {kinds or '-'}",
    ]


def _grams(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def _lead(plain: str) -> tuple[str, str]:
    """Return the kind that the first telling clause has, and the word after its first."""
    clauses = [words(clause) for clause in re.split(r"[,.;:!\u2014]+\s+", plain)]
    for clause in clauses:
        while len(clause) > 1 and clause[0] in _JOINS and _name(clause[1:]) != "other":
            clause = clause[1:]
        if (name := _name(clause)) != "other":
            return name, clause[1] if len(clause) > 1 else ""
    return "other", ""


def _name(clause: Sequence[str]) -> str:
    first = clause[0] if clause else ""
    if first in _WH:
        return _WH[first]
    if first.removesuffix("n't") in _AUXILIARY:
        asks_for = len(clause) > 2 and clause[1] == "you" and clause[2] in _INSTRUCTION
        return "instruction" if asks_for else "yes/no"
    return "instruction" if first in _INSTRUCTION else "other"


def _f1(first: collections.Counter, second: collections.Counter) -> float:
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if first and second else 0.0
