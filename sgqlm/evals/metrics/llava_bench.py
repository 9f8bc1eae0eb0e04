"""LLaVA-Bench: a judge gives two answers a score each; the ratio of the means is the result.

The first answer is the reference of GPT-4, the second the model's. Protocol and rounding as
`eval_gpt_review_bench.py` (in the wild), `eval_gpt_review_visual.py` (COCO) and
`summarize_gpt_review.py` of LLaVA; there the files are joined line by line, here by id.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sgqlm import errors

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
MAX_TOKENS, TEMPERATURE = 1024, 0.2
PUBLISHED_JUDGE = "gpt-4-0314"
UNPARSABLE = (-1.0, -1.0)
# in our words; the table `rule.json` of LLaVA has the published ones
RULE = (
    "Two AI assistants answered the question above, which a user asked about an image. You do not "
    "see the image; the sentences under Context say what it shows. Judge how helpful, relevant, "
    "accurate and detailed each answer is, and give each assistant one score from 1 to 10, the "
    "higher the better. The order in which the answers stand must not count.\n"
    "Write the scores of Assistant 1 and Assistant 2 on the first line, two numbers separated by "
    "one space and nothing else. Explain your scores from the second line on."
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One question for the judge.

    Attributes:
        question_id: of the question file.
        category: `llava_bench_conv`, `llava_bench_detail` or `llava_bench_complex`.
        content: what the judge is asked.
        answer1_id: of the reference.
        answer2_id: of the model's answer.
    """

    question_id: Any
    category: str
    content: str
    answer1_id: Any
    answer2_id: Any


@dataclasses.dataclass(frozen=True)
class Group:
    """Scores of one category, or of all.

    Attributes:
        score: 100 * mean(model) / mean(reference), one decimal; None where no reply could be read.
        reference: 10 * mean score of the reference.
        model: 10 * mean score of the model.
        count: reviews.
        unparsable: reviews without two scores; they stay in both means as -1, as published.
    """

    score: float | None
    reference: float | None
    model: float | None
    count: int
    unparsable: int


def parse_score(review: str) -> list[float]:
    """Return the two scores on the first line of a review, [-1, -1] where it has another form.

    A comma counts as a space, and exactly one space must lie between the numbers, as in LLaVA.
    Unlike there, `nan` and `inf` are no scores.
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        scores = [float(part) for part in parts]
    except ValueError:
        return list(UNPARSABLE)
    if len(scores) != 2 or not all(math.isfinite(score) for score in scores):
        return list(UNPARSABLE)
    return scores


def prompt(
    question: str, context: Sequence[str], reference: str, answer: str, *, rule: str, role: str
) -> str:
    """Return what the judge is asked about one answer.

    Args:
        question: the text of the question.
        context: sentences that describe the image.
        reference: the answer of GPT-4.
        answer: the answer of the model.
        rule: what the judge is to do.
        role: what the two are called, `Assistant`.
    """
    parts = [
        f"[Context]\n{chr(10).join(context)}",
        f"[Question]\n{question}",
        f"[{role} 1]\n{reference}\n\n[End of {role} 1]",
        f"[{role} 2]\n{answer}\n\n[End of {role} 2]",
        f"[System]\n{rule}",
    ]
    return "".join(f"{part}\n\n" for part in parts)


def messages(content: str) -> list[dict[str, str]]:
    """Return the conversation that asks the judge."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def pair(
    questions: Iterable[Mapping],
    contexts: Iterable[Mapping],
    references: Iterable[Mapping],
    answers: Iterable[Mapping],
    *,
    rules: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Case]:
    """Join the four files of LLaVA-Bench.

    Args:
        questions: lines of `questions.jsonl`: question_id, image, text, category.
        contexts: lines of `context.jsonl`: image, caption (one text or several); or of
            `caps_boxes_coco2014_val_80.jsonl`: image, captions, instances with category and bbox.
        references: lines of `answers_gpt4.jsonl`: question_id, text.
        answers: lines of the model's answer file.
        rules: `rule.json` of LLaVA, category -> {role, prompt}; None for `RULE`.

    Raises:
        SgqlmError: ids are missing or doubled, or an image has no context; all are named.
    """
    asked = _by_id(questions, ("question_id", "image", "text", "category"), "questions")
    shown = _by_id(map(_context, contexts), ("image", "caption"), "context")
    first = _by_id(references, ("question_id", "text"), "reference answers")
    second = _by_id(answers, ("question_id", "text"), "answers")
    _agree(asked, first, "reference answers")
    _agree(asked, second, "answers")
    cases = []
    for key, line in asked.items():
        # the rules of the COCO part, whose context has boxes, have the bare names
        prefix = "" if "instances" in shown.get(line["image"], ()) else "llava_bench_"
        category = prefix + str(line["category"]).removeprefix("llava_bench_")
        rule = {"prompt": RULE, "role": "Assistant"} if rules is None else rules.get(category)
        if rule is None or line["image"] not in shown:
            what = f"rule for {category}" if rule is None else f"context for {line['image']}"
            raise _wrong(f"there is no {what}", f"question {key}")
        caption = shown[line["image"]]["caption"]
        content = prompt(
            line["text"],
            [caption] if isinstance(caption, str) else caption,
            first[key]["text"],
            second[key]["text"],
            rule=rule["prompt"],
            role=rule["role"],
        )
        ids = [answer[key].get("answer_id", key) for answer in (first, second)]
        cases.append(Case(key, category, content, *ids))
    return cases


def summarise(reviews: Iterable[Mapping]) -> dict[str, Group]:
    """Return the scores of the reviews of one judge, of `all` and of the categories.

    Args:
        reviews: lines with question_id and `tuple` (or `score`, or the `content` of the reply);
            `category` where there are categories.

    Raises:
        SgqlmError: a question has two reviews, or a line is no review.
    """
    lines = _by_id(reviews, ("question_id",), "reviews")
    pairs = collections.defaultdict(list)
    for line in lines.values():
        scores = scores_of(line)
        pairs["all"].append(scores)
        if "category" in line:
            pairs[line["category"]].append(scores)
    return {name: _group(pairs[name]) for name in sorted(pairs)}


def over_runs(summaries: Sequence[Mapping[str, Group]]) -> dict[str, float]:
    """Return mean and standard deviation of the overall score of several runs of the judge.

    The published score of LLaVA-1.5-13B, 72.5, is the mean of three.
    """
    found = [groups["all"].score for groups in summaries if "all" in groups]
    scores = [score for score in found if score is not None]
    if not scores:
        return {}
    return {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores)}


def _context(line: Mapping) -> Mapping:
    if "captions" not in line:
        return line
    boxes = [f"{box['category']}: {box['bbox']}" for box in line.get("instances", ())]
    return {**line, "caption": [*line["captions"], *([""] if boxes else []), *boxes]}


def scores_of(line: Mapping) -> list[float]:
    """Return the scores of reference and model in a line of a review file.

    Raises:
        SgqlmError: it has none, or other than two.
    """
    for name in ("tuple", "score"):
        if name in line:
            values = line[name]
            if (
                isinstance(values, list | tuple)
                and len(values) == 2
                and all(map(_is_score, values))
            ):
                return [float(value) for value in values]
            raise _wrong("a review has no two scores", f"question {line['question_id']}: {name}")
    text = line.get("content", line.get("text"))
    if not isinstance(text, str):
        raise _wrong("a line is no review", f"question {line['question_id']}")
    return parse_score(text)


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _group(pairs: list[list[float]]) -> Group:
    # the published program rounds the means to 3 decimals before it divides
    reference, model = (round(statistics.fmean(column), 3) for column in zip(*pairs, strict=True))
    unparsable = sum(tuple(pair) == UNPARSABLE for pair in pairs)
    usable = unparsable < len(pairs) and reference != 0  # -1 / -1 would be a score of 100
    return Group(
        round(model / reference * 100, 1) if usable else None,
        round(reference * 10, 1) if usable else None,
        round(model * 10, 1) if usable else None,
        len(pairs),
        unparsable,
    )


def _by_id(lines: Iterable[Mapping], names: Sequence[str], what: str) -> dict[Any, Mapping]:
    found, doubled, name = {}, [], names[0]
    for number, line in enumerate(lines, 1):
        if absent := [wanted for wanted in names if wanted not in line]:
            raise _wrong(f"a line of the {what} has no {absent[0]}", f"line {number}")
        if "text" in names and not isinstance(line["text"], str):
            raise _wrong(f"a text of the {what} is no text", f"line {number}")
        doubled += [line[name]] if line[name] in found else []
        found[line[name]] = line
    if doubled:
        raise _wrong(f"the {what} have {len(doubled)} doubled ids", _some(doubled))
    return found


def _agree(asked: Mapping, given: Mapping, what: str) -> None:
    missing = [key for key in asked if key not in given]
    unknown = [key for key in given if key not in asked]
    if missing or unknown:
        told = f"{len(missing)} questions without, {len(unknown)} that nobody asked"
        raise _wrong(f"the {what} do not fit the questions: {told}", _some([*missing, *unknown]))


def _some(ids: Sequence) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def _wrong(what: str, where: str) -> errors.SgqlmError:
    fix = "give the files of one revision of the benchmark and a whole answer file"
    return errors.SgqlmError(what, where=where, fix=fix, code=errors.DATA)
