"""Open Images V6 visual relationships: *annotations-vrd.csv and the class descriptions.

A row is `ImageID, LabelName1, LabelName2, XMin1, XMax1, YMin1, YMax1, XMin2, XMax2, YMin2, YMax2,
RelationshipLabel`, boxes as shares of the sides (X, X, Y, Y). Labels are machine ids that the
descriptions name. Rows with the relation `is` say an attribute: LabelName2 is one, not an object.
"""

import array
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sgqlm.data.relations import assemble, files, types

EXPECTED = "a csv with ImageID, LabelName1, LabelName2, XMin1, ..., YMax2, RelationshipLabel"
_NAMES = "a csv of machine ids and names, as /m/04yx4,Man"
_SIDES = ("XMin1", "XMax1", "YMin1", "YMax1", "XMin2", "XMax2", "YMin2", "YMax2")
_WORDS = ("ImageID", "LabelName1", "LabelName2", "RelationshipLabel")
_DESCRIPTIONS = ("*class-descriptions*.csv", "*attributes-description*.csv", "dict.csv")
_EVERY = 10000  # rows between two words of progress


def read(context: files.Context) -> Iterator[types.Annotated]:
    """Yield the images of every wanted split; boxes are shares where no image tells the size."""
    paths = files.need(context.folder, ("*annotations-vrd*.csv", "*vrd*.csv"), EXPECTED)
    names = descriptions(context.folder)
    for path in paths:
        split = _split(path)
        if context.wants(split, 0):
            yield from _read(path, split, names, context)


def descriptions(folder: pathlib.Path) -> dict[str, str]:
    """Return the names of classes, attributes and relations by machine id.

    Files come with or without a header, with or without quotes.
    """
    files.need(folder, (*_DESCRIPTIONS, "*description*.csv"), _NAMES)
    found: dict[str, str] = {}
    for pattern in (*_DESCRIPTIONS, "*description*.csv"):
        for path in files.find(folder, (pattern,)):
            for row in files.read_csv(path):
                if len(row) >= 2 and row[0].startswith("/"):  # leaves the header out
                    name = row[1].strip().replace("(made of)", "made of ")
                    found.setdefault(row[0].strip(), name)
    if not found:
        path = files.find(folder, (*_DESCRIPTIONS, "*description*.csv"))[0]
        raise files.wrong(path, _NAMES)
    return found


def _split(path: pathlib.Path) -> str:
    name = path.name.lower()
    return "val" if "validation" in name else "test" if "test" in name else "train"


class _Table:
    """The rows of a csv in little memory: numbers of words, and the sides of the boxes."""

    def __init__(self, path: pathlib.Path, context: files.Context):
        self.words: dict[str, int] = {}
        self.codes, self.sides = array.array("i"), array.array("f")
        rows = files.read_csv(path)
        header = [name.strip() for name in next(rows, [])]
        if missing := [name for name in (*_WORDS, *_SIDES) if name not in header]:
            raise files.wrong(path, EXPECTED, "without " + ", ".join(missing))
        words, sides = ([header.index(n) for n in part] for part in (_WORDS, _SIDES))
        total, done = path.stat().st_size, 0
        for number, row in enumerate(rows, 2):
            done += sum(map(len, row)) + len(row)
            if number % _EVERY == 0:
                context.progress("rows", min(done, total), total)
            try:
                values = [float(row[column]) for column in sides]
                codes = [self._code(row[column].strip()) for column in words]
            except (ValueError, IndexError):
                context.report.note("broken row", f"{path.name}:{number}: {','.join(row)[:80]}")
                continue
            self.codes.extend(codes)
            self.sides.extend(values)

    def _code(self, word: str) -> int:
        return self.words.setdefault(word, len(self.words))

    def images(
        self, progress: types.Progress
    ) -> Iterator[tuple[str, list[tuple[list[str], list[float]]]]]:
        """Yield (image id, rows) of one image after the other, in the order they first appear."""
        codes = np.array(self.codes, np.int32).reshape(-1, len(_WORDS))
        sides = np.array(self.sides, np.float32).reshape(-1, len(_SIDES))
        words = list(self.words)
        order = np.argsort(codes[:, 0], kind="stable")
        ends = np.flatnonzero(np.diff(codes[order, 0])) + 1
        split = np.split(order, ends) if len(order) else []
        for done, rows in enumerate(split, 1):
            progress("read", done, len(split))
            found = [
                ([words[code] for code in codes[row]], [round(float(s), 6) for s in sides[row]])
                for row in rows
            ]
            yield found[0][0][0], found


def _read(path, split, names, context) -> Iterator[types.Annotated]:
    folder = {"val": "validation"}.get(split, split)
    for image_id, rows in _Table(path, context).images(context.progress):
        name = f"{image_id}.jpg"
        key = context.locate((f"{folder}/{name}", name, f"images/{name}"))
        if key is None:
            continue
        size = context.size(key)
        size = size if all(size) else (1, 1)
        raw = assemble.Raw(f"image {image_id}", size)
        for words, sides in rows:
            _relation(raw, words, sides, names, context.report)
        yield assemble.assemble(raw, key, context.report, split=split, image_id=image_id)


def _relation(
    raw: assemble.Raw,
    words: Sequence[str],
    sides: Sequence[float],
    names: Mapping[str, str],
    report: types.Report,
) -> None:
    _, first, second, predicate = words
    predicate = names.get(predicate, predicate)
    for label in (first, second):
        if label.startswith("/") and label not in names:
            report.note("label without a description", f"{raw.where}: {label}")
            return
    if types.clean(predicate) == "is":
        _object(raw, first, sides[:4], names, attributes=[names.get(second, second)])
        return
    ends = [_object(raw, first, sides[:4], names), _object(raw, second, sides[4:], names)]
    raw.relations.append((ends[0], predicate, ends[1]))


def _object(raw, label, sides, names, *, attributes: Sequence[str] = ()) -> str:
    height, width = raw.size
    x0, x1, y0, y1 = sides
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    key = f"{label} {list(sides)}"  # an object has no number: its label and box say which it is
    return raw.add(key, names.get(label, label), box, attributes=attributes)
