"""GRIT of Kosmos-2: parquet files of captions whose phrases have boxes; no relations.

Columns `key, url, caption, width, height, noun_chunks, ref_exps`; a noun chunk is [start, end, x0,
y0, x1, y1, score], characters of the caption and shares of the sides. Predicates are made from the
caption by a step of choice, see `text`. Images are addresses: they must lie on disk under their
keys, and many cannot be had any more. Files that img2dataset writes beside its images (format
`files`, the columns above saved along) have these columns too, with its own keys.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from sgqlm import errors
from sgqlm.data.relations import assemble, files, text, types

EXPECTED = "parquet with key, caption, width, height, noun_chunks"
_COLUMNS = ("key", "caption", "width", "height", "noun_chunks")
_ROWS = 1024


def read(context: files.Context) -> Iterator[types.Annotated]:
    """Yield the images that are on disk; all are of split `train`."""
    if not context.wants("train", 0):
        return
    to_relations = context.text or text.RuleBased()
    paths = files.need(context.folder, ("*.parquet",), EXPECTED)
    opened = [_open(path) for path in paths]
    total, done = sum(file.metadata.num_rows for file in opened), 0
    for path, file in zip(paths, opened, strict=True):
        for number, row in enumerate(_rows(path, file)):
            done += 1
            context.progress("read", done, total)
            name = str(row["key"] or "")
            where = f"{path.name} row {number}"
            if not name:
                context.report.note("entry without key", where)
                continue
            places = (f"{name}.jpg", f"images/{name}.jpg", f"{name[:5]}/{name}.jpg")
            key = context.locate(places, expected=False)
            if key is not None and (raw := _raw(row, f"image {name}", key, context)):
                caption = str(row["caption"] or "")
                yield assemble.assemble(
                    _related(raw, caption, to_relations),
                    key, context.report, split="train", image_id=name, caption=caption,
                )  # fmt: skip


def _open(path: pathlib.Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise errors.SgqlmError(
            "reading GRIT needs pyarrow", fix="pip install -e '.[relations]' in the clone"
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise files.wrong(path, EXPECTED, str(error)) from error
    if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
        raise files.wrong(path, EXPECTED, "without " + ", ".join(missing))
    return file


def _rows(path: pathlib.Path, file: Any) -> Iterator[Mapping[str, Any]]:
    import pyarrow

    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(_COLUMNS)):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise files.wrong(path, EXPECTED, str(error)) from error


def _raw(
    row: Mapping[str, Any], where: str, key: str, context: files.Context
) -> assemble.Raw | None:
    """Return the phrases as objects; their ids are (start, end, minus the score, number)."""
    caption, size = str(row["caption"] or ""), (int(row["height"] or 0), int(row["width"] or 0))
    size = size if all(size) else context.size(key)
    if not all(size):
        context.report.note("image without size", where)
        return None
    raw = assemble.Raw(where, size)
    for index, chunk in enumerate(_chunks(row["noun_chunks"], where, context.report)):
        try:
            start, end, x0, y0, x1, y1 = map(float, chunk[:6])
            score = float(chunk[6]) if len(chunk) > 6 else 1.0
        except (TypeError, ValueError):
            context.report.note("broken noun chunk", f"{where}: {str(chunk)[:80]}")
            continue
        name = text.head(caption[int(start) : int(end)])
        box = (x0 * size[1], y0 * size[0], x1 * size[1], y1 * size[0])
        raw.add((int(start), int(end), -score, index), name, box)
    return raw


def _chunks(value: Any, where: str, report: types.Report) -> list:
    if isinstance(value, str):  # some copies hold json
        try:
            value = json.loads(value)
        except ValueError:
            report.note("broken noun chunk", f"{where}: {value[:80]}")
            return []
    return value or []


def _related(raw: assemble.Raw, caption: str, to_relations: Any) -> assemble.Raw:
    """Fill in relations between phrases; one with several boxes is its surest one."""
    best: dict[tuple[int, int], Any] = {}
    for key in cast(Iterable[tuple], raw.objects):
        best[key[:2]] = min(best.get(key[:2], key), key)  # the third part is minus the score
    spans = sorted(best)
    for subject, predicate, target in to_relations(caption, spans) if len(spans) > 1 else ():
        raw.relations.append((best[spans[subject]], predicate, best[spans[target]]))
    return raw
