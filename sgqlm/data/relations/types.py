"""What every reader of relation data gives: objects, relations, annotated images, a report."""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

from sgqlm.data import graphs

Box = tuple[float, float, float, float]
Progress = Callable[[str, int, int], None]  # what, done, altogether
SHOWN = 20  # examples of each reason that a report keeps


@dataclasses.dataclass(frozen=True)
class Object:
    """One annotated object.

    Attributes:
        name: what it is, in lower case.
        box: x0, y0, x1, y1 in pixels of `Annotated.size`.
        attributes: what is said about it, such as `red`.
        mask: COCO run-length code at the size of the image, where the data set has masks.
    """

    name: str
    box: Box
    attributes: Sequence[str] = ()
    mask: graphs.Rle | None = None


@dataclasses.dataclass(frozen=True)
class Relation:
    """`objects[subject]` is in the relation `predicate` to `objects[object]`."""

    subject: int
    predicate: str
    object: int


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One image with its scene graph.

    Attributes:
        key: path of the image below the image root.
        size: (height, width) that the boxes are measured in: that of the image, (1, 1) for shares
            of its sides, or (0, 0) where only the image itself can tell.
        objects: in the order of the file.
        relations: between them, in the order of the file.
        split: `train`, `val` or `test`.
        image_id: how the data set calls the image.
        caption: a sentence about the image, where the data set has one.
        fault: why the image cannot be used, as its annotations tell; empty if they do not.
    """

    key: str
    size: tuple[int, int]
    objects: Sequence[Object]
    relations: Sequence[Relation]
    split: str = "train"
    image_id: str = ""
    caption: str = ""
    fault: str = ""


class Report:
    """Counts what is odd about a data set, with a few examples of each reason.

    Faults are images that cannot be used and should be there; everything else is a note: an
    annotation that was repaired or left out. Official files are full of the second kind.

    Attributes:
        notes: count by reason.
        faults: count by reason.
        examples: some of each reason.
        watch: called after every fault; may raise to give up.
        splits: images by split, wanted or not; 0 where a whole file was passed over.
    """

    def __init__(self, *, keeps_all: bool = False):
        """Start with nothing counted; `keeps_all`: keep every example."""
        self.notes: collections.Counter[str] = collections.Counter()
        self.faults: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, list[str]] = {}
        self.watch: Callable[[], None] = lambda: None
        self.splits: collections.Counter[str] = collections.Counter()
        self._keeps_all = keeps_all

    def note(self, reason: str, example: str, count: int = 1) -> None:
        """Count an annotation that was repaired or left out."""
        self._count(self.notes, reason, example, count)

    def fault(self, reason: str, example: str) -> None:
        """Count an image that cannot be used."""
        self._count(self.faults, reason, example, 1)
        self.watch()

    def _count(self, counts, reason, example, count) -> None:
        counts[reason] += count
        kept = self.examples.setdefault(reason, [])
        if self._keeps_all or len(kept) < SHOWN:
            kept.append(example)

    def lines(self, *, shown: int = 3) -> list[str]:
        """Return one line a reason, faults first: `12 x reason: example; example`."""
        found = []
        for counts in (self.faults, self.notes):
            for reason, count in counts.most_common():
                examples = "; ".join(self.examples[reason][:shown])
                found.append(f"{count} x {reason}: {examples}")
        return found


def clean(text: object) -> str:
    """Return a name or predicate in one form: lower case, single spaces, no edge punctuation."""
    words = str(text).replace("_", " ").lower().split() if text is not None else []
    return re.sub(r"^[\s.,;:!?]+|[\s.,;:!?]+$", "", " ".join(words))
