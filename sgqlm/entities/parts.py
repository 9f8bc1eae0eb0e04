"""Finished shards on disk: found again, taken from a finished store, joined to a store.

A store is made of the very files of its shards, by hard links: nothing is copied, and a later run
with more images takes back the shards that have not changed.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import records
from sgqlm.entities import shards

STAMPS = "stamps.json"  # of a store, beside its manifest: the stamps of its shards
_INFO, _FEATURES = "dataset_info.json", "features.json"  # of TFDS
_NAME = "entities-rows.array_record-{:05d}-of-{:05d}"
_SHARD_KEYS = ("identity", "entities", "status", "versions")  # kept for each shard of a store
_OF_A_STORE = (*_SHARD_KEYS, "shards", "failed")


def folder(out: pathlib.Path) -> pathlib.Path:
    """Return where the shards of the store `out` lie until they are joined."""
    return out.with_name(f".{out.name}.parts")


def recover(out: pathlib.Path) -> None:
    """Clear up behind a process that was killed while it replaced `out`; nobody else is at it."""
    replaced = sorted(out.parent.glob(f".{_glob(out.name)}.replaced-*"))
    if replaced and not out.exists():
        replaced.pop().rename(out)
    unfinished = out.parent.glob(f".{_glob(out.name)}.building-*")
    for path in [*replaced, *unfinished, *folder(out).glob(".*.building-*")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder(out).glob(".*.replaced-*"):
        shutil.rmtree(path, ignore_errors=True)


@dataclasses.dataclass
class Finished:
    """What is there already.

    Attributes:
        by_stamp: names of shards with the same settings whose image files look as they did.
        by_key: names of the shards that have an image, perhaps with other views.
    """

    by_stamp: dict[str, str]
    by_key: dict[str, str]


def find(parts: pathlib.Path, wanted: Mapping[str, Any]) -> Finished:
    """Return the whole shards of these settings (of `shards.describe`); damaged ones are removed.

    Those of other settings stay until a store is finished: a wrong flag must not cost days.
    """
    found = Finished({}, {})
    for place in sorted(path for path in parts.iterdir() if path.is_dir()):
        if not shards.is_whole(place):
            shutil.rmtree(place)
            continue
        told = about(place)
        if told.get("masks") != wanted["masks"]:
            continue
        if told["config"] == wanted["config"] and (place / shards.STAMP).is_file():
            found.by_stamp[(place / shards.STAMP).read_text()] = place.name
        found.by_key |= dict.fromkeys(_read(place / records.KEYS), place.name)
    return found


def stamps(out: pathlib.Path) -> list[str] | None:
    """Return the stamps of the shards of a whole store, None if it has none."""
    if not (out / STAMPS).is_file() or records.verify(out, only_sizes=True):
        return None
    found = _read(out / STAMPS)
    return found["stamps"] if found["identity"] == about(out).get("identity") else None


def about(out: pathlib.Path) -> dict[str, Any]:
    """Return what an entity store remembers; nothing where there is none of this format.

    Raises:
        SgqlmError: it is a store of something else.
    """
    if not (out / records.MANIFEST).is_file():
        return {}
    manifest = _read(out / records.MANIFEST)
    if manifest.get("kind") != "entities":
        raise errors.SgqlmError(
            f"this is a store of {manifest.get('kind')}, not of entities",
            where=str(out),
            fix="name another folder with --out",
        )
    return manifest["about"] if manifest.get("format") == records.FORMAT else {}


def keys(out: pathlib.Path) -> list[str]:
    """Return the image keys of a store by row."""
    return _read(out / records.KEYS) if (out / records.KEYS).is_file() else []


def settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a store remembers of how it was made, without what was found."""
    return {name: value for name, value in about.items() if name not in _OF_A_STORE}


def take_apart(out: pathlib.Path, parts: pathlib.Path) -> None:
    """Give the shards of a finished store to `parts` again, so that a new run can reuse them.

    A store that was written in one go is one shard.
    """
    manifest = records.read_manifest(out, kind="entities")
    keys, known = _read(out / records.KEYS), stamps(out) or []
    common = settings(manifest["about"])
    failed = dict(manifest["about"].get("failed", []))
    entries = _entries(out, manifest)
    total = sum(len(entry["lengths"]) for entry in entries)
    row = file = 0
    for index, entry in enumerate(entries):
        mine = keys[row : row + sum(entry["lengths"])]
        files = [_NAME.format(file + i, total) for i in range(len(entry["lengths"]))]
        row, file = row + len(mine), file + len(files)
        place = parts / entry["identity"]
        if place.exists():
            continue
        aside = parts / f".{entry['identity']}.building-{os.getpid()}"
        aside.mkdir()
        checksums = {}
        for i, name in enumerate(files):
            checksums[_NAME.format(i, len(files))] = manifest["files"][name]
            link(out / name, aside / _NAME.format(i, len(files)))
        shutil.copyfile(out / _FEATURES, aside / _FEATURES)
        _write_info(out / _INFO, aside / _INFO, entry["lengths"], entry["bytes"])
        told = common | {k: entry[k] for k in _SHARD_KEYS}
        told["failed"] = [[key, failed[key]] for key in mine if key in failed]
        _finish(aside, mine, checksums, told)
        if index < len(known) and known[index]:
            (aside / shards.STAMP).write_text(known[index])
        aside.rename(place)


def has_shards(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a store consists of the shards that its manifest lists."""
    found = manifest["about"].get("shards", [])
    lengths = [n for entry in found for n in entry["lengths"]]
    names = {name for name in manifest["files"] if name.startswith(_NAME.split("{")[0])}
    wanted = {_NAME.format(i, len(lengths)) for i in range(len(lengths))}
    return names == wanted and sum(lengths) == manifest["rows"][records.ALL]


def _entries(out: pathlib.Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is known of each shard of a store."""
    if has_shards(manifest):
        return manifest["about"]["shards"]
    info = _split(_read(out / _INFO))
    whole: dict[str, Any] = {"identity": shards.digest(manifest["files"]), "entities": 0}
    whole |= {"status": {}, "versions": {}, "bytes": int(info["numBytes"])}
    return [whole | {"lengths": [int(n) for n in info["shardLengths"]]}]


def join(
    places: Sequence[pathlib.Path], out: pathlib.Path, config: Mapping[str, Any], identity: str
) -> None:
    """Make a store of shards, in this order, without copying their rows.

    Args:
        places: folders of whole shards.
        out: becomes the store; replaces what stood there.
        config: of `shards.describe`.
        identity: of `identity`.
    """
    manifests = [records.read_manifest(place, kind="entities") for place in places]
    infos = [_split(_read(place / _INFO)) for place in places]
    lengths = [[int(n) for n in info["shardLengths"]] for info in infos]
    entries = [
        {k: manifest["about"][k] for k in _SHARD_KEYS}
        | {"lengths": lengths[i], "bytes": int(infos[i]["numBytes"])}
        for i, manifest in enumerate(manifests)
    ]
    told = dict(config) | {"identity": identity, "shards": entries}
    told["failed"] = [pair for manifest in manifests for pair in manifest["about"]["failed"]]
    told["entities"] = sum(entry["entities"] for entry in entries)
    told["status"] = _sum(entry["status"] for entry in entries)
    with records.staged(out) as aside:
        checksums = dict(_link_all(places, lengths, manifests, aside))
        shutil.copyfile(places[0] / _FEATURES, aside / _FEATURES)
        flat = [n for part in lengths for n in part]
        _write_info(places[0] / _INFO, aside / _INFO, flat, sum(e["bytes"] for e in entries))
        keys = [key for place in places for key in _read(place / records.KEYS)]
        _finish(aside, keys, checksums, told)
        write_stamps(aside, places, identity)


def write_stamps(out: pathlib.Path, places: Sequence[pathlib.Path], identity: str) -> None:
    """Remember what the image files of a store look like now."""
    files = [place / shards.STAMP for place in places]
    found = [file.read_text() if file.is_file() else "" for file in files]
    aside = out / f".{STAMPS}"
    records.write_json(aside, {"identity": identity, "stamps": found})
    aside.rename(out / STAMPS)


def row_bytes(store: pathlib.Path) -> int:
    """Return the bytes of all records of a store before they are compressed."""
    return int(_split(_read(store / _INFO))["numBytes"])


def identity(config: str, names: Sequence[str]) -> str:
    """Return what names a store: its settings and shards."""
    return shards.digest([config, list(names)])


def _link_all(
    places: Sequence[pathlib.Path],
    lengths: Sequence[Sequence[int]],
    manifests: Sequence[Mapping[str, Any]],
    aside: pathlib.Path,
) -> Iterator[tuple[str, Any]]:
    total, number = sum(map(len, lengths)), 0
    for place, parts, manifest in zip(places, lengths, manifests, strict=True):
        for i in range(len(parts)):
            name, new = _NAME.format(i, len(parts)), _NAME.format(number, total)
            link(place / name, aside / new)
            yield new, manifest["files"][name]
            number += 1


def link(old: pathlib.Path | str, new: pathlib.Path | str) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _finish(
    aside: pathlib.Path, keys: Sequence[str], checksums: Mapping[str, Any], told: Mapping[str, Any]
) -> None:
    """Write keys and manifest; the checksums of the row files are known, they are not read."""
    (aside / records.KEYS).write_text(json.dumps(list(keys), ensure_ascii=False), "utf-8")
    files = dict(checksums)
    for name in (_INFO, _FEATURES, records.KEYS):
        path = aside / name
        files[name] = {"bytes": path.stat().st_size, "sha256": records.file_digest(path)}
    head = {"format": records.FORMAT, "kind": "entities", "rows": {records.ALL: len(keys)}}
    records.write_json(aside / records.MANIFEST, head | {"files": files, "about": dict(told)})


def _write_info(old: pathlib.Path, new: pathlib.Path, lengths: Sequence[int], size: int) -> None:
    info = _read(old)
    _split(info).update(shardLengths=[str(n) for n in lengths], numBytes=str(size))
    new.write_text(json.dumps(info, indent=2), "utf-8")  # as TFDS writes it


def _split(info: Mapping[str, Any]) -> dict[str, Any]:
    (split,) = info["splits"]
    if split["name"] != records.ALL:
        raise errors.SgqlmError("these are not the rows of an entity store", where=split["name"])
    return split


def _sum(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items()))


def _read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _glob(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
