"""VG150: VG-SGG-with-attri.h5, its dictionaries and image_data.json of Visual Genome.

Row i of the arrays is the i-th image of image_data.json, less the four files that are damaged in
Visual Genome. `boxes_1024` are centre x, centre y, width, height with the longest side of the image
at 1024; labels, predicates and attributes count from 1; `img_to_last_*` are inclusive; -1: none.
Official `split`: 0 train, 2 test; the first 5000 train images with relations are used for
validation (Zellers et al., Neural Motifs, 2018), which is followed where there are as many.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sgqlm import errors
from sgqlm.data.relations import assemble, files, types, visual_genome

EXPECTED = "VG-SGG(-with-attri).h5 with boxes_1024, labels, relationships, predicates, split"
DICTS = 'dictionaries with "idx_to_label" and "idx_to_predicate"'
DAMAGED = ("1592", "1722", "4616", "4617")
NUM_VAL = 5000
_LONGEST = 1024
_ARRAYS = (
    "boxes_1024", "labels", "relationships", "predicates", "split",
    "img_to_first_box", "img_to_last_box", "img_to_first_rel", "img_to_last_rel",
)  # fmt: skip


def read(context: files.Context) -> Iterator[types.Annotated]:
    """Yield the images of VG150."""
    folder = context.folder
    path = files.need_one(folder, ("VG-SGG-with-attri.h5", "VG-SGG.h5", "*.h5"), EXPECTED)
    words = dictionaries(folder)
    files.need(folder, ("image_data.json",), "names and sizes of the images of Visual Genome")
    pictures = visual_genome.image_data(context)
    arrays = _load(path)
    ids = _images(list(pictures), len(arrays["split"]), folder)
    splits = _splits(arrays)
    for row, image_id in enumerate(ids):
        context.progress("read", row + 1, len(ids))
        split = splits[row]
        if not split or not context.wants(split):
            continue
        picture = pictures[image_id]
        key = context.locate(visual_genome.image_paths(image_id, picture))
        if key is None:
            continue
        raw = assemble.Raw(f"image {image_id}", picture.size)
        _fill(raw, arrays, row, words, context.report)
        yield assemble.assemble(raw, key, context.report, split=split, image_id=image_id)


def dictionaries(folder: pathlib.Path) -> dict[str, list[str]]:
    """Return the names of labels, predicates and attributes by their number; number 0 is unused.

    Raises:
        SgqlmError: there is no file with them.
    """
    patterns = ("VG-SGG-dicts-with-attri.json", "VG-SGG-dicts.json", "*dicts*.json")
    path = files.need_one(folder, patterns, DICTS)
    value, found = files.load_json(path, DICTS), {}
    for name in ("label", "predicate", "attribute"):
        table = value.get(f"idx_to_{name}", {} if name == "attribute" else None)
        try:
            numbers = {int(number): str(word) for number, word in table.items()}
        except (AttributeError, ValueError) as error:
            raise files.wrong(path, DICTS, f"idx_to_{name} is missing or no table") from error
        found[name] = [numbers.get(i, "") for i in range(max(numbers, default=0) + 1)]
    return found


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise errors.SgqlmError(
            "reading VG150 needs h5py", fix="pip install -e '.[relations]' in the clone"
        ) from error
    try:
        with h5py.File(path) as file:
            names = [*_ARRAYS, *(["attributes"] if "attributes" in file else [])]
            found: dict[str, Any] = {name: file[name] for name in names if name in file}
            if missing := [name for name in _ARRAYS if name not in found]:
                raise files.wrong(path, EXPECTED, "without " + ", ".join(missing))
            return {name: np.asarray(values[()]) for name, values in found.items()}
    except OSError as error:
        raise files.wrong(path, EXPECTED, str(error)) from error


def _images(ids: list[str], rows: int, folder: pathlib.Path) -> list[str]:
    """Return the image id of each row."""
    whole = [image_id for image_id in ids if image_id not in DAMAGED]
    for found in (whole, ids):
        if len(found) == rows:
            return found
    raise errors.SgqlmError(
        "image_data.json is of another version than the h5 file",
        where=str(folder),
        why=f"{len(ids)} images ({len(whole)} without the damaged ones) for {rows} rows",
        fix="take image_data.json of Visual Genome 1.4 (108077 images) for 108073 rows",
        code=errors.DATA,
    )


def _splits(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return `train`, `val` or `test` by row; empty for images without boxes."""
    official, has_box = arrays["split"].reshape(-1), arrays["img_to_first_box"].reshape(-1) >= 0
    names = np.where(official == 2, "test", np.where(official == 1, "val", "train")).astype("<U5")
    names[~has_box] = ""
    related = (names == "train") & (arrays["img_to_first_rel"].reshape(-1) >= 0)
    if related.sum() > NUM_VAL and not (names == "val").any():
        names[np.flatnonzero(related)[:NUM_VAL]] = "val"
    return names.tolist()


def _fill(raw: assemble.Raw, arrays, row: int, words, report: types.Report) -> None:
    height, width = raw.size
    first, last = (int(arrays[f"img_to_{end}_box"].reshape(-1)[row]) for end in ("first", "last"))
    scale = max(height, width) / _LONGEST
    for index in range(first, last + 1):
        x, y, w, h = arrays["boxes_1024"][index].astype(float) * scale
        box = assemble.corner(x - w / 2, y - h / 2, w, h)
        marks = arrays["attributes"][index] if "attributes" in arrays else ()
        attributes = [_word(words["attribute"], mark) for mark in marks if mark > 0]
        name = _word(words["label"], arrays["labels"].reshape(-1)[index])
        raw.add(index, name, box, attributes=attributes)
    first, last = (int(arrays[f"img_to_{end}_rel"].reshape(-1)[row]) for end in ("first", "last"))
    for index in range(first, last + 1) if first >= 0 else ():
        subject, target = map(int, arrays["relationships"][index])
        predicate = _word(words["predicate"], arrays["predicates"].reshape(-1)[index])
        if not predicate:
            report.note("predicate number without a name", f"{raw.where}, relation {index}")
        raw.relations.append((subject, predicate, target))


def _word(names: list[str], number: Any) -> str:
    return names[int(number)] if 0 < int(number) < len(names) else ""
