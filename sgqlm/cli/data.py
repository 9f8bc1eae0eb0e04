"""`sgqlm data check | build | show | cards`: published data, your own, or drawn scenes."""

import argparse
import collections
import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from sgqlm import config, errors
from sgqlm.cli import common, data_relations, data_report, data_show
from sgqlm.data import cards, leaks, llava_json, records
from sgqlm.entities import dataset, extract, interfaces
from sgqlm.models import presets
from sgqlm.scenes import builder as scene_builder
from sgqlm.train import progress

_STORES = (dataset.IMAGES, dataset.ENTITIES, dataset.CONVERSATIONS)
_MEGABYTE = 1_000_000


def run(argv: list[str]) -> int:
    """Run `sgqlm data`; return the exit code."""
    has_config = any(word.startswith("--config") for word in argv)
    settings, rest = common.load_config(argv) if has_config else (_defaults(), argv)
    args = _parser().parse_args(rest)
    if has_config and args.verb != "show":
        raise errors.SgqlmError(
            "only `sgqlm data show` takes a configuration", where="--config", fix="leave it out"
        )
    args.settings = settings
    return args.run(args)


def _defaults() -> config.Config:
    """Return the settings that samples are shown under when no configuration is named."""
    return config.Config(model=presets.get("tiny"))


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="sgqlm data", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb", metavar="{check,build,show,cards}")
    check = verbs.add_parser("check", help="list every fault; exit code 3 if there is one")
    build = verbs.add_parser("build", help="write the image, entity and conversation stores")
    for verb, what in ((check, "or a built data set"), (build, "or `scenes`")):
        verb.add_argument("path", type=pathlib.Path, help=f"folder, LLaVA json, {what}")
        verb.add_argument("--card", help="published data set it is (`sgqlm data cards`), or a card")
        verb.add_argument("--json", type=pathlib.Path, help="which json, if there are several")
        verb.add_argument("--images", type=pathlib.Path, help="folder that image paths start from")
        verb.add_argument(
            "--exclude", nargs="+", action="extend", default=[], metavar="FILE",
            help="lists of evaluation images to leave out, as published (SPACE=FILE if unclear)",
        )  # fmt: skip
        verb.add_argument("--follow-links", action="store_true", help="out of the image folder too")
        workers = min(os.cpu_count() or 1, 8)
        verb.add_argument("--workers", type=int, default=workers, help=f"processes ({workers})")
        data_relations.add_arguments(verb, is_build=verb is build)
    check.add_argument("--no-decode", action="store_true", help="do not open the images")
    check.add_argument("--all", action="store_true", help="list all faults, not 20 of a rule")
    check.add_argument("--report", type=pathlib.Path, help="json or csv with everything found")
    check.set_defaults(run=_check)
    build.add_argument("--out", type=pathlib.Path, required=True, help="becomes the data set")
    build.add_argument(
        "--entities", help="regions, none, or an entity store (regions; with --card none)"
    )
    build.add_argument("--drop-bad", action="store_true", help="leave records with faults out")
    build.add_argument(
        "--overwrite", action="store_true", help="replace also entities that this does not make"
    )
    build.add_argument("--budget", type=float, default=0.001, help="share --drop-bad may leave out")
    scene = config.SceneConfig()
    for name in ("num_train", "num_val", "num_test", "image_size"):
        flag, default = f"--{name.replace('_', '-')}", getattr(scene, name)
        build.add_argument(flag, type=int, default=default, help=f"of scenes ({default})")
    build.set_defaults(run=_build)
    data_show.add_parser(verbs)
    listing = verbs.add_parser("cards", help="list the published data sets, and what is missing")
    listing.add_argument("name", nargs="?", help="of one data set, to show its card")
    listing.add_argument(
        "--root",
        type=pathlib.Path,
        help="folder with a folder for each data set; with a name, also that of the data set",
    )
    listing.set_defaults(run=_cards)
    return parser


def _check(args: argparse.Namespace) -> int:
    if data_show.is_built(args.path) and not args.card:
        return _check_built(args.path)
    card = cards.find(args.card) if args.card else None
    if card and card.reader != cards.READER:
        return data_relations.check(args, card, _lists(args))
    if args.report:
        data_report.refuse_suffix(args.report)
    file, root = _locate(args, card)
    lists = _lists(args)
    scan = _examine(args, file, root, lists, decode=not args.no_decode)
    if args.report:
        told = {"json": str(file), "images": str(root), "decoded": not args.no_decode}
        data_report.write(args.report, scan, told)
    if scan.faults:
        print(data_report.table(scan.faults, all_=args.all))
        print()
    if found := data_report.folders(scan.folders):
        print(found)
        print()
    if card and args.path.is_dir() and any(folder.missing for folder in scan.folders):
        print("".join(f"{line}\n" for line in cards.missing_files(card, args.path)), end="")
    print("\n".join(data_report.excluded(scan.excluded, lists)), end="\n" if lists else "")
    print(f"{file}: {scan.total} records, {len(scan.records)} usable, images in {root}")
    if card and scan.total != card.rest.get("records", scan.total):
        print(f"the card says {card.rest['records']} records: this is another file, or cut")
    if scan.folders and not any(folder.found for folder in scan.folders):
        print("no image was found: --images names the folder that their paths start from")
    if any(f.rule == "image inside root" for f in scan.faults) and not args.follow_links:
        print("what a link leads to outside the image folder counts with --follow-links only")
    if args.no_decode:
        print("images were looked for and not decoded")
    print(data_report.verdict(scan.faults))
    if not scan.records and not any(fault.drops for fault in scan.faults):
        raise _no_records(file, scan)
    return errors.DATA if any(fault.drops for fault in scan.faults) else errors.OK


def _check_built(folder: pathlib.Path) -> int:
    """Compare the files of each store with its manifest."""
    faults, rows = [], {}
    for name in _STORES:
        if name == dataset.ENTITIES and not (folder / name).exists():
            continue
        rows[name] = sum(records.read_manifest(folder / name, kind=name)["rows"].values())
        for line in records.verify(folder / name):
            faults.append(llava_json.Fault(name, "checksum", line))
    if faults:
        print(data_report.table(faults))
        print()
    print(f"{folder}: " + ", ".join(f"{count} {name}" for name, count in rows.items()))
    print(data_report.verdict(faults))
    return errors.DATA if faults else errors.OK


def _build(args: argparse.Namespace) -> int:
    if str(args.path) == data_show.SCENES:
        return _build_scenes(args)
    if not 0 <= args.budget <= 1:
        raise errors.SgqlmError("a budget is a share", where="--budget", fix="give 0 to 1")
    card = cards.find(args.card) if args.card else None
    if card and card.reader != cards.READER:
        return data_relations.build(args, card, _lists(args))
    file, root = _locate(args, card)
    extract.refuse_other(args.out, dataset.CONVERSATIONS)
    source = _entity_source(args.entities or ("none" if card else "regions"))
    keep = None
    if not args.overwrite:
        keep = dataset.kept(args.out, source, is_chosen=bool(args.entities))
    lists = _lists(args)
    scan = _examine(args, file, root, lists, decode=True)
    dropped = _refuse_or_drop(scan, file, args)
    left_out = {item.label: _count(scan, item.label) for item in lists if item.count}
    about = {
        "json": file.name, "sha256": records.file_digest(file), "records": scan.total,
        "dropped": dropped, "excluded": left_out, "card": card.name if card else "",
    }  # fmt: skip
    changed = _changes(args.out / dataset.CONVERSATIONS, about)
    with _reports() as report:
        made = dataset.build(
            scan.records, args.out, entities=source, keep=keep, about=about, progress=report
        )
    print(
        f"{args.out}: {made.conversations} conversations, {made.images} images, "
        f"{made.entities} entities"
    )
    if changed:
        print(f"  not as it was before: {changed}")
    if keep:
        print(f"  {keep}: kept as it was, every image has its entities (--overwrite drops them)")
    if dropped:
        bad = scan.total - len(scan.excluded) - len(scan.records)
        reasons = ", ".join(f"{rule} ({count})" for rule, count in dropped.items())
        print(f"  left out: {bad} of {scan.total} records: {reasons}")
    for line in data_report.excluded(scan.excluded, lists):
        print(f"  {line}")
    for key, reason in made.failed[:20]:
        print(f"  without entities: {key}: {reason}")
    print(f"look at it: sgqlm data show {args.out}")
    if source is None and keep is None and made.images:
        where = f"--data={args.out} --out={args.out / dataset.ENTITIES}"
        print(f"entities, for the scene graph: sgqlm entities extract {where}")
    return errors.OK


def _changes(store: pathlib.Path, about: Mapping[str, Any]) -> str:
    """Return how a rebuild differs from the data set that it replaces; empty if it does not."""
    if not (store / records.MANIFEST).is_file():
        return ""
    before = records.read_manifest(store, kind=dataset.CONVERSATIONS)["about"]
    found = []
    for name in ("json", "card", "records", "dropped", "excluded"):
        old, new = (_shown(told.get(name)) for told in (before, about))
        if old != new:
            found.append(f"{name} {old}, now {new}")
    if before.get("json") == about["json"] and before.get("sha256") != about["sha256"]:
        found.append("the json has changed")
    return "; ".join(found)


def _shown(value: Any) -> str:
    return (_pairs(value) if isinstance(value, dict) else str(value or "")) or "none"


def _build_scenes(args: argparse.Namespace) -> int:
    unused = ("card", "json", "images", "exclude", "entities", *data_relations.FLAGS)
    data_relations.refuse(args, unused, data_show.SCENES)
    if min(args.num_train, args.num_val, args.num_test) < 0 or args.image_size < 32:
        raise errors.SgqlmError(
            "scenes of this size cannot be drawn",
            where="--num-train, --num-val, --num-test, --image-size",
            fix="give counts from 0 and at least 32 pixels",
        )
    scenes = config.SceneConfig(
        num_train=args.num_train,
        num_val=args.num_val,
        num_test=args.num_test,
        image_size=args.image_size,
    )
    with _reports() as report:
        built = scene_builder.build(
            scenes, args.out, args.workers, progress=lambda *at: report("scenes", *at)
        )
    counts = ", ".join(
        f"{split} {scene_builder.num_scenes(scenes, split)}" for split in scene_builder.SPLITS
    )
    print(f"{args.out}: {counts}" + ("" if built else "; it was there already"))
    print(f"look at it: sgqlm data show {args.out}")
    return errors.OK


def _cards(args: argparse.Namespace) -> int:
    if args.root and not args.root.is_dir():
        raise errors.SgqlmError(
            "there is no such folder", where=f"--root={args.root}", fix="correct it"
        )
    if args.name:
        return _one_card(cards.find(args.name, flag=""), args.root)
    found = cards.every()
    width = max(len(card.name) for card in found)
    for card in found:
        print(f"{card.name:<{width}}  {card.title}; {card.licence}")
        if args.root and card.files:
            folder = cards.place(card, args.root)
            lines = cards.missing_files(card, folder) if folder.is_dir() else [f"no {folder}"]
            for line in lines or ["all files are there"]:
                print(f"{'':<{width}}    {line}")
    return errors.OK


def _one_card(card: cards.Card, root: pathlib.Path | None) -> int:
    rows: dict[str, Any] = {"title": card.title, "source": card.source, "licence": card.licence}
    rows |= {key: value for key, value in card.rest.items() if key not in rows}
    for key, value in rows.items():
        if isinstance(value, list):
            print(f"{key}:")
            for item in value:
                print("  - " + (_pairs(item) if isinstance(item, dict) else str(item)))
        else:
            print(f"{key}: {_pairs(value) if isinstance(value, dict) else value}")
    print("files:")
    for file in card.files:
        needed = "" if file["required"] else ", may be absent"
        size = f", {file['size']}" if "size" in file else ""
        print(f"  - {cards.names(file)}: {file['what']}{size}{needed}")
    if root:
        folder = cards.place(card, root)
        folder = folder if folder.is_dir() else root  # that of this data set alone
        for line in cards.missing_files(card, folder) or [f"all files are there: {folder}"]:
            print(line)
    return errors.OK


def _pairs(value: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())


def _plain(value: Any) -> str:
    """Return a value of a card in words."""
    if isinstance(value, dict):
        return f"({_pairs(value)})"
    if isinstance(value, list):
        return " and ".join(map(_plain, value)) or "none"
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    return str(value)


def _lists(args: argparse.Namespace) -> list[leaks.List]:
    found = leaks.load_all(args.exclude)
    print("\n".join(data_report.lists(found)), end="\n" if found else "")
    return found


def _examine(args, file, root, lists, *, decode: bool) -> llava_json.Scan:
    find = leaks.Leaks(lists, root).find if lists else None
    with _reports() as report:

        def told(what: str, done: int, total: int) -> None:
            is_bytes = what == "read"
            unit = _MEGABYTE if is_bytes else 1
            report("read, MB" if is_bytes else what, -(-done // unit), -(-total // unit))

        return llava_json.examine(
            file, root, decode=decode, workers=args.workers, follow_links=args.follow_links,
            exclude=find, progress=told,
        )  # fmt: skip


def _count(scan: llava_json.Scan, label: str) -> int:
    return sum(label in record.lists for record in scan.excluded)


def _refuse_or_drop(
    scan: llava_json.Scan, file: pathlib.Path, args: argparse.Namespace
) -> dict[str, int]:
    """Return the number of faults by rule that are left out; refuse what may not be."""
    fatal = [fault for fault in scan.faults if fault.drops]
    bad = scan.total - len(scan.excluded) - len(scan.records)
    if not args.drop_bad or not scan.records:
        llava_json.refuse(fatal, str(file))
    if not scan.records:
        raise _no_records(file, scan)
    if bad > args.budget * scan.total:
        counts = collections.Counter(fault.rule for fault in fatal)
        raise errors.SgqlmError(
            f"{bad} of {scan.total} records have faults, more than the budget of {args.budget:g}",
            where=str(file),
            why=", ".join(f"{rule} ({count})" for rule, count in counts.most_common()),
            fix=f"correct them (`sgqlm data check`), or allow --budget={bad / scan.total:.2g}",
            code=errors.DATA,
        )
    return dict(collections.Counter(fault.rule for fault in fatal).most_common())


def _no_records(file: pathlib.Path, scan: llava_json.Scan) -> errors.SgqlmError:
    why = "all are on the lists of --exclude" if scan.excluded else ""
    return errors.SgqlmError(
        "there are no records", where=str(file), why=why, fix="write some", code=errors.DATA
    )


def _locate(args: argparse.Namespace, card: cards.Card | None) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the json file and the folder that image paths start from."""
    path = args.path
    data_relations.refuse(args, data_relations.FLAGS, "a LLaVA json")
    if card and card.name == data_show.SCENES:
        raise errors.SgqlmError(
            "scenes are pictures that sgqlm draws itself, not files that it reads",
            where=f"--card={card.name}",
            fix=f"`sgqlm data build {card.name} --out=FOLDER` draws them; for photographs leave "
            "--card out",
        )
    if not card and not args.json and path.exists():
        data_relations.refuse_folder(path)
    if args.json:
        path = args.path / args.json if (args.path / args.json).is_file() else args.json
    if args.images and not args.images.is_dir():
        raise errors.SgqlmError(
            "there is no such folder",
            where=f"--images={args.images}",
            fix="give the folder that the image paths of the json start from",
        )
    if card is None:
        file, root = llava_json.find(path)
        return file, args.images or root
    if not path.exists():
        raise errors.SgqlmError(
            "there is no such folder", where=str(path), fix="correct it", code=errors.DATA
        )
    file = cards.json_file(card, path)
    if args.images:
        return file, args.images
    roots = cards.image_roots(card, args.path, file)
    return file, llava_json.probe(file, roots, follow_links=args.follow_links)


def _entity_source(choice: str) -> interfaces.EntityExtractor | pathlib.Path | None:
    if choice == "none":
        return None
    if choice in extract.EXTRACTORS:
        return extract.make(choice)
    records.read_manifest(choice, kind=dataset.ENTITIES)
    return pathlib.Path(choice)


@contextlib.contextmanager
def _reports() -> Iterator[dataset.Progress]:
    """Give a callback (what, done, altogether) that shows one progress line per `what`."""
    with contextlib.ExitStack() as stack:
        lines: dict[str, progress.Progress] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in lines:
                stack.close()
                lines[what] = stack.enter_context(progress.Progress(what, total))
            lines[what].update(done)

        yield report
