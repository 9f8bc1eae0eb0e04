"""LLaVA json files with their image folders: reading, and a report of all that is wrong."""

import array
import collections
import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, overload

from sgqlm import errors
from sgqlm.data import decode_check, image_tree, json_stream
from sgqlm.text import rules

IMAGE = "<image>"
OPENING = "opening answer"  # the conversation begins with gpt, which is left out
NOTES = frozenset({"unique id", image_tree.RENAMED, OPENING})  # rules that cost no record
Turn = dict[str, str]
_ROLES = {"user": "human", "assistant": "gpt"}
_ASKED = {"question_id", "text", "question", "instruction", "prompt"}  # of evaluation files
_PROBED = 200  # records whose images tell the image root
_STEP = 500  # records between two calls of `progress`
Progress = Callable[[str, int, int], None]  # what, done, altogether


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample: its id, its image (resolved path and key, the path below the root), its turns."""

    id: str
    image: pathlib.Path | None
    key: str
    turns: Sequence[Turn]


class Fault(NamedTuple):
    """One broken rule of one record; `record` is its id, or empty for the file as a whole."""

    record: str
    rule: str
    message: str

    @property
    def drops(self) -> bool:
        """Whether the record cannot be used; a repeated id, for instance, is only reported."""
        return self.rule not in NOTES

    def __str__(self) -> str:
        """Return one line: record, rule, message."""
        return f"{self.record or 'file'}: {self.rule}: {self.message}"


class Excluded(NamedTuple):
    """A record that is left out on request: its id, its image, and the lists that name it."""

    record: str
    image: str
    lists: tuple[str, ...]


class Scan(NamedTuple):
    """What is in a file.

    Attributes:
        records: the usable ones.
        faults: in the order of the records.
        total: records in all; a line of a jsonl file that cannot be read counts as one.
        folders: images that were looked for, by folder.
        excluded: records left out on request, whatever their faults.
    """

    records: "Records"
    faults: list[Fault]
    total: int
    folders: Sequence[image_tree.Folder] = ()
    excluded: Sequence[Excluded] = ()


class Records(Sequence[Record]):
    """Records of a file, read from it when they are asked for; only their places are kept.

    So a file of a gigabyte takes some tens of megabytes of memory. Picklable.
    """

    def __init__(self, file: pathlib.Path, root: pathlib.Path):
        """Start without records; `root` is the resolved image folder."""
        self.file, self.root = file, root
        self._stamp = _stamp(file)
        self._spans, self._numbers = array.array("q"), array.array("q")
        self._keys: list[str] = []

    def add(self, number: int, entry: json_stream.Entry, key: str) -> None:
        """Append record `number` of the file; `key` is that of its image, or empty."""
        self._spans.extend((entry.start, entry.end))
        self._numbers.append(number)
        self._keys.append(key)

    def keys(self) -> list[str]:
        """Return the image key of every record, empty without an image."""
        return self._keys

    def pick(self, wanted: Iterable[int]) -> "Records":
        """Return the records at these positions."""
        found = Records(self.file, self.root)
        for at in wanted:
            found._spans.extend(self._spans[2 * at : 2 * at + 2])
            found._numbers.append(self._numbers[at])
            found._keys.append(self._keys[at])
        return found

    def name(self, at: int) -> tuple[int, str]:
        """Return the number in the file and the name of the record at a position."""
        with self._open() as file:
            return self._numbers[at], self._read(file, at).id

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index):
        """Read one record, or a list of them for a slice."""
        wanted = range(len(self))[index]
        with self._open() as file:
            if isinstance(wanted, range):
                return [self._read(file, at) for at in wanted]
            return self._read(file, wanted)

    def __iter__(self) -> Iterator[Record]:
        """Read all records in order."""
        if not len(self):
            return
        with self._open() as file:
            for at in range(len(self)):
                yield self._read(file, at)

    def _open(self) -> BinaryIO:
        if _stamp(self.file) != self._stamp:
            raise errors.SgqlmError(
                "the json was changed while it was in use",
                where=str(self.file),
                fix="start again",
                code=errors.DATA,
            )
        return self.file.open("rb")

    def _read(self, file: BinaryIO, at: int) -> Record:
        entry = json_stream.read_at(file, self._spans[2 * at], self._spans[2 * at + 1])
        turns = entry.get("conversations")
        key, turns = self._keys[at], _turns(turns)[0] if isinstance(turns, list) else []
        name = image_tree.shown(_id(entry, self._numbers[at]))
        return Record(name, self.root / key if key else None, key, turns)


def find(path: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
    """Find the json file and the image root a user means.

    Args:
        path: a LLaVA json (or jsonl) file, or a folder with exactly one.

    Returns:
        The json file, and its folder or the `images` folder beside it, if there is one.

    Raises:
        SgqlmError: there is none, or more than one.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl"))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise errors.SgqlmError(
                "a folder of photographs needs exactly one LLaVA json",
                where=str(path),
                why=f"found: {names}",
                fix="name the json file itself",
                code=errors.DATA,
            )
        path = found[0]
    elif not path.is_file():
        raise errors.SgqlmError(
            "there is no LLaVA json", where=str(path), fix="correct the path", code=errors.DATA
        )
    root = path.parent / "images"
    return path, root if root.is_dir() else path.parent


def probe(
    json_file: pathlib.Path, roots: Sequence[pathlib.Path], *, follow_links: bool = False
) -> pathlib.Path:
    """Return the folder below which most of the first images of a json lie.

    Args:
        json_file: the file.
        roots: existing folders to choose from; the first wins a tie.
        follow_links: as for `examine`.
    """
    found = (entry.value for entry in json_stream.entries(json_file) if not entry.problem)
    names = (_image(value)[0] for value in found if isinstance(value, dict))
    first = list(itertools.islice((name for name in names if name), _PROBED))
    trees = [image_tree.Tree(root, follow_links=follow_links) for root in roots]
    hits = [sum(bool(tree.locate(name).key) for name in first) for tree in trees]
    return roots[hits.index(max(hits))]


def read(json_file: str | os.PathLike, image_root: str | os.PathLike) -> Records:
    """Read all records of a file whose json, turns and image paths are right.

    Raises:
        SgqlmError: there is a fault; the message lists the first 20. Images are not decoded.
    """
    scan = examine(json_file, image_root, decode=False)
    refuse([fault for fault in scan.faults if fault.drops], str(json_file))
    return scan.records


def check(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    template: str = "v1_sq",
    progress: Progress | None = None,
) -> list[Fault]:
    """List every fault of a file and its images; see `examine`."""
    return examine(json_file, image_root, template=template, progress=progress).faults


def examine(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    template: str = "v1_sq",
    decode: bool = True,
    workers: int = 1,
    follow_links: bool = False,
    exclude: Callable[[str], tuple[str, ...]] | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Read a file as far as it can be read.

    Rules of this layer: `json`, `record shape`, `unique id`, `image inside root`, `image exists`,
    `image suffix`, `image decodes`, `image has <image>`, `<image> has image`, `one <image>`,
    `opening answer`; those of the turns (roles, order, empty text, ...) are in `text.rules`.
    What the published files have and is read without a fault: an absent, null or empty `image`, a
    list of one image, numbers as ids, roles `user` and `assistant`, further entries.

    Args:
        json_file: a list of `{"id", "image", "conversations"}`, or one such object a line (jsonl).
        image_root: folder that image paths start from and may not leave, also not by a link.
        template: conversation format that the turns have to fit.
        decode: also decode every image.
        workers: processes that decode.
        follow_links: allow links out of the image folder.
        exclude: gives the lists that ask for an image to be left out.
        progress: called with (what, done, altogether): bytes read, then images decoded.

    Returns:
        Usable records in order, faults in order, number of records.
    """
    json_file = pathlib.Path(json_file)
    reader = _Reader(json_file, image_root, template, exclude, follow_links=follow_links)
    reader.read(progress)
    if decode:
        reader.decode(workers, progress)
    return reader.scan()


class _Reader:
    """The work of `examine`: one pass over the file, then one over the images."""

    def __init__(self, file, root, template, exclude, *, follow_links: bool):
        self._tree = image_tree.Tree(root, follow_links=follow_links)
        self._file, self._template, self._exclude = file, template, exclude
        self._entries = Records(file, self._tree.root)
        self._bad: set[int] = set()  # positions among the entries
        self._faults: list[tuple[int, Fault]] = []
        self._ids: dict[str, int] = {}  # number of the first record; -1 once it was reported
        self._excluded: list[Excluded] = []
        self._total, self._is_broken = 0, False
        self._foreign: collections.Counter[tuple[str, ...]] = collections.Counter()

    def read(self, progress: Progress | None) -> None:
        """Read every record."""
        size = self._file.stat().st_size if self._file.is_file() else 0
        for number, entry in enumerate(json_stream.entries(self._file)):
            if entry.problem:
                self._is_broken |= entry.is_last
                fault = _foreign_object(entry.value) or Fault("", "json", entry.problem)
                self._faults.append((number, fault))
                self._total += not entry.is_last
                continue
            self._total += 1
            self._add(number, entry)
            if progress and number % _STEP == 0:
                progress("read", entry.end, size)
        if progress:
            progress("read", size, size)

    def decode(self, workers: int, progress: Progress | None) -> None:
        """Decode every image once; a fault of an image is one of all its records."""
        keys = list(dict.fromkeys(key for key in self._entries.keys() if key))  # noqa: SIM118
        problems = decode_check.problems(
            [self._tree.root / key for key in keys], workers=workers, progress=progress
        )
        if not problems:
            return
        broken = {keys[at]: problem for at, problem in problems.items()}
        for at, key in enumerate(self._entries.keys()):
            if key in broken:
                number, name = self._entries.name(at)
                self._faults.append((number, Fault(name, "image decodes", broken[key])))
                self._bad.add(at)

    def scan(self) -> Scan:
        """Return what was found."""
        faults = [fault for _, fault in sorted(self._faults, key=lambda pair: pair[0])]
        good = (at for at in range(len(self._entries)) if at not in self._bad)
        if self._foreign and self._foreign.total() == self._total:
            faults, good = [_foreign_fault(self._foreign.most_common(1)[0][0])], ()
        if self._is_broken:  # what follows is unknown, so this is not the whole data set
            good = ()
        records = self._entries.pick(good)
        return Scan(records, faults, self._total, self._tree.folders(), self._excluded)

    def _add(self, number: int, entry: json_stream.Entry) -> None:
        value = entry.value
        name = image_tree.shown(_id(value, number))
        image, problem = _image(value)
        if self._is_excluded(name, image):
            return
        faults = [] if isinstance(value, dict) else [_shape(name, value, "an object")]
        key, turns = "", value.get("conversations") if isinstance(value, dict) else None
        if problem:
            faults.append(Fault(name, "record shape", problem))
        elif image is not None:
            place = self._tree.locate(image)
            key = place.key
            faults += [Fault(name, place.rule, place.message)] if place.rule else []
        if isinstance(turns, list):
            has_image = image is not None or bool(problem)
            faults += _turn_faults(name, turns, self._template, has_image)
        elif isinstance(value, dict):
            faults.append(_no_turns(name, value))
            self._foreign[tuple(map(str, value))] += not {"conversations"} & set(value)
        faults += self._repeated(value, name, number)
        self._faults += [(number, fault) for fault in faults]
        if any(fault.drops for fault in faults):
            self._bad.add(len(self._entries))
        self._entries.add(number, entry, key)

    def _is_excluded(self, name: str, image: str | None) -> bool:
        lists = self._exclude(image) if self._exclude and image else ()
        if lists:
            self._excluded.append(Excluded(name, image_tree.shown(image or ""), lists))
        return bool(lists)

    def _repeated(self, value: Any, name: str, number: int) -> Iterator[Fault]:
        first = self._ids.setdefault(_id(value, number), number)
        if 0 <= first < number:
            self._ids[_id(value, number)] = -1
            yield Fault(name, "unique id", f"records #{first} and #{number} have it")


def refuse(faults: Sequence[Fault], where: str, *, shown: int = 20) -> None:
    """Raise for faults, if there are any, naming the first of them.

    Raises:
        SgqlmError: with exit code `DATA`.
    """
    if not faults:
        return
    counts = collections.Counter(fault.rule for fault in faults)
    lines = [str(fault) for fault in faults[:shown]]
    if len(faults) > shown:
        lines.append(f"... and {len(faults) - shown} more")
    raise errors.SgqlmError(
        f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'} in the data: "
        + ", ".join(f"{rule} ({count})" for rule, count in counts.most_common()),
        where=where,
        why="\n    ".join(lines),
        fix="correct or remove these records; `sgqlm data check` lists all",
        code=errors.DATA,
    )


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        found = file.stat()
        return found.st_size, found.st_mtime_ns
    return 0, 0


def _id(entry: Any, index: int) -> str:
    given = entry.get("id") if isinstance(entry, dict) else None
    return str(given) if given not in (None, "") else f"#{index}"


def _image(entry: Any) -> tuple[str | None, str]:
    """Return the image path of an entry, None without one, and what is wrong with it."""
    image = entry.get("image") if isinstance(entry, dict) else None
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is None or image == "":
        return None, ""
    if isinstance(image, list):
        return None, f"`image` is not one path but a list of {len(image)}"
    return (image, "") if isinstance(image, str) else (None, "`image` is not one path")


def _turns(turns: list[Any]) -> tuple[list[Any], bool]:
    """Return turns with the roles of LLaVA, and whether an opening answer was left out.

    Upstream leaves an opening gpt message out as well (its `vicuna_v1`).
    """
    found = [
        {"from": _ROLES.get(turn["from"], turn["from"]), "value": turn.get("value")}
        if isinstance(turn, dict) and isinstance(turn.get("from"), str)
        else turn
        for turn in turns
    ]
    whose = [turn.get("from") if isinstance(turn, dict) else None for turn in found[:3]]
    opens = whose == ["gpt", "human", "gpt"]
    return (found[1:] if opens else found), opens


def _shape(name: str, value: Any, wanted: str) -> Fault:
    return Fault(name, "record shape", f"it is {json_stream.kind(value)}, not {wanted}")


def _no_turns(name: str, entry: dict) -> Fault:
    kind = f"is {json_stream.kind(entry.get('conversations'))}, not a list"
    problem = kind if "conversations" in entry else "is missing"
    return Fault(name, "record shape", f"`conversations` {problem}")


def _foreign_object(value: Any) -> Fault | None:
    """Return the fault of questions in an object, such as those of GQA (by id) and of VQAv2."""
    if not isinstance(value, dict):
        return None
    rows = next((value[k] for k in ("questions", "annotations", "data") if k in value), value)
    rows = list(rows.values()) if isinstance(rows, dict) else rows
    first = rows[0] if isinstance(rows, list) and rows else None
    if not isinstance(first, dict) or "conversations" in first or not _ASKED & set(first):
        return None
    return _foreign_fault(tuple(map(str, first)))


def _foreign_fault(keys: tuple[str, ...]) -> Fault:
    """Return the fault of a file of which no record has conversations."""
    message = f"no record has `conversations`; they have {', '.join(keys[:8])}"
    if _ASKED & set(keys):
        message += ": a file of questions or answers, of an evaluation for instance, and not of "
        message += "training conversations"
    return Fault("", "record shape", message)


def _turn_faults(name: str, turns: list, template: str, has_image: bool) -> list[Fault]:
    turns, opens = _turns(turns)
    found = [
        Fault(name, f.rule, f.message if f.turn is None else f"turn {f.turn}: {f.message}")
        for f in rules.faults(turns, template=template, has_image=has_image)
        if f.rule != "image placeholder"
    ]
    if not any(fault.rule == "turn shape" for fault in found):
        found += [Fault(name, *problem) for problem in _placeholder_faults(turns, has_image)]
        found += [Fault(name, "no empty text", problem) for problem in _blank_faults(turns)]
    if opens:
        found.append(Fault(name, OPENING, "it begins with gpt; that turn is left out"))
    return found


def _blank_faults(turns: Iterable[Turn]) -> Iterator[str]:
    """Yield turns of blanks alone, which `rules` takes since they have right labels."""
    for index, turn in enumerate(turns):
        if turn["value"] and not turn["value"].strip():
            yield f"turn {index}: the text is blanks alone"


def _placeholder_faults(turns: Iterable[Turn], has_image: bool) -> Iterator[tuple[str, str]]:
    holders = [
        (index, turn["from"])
        for index, turn in enumerate(turns)
        for _ in range(turn["value"].count(IMAGE))
    ]
    if not has_image and holders:
        yield "<image> has image", f"turn {holders[0][0]}: {IMAGE} in a record without image"
    if has_image and not holders:
        yield "image has <image>", f"no turn has {IMAGE}"
    if has_image and len(holders) > 1:
        yield "one <image>", f"{IMAGE} stands {len(holders)} times"
    if has_image and any(who == "gpt" for _, who in holders):
        yield "one <image>", f"{IMAGE} in an answer"
