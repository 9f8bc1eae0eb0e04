"""Objects that descriptions of any model mention and that are not in the images, as CHAIR counts.

Ground truth: COCO's instances_val2014.json (and captions_val2014.json beside it, whose objects are
there too, as in Rohrbach et al. 2018), or lists of objects by image. A file of synonyms has a line
`name, synonym, synonym` an object.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import caption_files, joining, scored, tables
from sgqlm.evals.metrics import hallucination, records

TASK = "hallucination"
_IDS = ("image_id", *tables.IDS)
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d+)(?:\.jpg)?", re.IGNORECASE)
# Words that mean no object of their own in front of these: a baby elephant is no person beside an
# elephant, and nobody is told of by a passenger train (rules of the CHAIR program).
_ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal",
    "cub",
)  # fmt: skip
_QUALIFIED = (
    *itertools.product(("baby", "adult"), _ANIMALS),
    *itertools.product(("passenger",), ("jet", "train")),
)
_WHOLE = {"bow tie": "tie", "toilet seat": "toilet", "home plate": ""}


@dataclasses.dataclass
class Objects:
    """What is there.

    Attributes:
        there: id -> objects.
        names: name or synonym -> object.
        is_coco: whether the ids are COCO's, whose files have many more images than a model answers.
        notes: what a reader has to know.
    """

    there: dict[str, set[str]]
    names: dict[str, str]
    is_coco: bool
    notes: list[str]

    def key(self, name: str) -> str:
        """Return an id as the annotations write it: 42 for COCO_val2014_000000000042.jpg."""
        found = _COCO_NAME.fullmatch(name) if self.is_coco and name not in self.there else None
        return found[1] if found else name

    def mentions(self, text: str) -> list[str]:
        """Return the objects a text mentions, in order, as often as it does."""
        return [name for name in hallucination.mentions(text, self.names) if name]


@dataclasses.dataclass
class _Faults(joining.Faults):
    """Ids that do not fit; an image without a text is in no figure."""

    def lines(self) -> list[str]:
        told = "images have no answer and are in no figure"
        return [
            line.replace("annotated questions have no answer and count as wrong", told)
            for line in super().lines()
        ]


def score(answers: Sequence[pathlib.Path], annotations: Sequence[pathlib.Path]) -> scored.Scored:
    """Score descriptions.

    Args:
        answers: one file: LLaVA's answers by the id or name of the image, or COCO's results
            `[{"image_id", "caption"}]`, also under `imgToEval`.
        annotations: lists of objects or COCO's instances; its captions; a `.txt` of synonyms.

    Returns:
        1 - CHAIR_s as the headline, since more is better in all benchmarks; CHAIR_s, CHAIR_i and
        the recall of objects below it. An item is 1 where a text mentions nothing else.

    Raises:
        SgqlmError: a file is missing, damaged or of another kind, or no id fits.
    """
    if len(answers) != 1 or not annotations:
        raise errors.SgqlmError(
            f"{TASK} compares one file of answers with objects that are there",
            where="--annotations",
            fix="give {id: [objects]} or COCO's instances_val2014.json",
        )
    path, known = answers[0], read(annotations)
    given = [(known.key(answer.key), answer) for answer in caption_files.results(path)]
    joined, found = joining.join(given, known.there, where=str(path))
    faults, notes = _Faults(**vars(found)), list(known.notes)
    if known.is_coco:
        notes.append(f"over {len(joined)} of {len(known.there)} images that are annotated")
        faults.missing = []
    said: dict[Hashable, list[str]] = {k: known.mentions(a.text) for k, a in joined.items()}
    there: dict[Hashable, set[str]] = {key: known.there[key] for key in joined}
    return _scored(joined, said, there, faults, notes)


def _scored(joined, said, there, faults: joining.Faults, notes: list[str]) -> scored.Scored:
    done = hallucination.score(said, there)
    if not done.mentions:
        notes.append("no text mentions an object: there is no hallucination to measure")
    share = done.chair_s if done.mentions else None
    rows = [
        ("1 - CHAIR_s", None if share is None else 1 - share, done.texts),
        ("CHAIR_s", share, done.texts),
        ("CHAIR_i", done.chair_i, done.mentions),
        ("recall", done.recall, sum(map(len, there.values()))),
    ]
    details = {
        key: {
            "question": answer.prompt,
            "wanted": ", ".join(sorted(there[key])),
            "given": answer.text + _told(done.hallucinated.get(key)),
            "image": str(records.first(answer.record, ("image", "image_id")) or key),
        }
        for key, answer in joined.items()
    }
    items = {key: float(key not in done.hallucinated) for key in joined} if done.mentions else {}
    return scored.Scored(
        TASK, rows[0][1], rows[0][0], rows, items, faults, notes, details=details
    )  # fmt: skip


def _told(wrong: Sequence[str] | None) -> str:
    return f" [not there: {', '.join(wrong)}]" if wrong else ""


def read(files: Sequence[pathlib.Path]) -> Objects:
    """Read what is there: lists or instances, captions, synonyms, in any order.

    Raises:
        SgqlmError: a file is damaged or of another kind, or none has objects.
    """
    words = [file for file in files if file.suffix == ".txt"]
    synonyms = dict(pair for file in words for pair in _synonyms(file))
    there: dict[str, set[str]] = {}
    kinds: list[str] = []
    captions: list[tuple[str, str]] = []
    is_coco = False
    for file in files:
        if file in words:
            continue
        value = tables.load(file)
        if isinstance(value, Mapping) and isinstance(value.get("annotations"), list):
            is_coco = True
            found, texts, listed = _coco(value, file)
            captions, kinds = captions + texts, kinds + listed
        else:
            found = _lists(value, file)
        for key, names in found.items():
            there.setdefault(key, set()).update(synonyms.get(name, name) for name in names)
    if not any(there.values()):
        raise errors.SgqlmError(
            "the annotations name no object",
            where=", ".join(map(str, files)),
            fix="give {id: [objects]} or COCO's instances_val2014.json",
            code=errors.DATA,
        )
    present = (name for part in there.values() for name in sorted(part))
    looked_for = (*present, *(synonyms.get(name, name) for name in kinds))
    names = {name: name for name in looked_for} | synonyms
    known = Objects(there, {**_phrases(names), **names}, is_coco, [])
    for key, text in captions:
        if key in there:
            there[key].update(known.mentions(text))
    known.notes = _notes(len(set(names.values())), bool(words), bool(captions), is_coco)
    return known


def _notes(count: int, has_synonyms: bool, has_captions: bool, is_coco: bool) -> list[str]:
    out = [f"{count} kinds of objects are looked for; a text may name others unseen"]
    if not has_synonyms:
        out.append("without synonyms (--synonyms) only the names themselves and plurals are found")
    if is_coco and not has_captions:
        out.append("published CHAIR also takes what captions_val2014.json mentions as there")
    return out


def _phrases(names: Mapping[str, str]) -> dict[str, str]:
    """Return phrases that mean another object than their words, or none."""
    pairs = {f"{first} {second}": second for first, second in _QUALIFIED} | _WHOLE
    return {
        phrase: names.get(word, "")
        for phrase, word in pairs.items()
        if word in names or set(phrase.split()) & set(names)
    }


def _synonyms(path: pathlib.Path) -> Iterable[tuple[str, str]]:
    for line in tables.read_text(path).splitlines():
        words = [word.strip().lower() for word in line.split(",") if word.strip()]
        for word in words:
            yield word, words[0]


def _coco(
    value: Mapping, path: pathlib.Path
) -> tuple[dict[str, set[str]], list[tuple[str, str]], list[str]]:
    """Return the objects of each image, the captions, and all kinds of objects, of a COCO file."""
    rows = value["annotations"]
    tables.need(rows, ("image_id",), path)
    if rows and "caption" in rows[0]:
        tables.need(rows, ("caption",), path)
        return {}, [(str(row["image_id"]), str(row["caption"])) for row in rows], []
    tables.need(rows, ("category_id",), path)
    kinds = value.get("categories")
    if not isinstance(kinds, list):
        raise tables.damaged(path, "it has no list `categories`")
    tables.need(kinds, ("id", "name"), path)
    images = value.get("images", [])
    if not isinstance(images, list):
        raise tables.damaged(path, "`images` is no list")
    tables.need(images, ("id",), path)
    names = {str(kind["id"]): str(kind["name"]).lower() for kind in kinds}
    out: dict[str, set[str]] = {str(image["id"]): set() for image in images}
    for row in rows:
        if (kind := str(row["category_id"])) not in names:
            raise tables.damaged(path, f"there is no category {kind}")
        out.setdefault(str(row["image_id"]), set()).add(names[kind])
    return out, [], list(names.values())


def _lists(value: Any, path: pathlib.Path) -> dict[str, set[str]]:
    """Return the objects of {id: [objects]}, or of records with an id and `objects`."""
    if isinstance(value, Mapping) and "objects" in value and records.first(value, _IDS) is not None:
        value = [value]  # a file of one line
    if isinstance(value, list):
        tables.need(value, ("objects",), path)
        pairs = [(records.first(record, _IDS), record["objects"]) for record in value]
    else:
        pairs = list(value.items())
    out: dict[str, set[str]] = {}
    for key, listed in pairs:
        if key is None or not isinstance(listed, list):
            raise tables.damaged(path, f"{key or 'a record'} has no id or no list of objects")
        if str(key) in out:
            raise tables.damaged(path, f"the id {key} stands twice")
        out[str(key)] = {name for item in listed for name in _named(item, path)}
    return out


def _named(item: Any, path: pathlib.Path) -> list[str]:
    """Return the names of an object: text, or a record with `name`, or `names` as Visual Genome."""
    if isinstance(item, Mapping):
        item = item.get("names") or item.get("name")
    names = item if isinstance(item, list) else [item]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise tables.damaged(path, f"{item!r} is no name of an object")
    return [name.strip().lower() for name in names]
