"""Images of evaluation sets, which training has to leave out: lists of them, and what they match.

An image is known by a space and a number in it, however its file is called: the validation image
`COCO_val2014_000000310196.jpg` and the training image `coco/train2017/000000310196.jpg` are both
310196 of COCO, whose numbers are the same in all of its releases. GQA takes its images from Visual
Genome, half of which is COCO; VG's `image_data.json` says which.
"""

import csv
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sgqlm import errors

SPACES = ("coco", "vg", "gqa", "flickr", "openimages", "scienceqa", "vizwiz", "any")
ANY = ""  # the space of a number that does not tell where it belongs
FILE = "file"  # a file name, or the end of a path, of which nothing more is known

_COCO = re.compile(r"^COCO_(?:train|val|test)\d{4}_0*(\d+)$")
_VIZWIZ = re.compile(r"^VizWiz_(train|val|test)_0*(\d+)$")
_SAM = re.compile(r"^sa_(\d+)$")
_LCS = re.compile(r"(?:^|/)\d{5}/\d{9}$")
_SCIENCE = re.compile(r"(?:^|/)(\d+)/(?:image|choice_\d+)$")
_FLICKR_URL = re.compile(r"static\.?flickr\.com/(?:\d+/)*(\d+)_")
_FOLDERS = (  # names of folders, and the space of what lies in them
    (re.compile(r"(coco|mscoco).*|(train|val|test)(2014|2015|2017)"), "coco"),
    (re.compile(r"vg(\d*|[_-].*)|visual[_-]?genome.*|gqa.*"), "vg"),
    (re.compile(r"flickr.*"), "flickr"),
    (re.compile(r"scienceqa.*"), "scienceqa"),
    (re.compile(r"ocr_?vqa.*"), "ocr_vqa"),
    (re.compile(r"sam|web-celebrity|web-landmark|wikiart"), "other"),
)
_HINTS = (  # words in the path of a list, and the space of bare numbers in it
    ("vizwiz", "vizwiz"),
    ("flickr", "flickr"),
    ("gqa", "vg"),
    ("visual_genome", "vg"),
    ("vg", "vg"),
    ("scienceqa", "scienceqa"),
    ("pid_splits", "scienceqa"),
    ("textvqa", "openimages"),
    ("open_images", "openimages"),
    ("openimages", "openimages"),
    ("nocaps", "openimages"),
    ("coco", "coco"),
    ("pope", "coco"),
    ("vqa", "coco"),
    ("caption", "coco"),
)
_PATHS = ("image", "image_path", "img_path", "file_name", "filename", "imagename", "img_name")
_URLS = ("url", "image_url", "coco_url", "flickr_url", "flickr_original_url", "flickr_300k_url")
_NUMBERS = {  # entries that name an image by number, and the space; None: that of the list
    "image_id": None,
    "img_id": None,
    "imageId": "vg",
    "coco_id": "coco",
    "cocoid": "coco",
    "coco_image_id": "coco",
    "vg_image_id": "vg",
    "flickr_id": "flickr",
    "open_images_id": "openimages",
    "ImageID": "openimages",
}
_TRAIN = {"train", "restval", "trainval", "minitrain"}
_CONTAINERS = ("images", "questions", "data", "annotations")


class Name(NamedTuple):
    """One image: its space and its number (or name) there."""

    space: str
    number: str


class List(NamedTuple):
    """A list of images to leave out.

    Attributes:
        label: its file, for messages.
        names: every name of every image in it.
        count: images.
        same: names that mean one image each, of a table such as VG's `image_data.json`, which
            leaves nothing out by itself.
    """

    label: str
    names: frozenset[Name]
    count: int
    same: Sequence[tuple[Name, ...]] = ()


def identify(path: str, hint: str = ANY) -> Name:
    """Return what image a path or a file name means.

    Examples: `coco/train2017/000000033471.jpg` is `coco 33471`, `vg/VG_100K_2/2397582.jpg` is
    `vg 2397582`, `n161313` is `gqa n161313`, `textvqa/train_images/003a8ae2ef43b901.jpg` is
    `openimages 003a8ae2ef43b901`.

    Args:
        path: as a json, a list or a folder has it; the suffix does not matter.
        hint: the space of a name that does not tell its own.
    """
    whole = _without_suffix(path)
    *folders, stem = whole.split("/")
    if found := _by_pattern(whole, stem):
        return found
    is_number = stem.isascii() and stem.isdecimal()
    number = str(int(stem)) if is_number else stem.lower()
    for folder in reversed(folders):
        for pattern, space in _FOLDERS:
            if pattern.fullmatch(folder.lower()) and (is_number or space in ("ocr_vqa", "other")):
                return Name(space, number if space != "other" else f"{folder.lower()}/{number}")
    if re.fullmatch(r"\d{12}", stem):
        return Name("coco", number)
    return Name(hint if is_number else ANY, number)


def load(source: str | os.PathLike) -> List:
    """Read a list of images in the form its makers publish it.

    Known are question files of VQAv2, GQA, TextVQA, VizWiz, POPE, ScienceQA, LLaVA's question
    files, annotations of COCO and what builds on it, ids of Flickr30k, scene graphs and splits of
    Visual Genome, splits of Karpathy and of PSG, tables with a column of images, and plain text
    with one image a line. Of a file with splits, all but the training part count.

    Args:
        source: a file, or `SPACE=FILE` where the numbers in it do not tell what they count.

    Raises:
        SgqlmError: the file cannot be read, or names no image.
    """
    text, space = os.fspath(source), ""
    head, _, tail = text.partition("=")
    if tail and not pathlib.Path(text).exists():
        if head not in SPACES:
            known = ", ".join(SPACES)
            raise _problem(f"there is no space {head!r}", text, "", f"known: {known}")
        text, space = tail, head
    path = pathlib.Path(text)
    try:
        content = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise _problem("the list cannot be read", text, why, "give another file") from error
    hint = _hint(path) if not space else ANY if space == "any" else space
    rows = list(_rows(content, hint))
    same = [names for names, is_same in rows if is_same]
    images = {names for names, is_same in rows if names and not is_same}
    if not images and not same:
        why = "no entry is an image path or number (answers, for instance, name questions only)"
        fix = "give the question or annotation file of the set"
        raise _problem("the list names no image", text, why, fix)
    found = frozenset(name for names in images for name in names)
    if found and all(name.space == "vizwiz" and name.number.isdecimal() for name in found):
        why = "VizWiz numbers its images once in each split"
        fix = "give the annotation file with `images`, or the question file"
        raise _problem("the numbers in the list do not tell the image files", text, why, fix)
    return List(text, found, len(images), same)


class Leaks:
    """Lists joined: which of them ask for an image to be left out."""

    def __init__(self, lists: Sequence[List], root: str | os.PathLike = ""):
        """Join lists.

        Args:
            lists: what is to be left out; tables of equal images extend all of them.
            root: folder that the keys start from, whose name may tell what they are.
        """
        self._labels = [found.label for found in lists]
        self.used: set[str] = set()  # lists that were a reason
        self._root = pathlib.Path(root).name
        self._known: dict[str, dict[str, set[int]]] = {}  # number: space: lists
        for at, found in enumerate(lists):
            for name in found.names:
                self._add(name, at)
        for found in lists:
            for names in found.same:
                wanted = {at for name in names for at in self._lists(name)}
                for name in names:
                    for at in wanted:
                        self._add(name, at)

    def find(self, key: str) -> tuple[str, ...]:
        """Return the lists that an image is on, by its path below the image root."""
        path = f"{self._root}/{key}" if self._root else key
        name = identify(path)
        found = self._lists(name)
        if name.space == ANY:
            parts = _without_suffix(path).lower().split("/")
            for at in range(len(parts)):
                found |= self._known.get("/".join(parts[at:]), {}).get(FILE, set())
        return tuple(self._labels[at] for at in sorted(found))

    def reason(self, key: str, image_id: str = "") -> str | None:
        """Return why an image is left out, or None.

        Args:
            key: path below the image root.
            image_id: how the data set calls it, where the path does not tell.
        """
        found = self.find(key)
        if not found and image_id and identify(key).space == ANY:
            found = self.find(image_id)
        self.used.update(found)
        return f"in {', '.join(found)}" if found else None

    def _add(self, name: Name, at: int) -> None:
        self._known.setdefault(name.number, {}).setdefault(name.space, set()).add(at)

    def _lists(self, name: Name) -> set[int]:
        spaces = self._known.get(name.number, {})
        if name.space == ANY:  # the number alone decides
            return set().union(*(found for space, found in spaces.items() if space != FILE))
        return spaces.get(name.space, set()) | spaces.get(ANY, set())


def _without_suffix(path: str) -> str:
    return re.sub(r"\.[A-Za-z]{3,4}$", "", path.strip().replace("\\", "/"))


def _listed(text: str, hint: str) -> Name:
    """Return what an entry of a list means: an image of a space, a number, or the end of a path.

    A file that is called by a short number alone, such as `0001.png`, is not the image of this
    number in every space.
    """
    name, whole = identify(text, hint), _without_suffix(text)
    if name.space != ANY or re.fullmatch(r"[1-9]\d{4,}", whole) or text == name.number:
        is_file = name.space == ANY and not name.number.isdecimal()
        return Name(FILE, whole.lower()) if is_file else name
    return Name(FILE, whole.lower())


def _by_pattern(path: str, stem: str) -> Name | None:
    """Return the image of a name that tells its space by its form."""
    if match := _COCO.match(stem):
        return Name("coco", match[1])
    if match := _VIZWIZ.match(stem):
        return Name("vizwiz", f"{match[1]}_{match[2]}")
    if match := _SAM.match(stem):
        return Name("sam", match[1])
    if _LCS.search(path):
        return Name("lcs", str(int(stem)))
    if match := _SCIENCE.search(path):
        return Name("scienceqa", match[1])
    if re.fullmatch(r"n\d+", stem):
        return Name("gqa", stem)
    if re.fullmatch(r"[0-9a-f]{16}", stem):
        return Name("openimages", stem)
    return None


def _hint(path: pathlib.Path) -> str:
    text = "/".join(path.absolute().parts[-2:]).lower()
    for word, space in _HINTS:
        if re.search(rf"(?:^|[^a-z]){word}" if word == "vg" else word, text):
            return space
    return ANY


def _rows(content: str, hint: str) -> Iterator[tuple[tuple[Name, ...], bool]]:
    """Yield the names of each image of a list, and whether they only say that they are the same."""
    if content.lstrip()[:1] not in ("{", "["):
        yield from ((names, False) for names in _table(content, hint))
        return
    try:
        values = [json.loads(content)]
    except ValueError:
        try:
            values = [[json.loads(line) for line in content.split("\n") if line.strip()]]
        except ValueError as error:
            why = f"neither json nor one json a line: {error}"
            raise _problem(
                "the list cannot be read", "--exclude", why, "correct the file"
            ) from None
    for value in values:
        for row in _entries(value, hint):
            names = tuple(dict.fromkeys(_names(row, hint)))
            yield names, _is_table(row)


def _entries(value: Any, hint: str) -> Iterator[Any]:
    """Yield what stands for an image in a json: rows, numbers or names."""
    if isinstance(value, list):
        yield from value
    elif not isinstance(value, dict):
        return
    elif any(isinstance(value.get(field), int | str) for field in (*_PATHS, *_NUMBERS)):
        yield value  # a file of one line
    elif "test_image_ids" in value and isinstance(value.get("data"), list):  # PSG
        wanted = set(map(str, value["test_image_ids"]))
        yield from (row for row in value["data"] if str(row.get("image_id")) in wanted)
    elif found := next((value[k] for k in _CONTAINERS if isinstance(value.get(k), list)), None):
        yield from found
    elif value and all(isinstance(part, list) for part in value.values()):  # splits
        for split, part in value.items():
            yield from () if split in _TRAIN else part
    else:
        yield from _by_key(value, hint)


def _by_key(value: Mapping[str, Any], hint: str) -> Iterator[Any]:
    """Yield the rows of a json whose keys are ids: of images, questions or problems."""
    for key, row in value.items():
        if not isinstance(row, dict) or row.get("split") in _TRAIN:
            continue
        if "objects" in row and "width" in row:  # GQA's scene graphs
            yield {"imageId": key}
        elif "choices" in row:  # ScienceQA's problems; those without image are text only
            yield {"image": f"{key}/image"} if row.get("image") else {}
        else:
            yield row


def _names(row: Any, hint: str) -> Iterator[Name]:
    if isinstance(row, bool) or row is None:
        return
    if isinstance(row, int | str):
        yield _listed(str(row), hint)
        return
    if not isinstance(row, dict) or row.get("split") in _TRAIN:
        return
    for field in _PATHS:
        value = row.get(field)
        parts = value if isinstance(value, list) else [value]
        yield from (_listed(part, hint) for part in parts if isinstance(part, str) and part)
    for field in _URLS:
        yield from _from_url(row.get(field))
    of_vg = {"relationships", "attributes", "regions", "objects"} & set(row) or _is_table(row)
    for field, space in _NUMBERS.items():
        value = row.get(field)
        if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
            yield _listed(str(value), space or ("vg" if of_vg else hint))


def _is_table(row: Any) -> bool:
    """Tell whether a row is one of VG's `image_data.json`."""
    return isinstance(row, dict) and {"image_id", "coco_id", "flickr_id"} <= set(row)


def _from_url(url: Any) -> Iterator[Name]:
    if not isinstance(url, str):
        return
    if match := _FLICKR_URL.search(url):
        yield Name("flickr", match[1])
    elif "VG_100K" in url or "cocodataset.org" in url:
        yield identify(url.split("://")[-1])


def _table(content: str, hint: str) -> Iterator[tuple[Name, ...]]:
    """Yield the images of a table with a head, or of one image a line."""
    lines = [line for line in content.splitlines() if line.strip()]
    mark = "\t" if lines and "\t" in lines[0] else ","
    fields = (*_PATHS, *_NUMBERS)
    if lines and set(lines[0].strip().split(mark)) & set(fields):
        for row in csv.DictReader(lines, delimiter=mark):
            yield tuple(dict.fromkeys(_names(row, hint)))
        return
    head = lines[0].split(mark) if lines else []
    if len(head) > 1 and not any(char.isdigit() for char in lines[0]):
        return  # a table without a column of images
    for line in lines:
        is_file = re.fullmatch(r"[^\t]+\.(jpe?g|png|gif|webp|bmp)", line.strip(), re.IGNORECASE)
        name = line.strip() if is_file else re.split(r"[\t,]|#\d", line.strip())[0]
        if name and not name.startswith("#"):
            yield (_listed(name, hint),)


def _problem(what: str, where: str, why: str, fix: str) -> errors.SgqlmError:
    return errors.SgqlmError(what, where=where, why=why, fix=fix, code=errors.DATA)


def load_all(sources: Iterable[str | os.PathLike]) -> list[List]:
    """Read several lists; see `load`."""
    return [load(source) for source in sources]
