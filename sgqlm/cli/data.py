"""`sgqlm data check | build | show`: your own photographs, or drawn scenes, as a data set."""

import argparse
import collections
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

from sgqlm import config, errors
from sgqlm.cli import common
from sgqlm.data import batch, graphs, images, llava_json, records, sources
from sgqlm.entities import dataset, extract, interfaces
from sgqlm.models import presets
from sgqlm.scenes import builder as scene_builder
from sgqlm.text import self_questioning, templates
from sgqlm.text import tokenizer as tokenizers
from sgqlm.train import progress
from sgqlm.viz import pages, samples

SCENES = "scenes"
_STORES = (dataset.IMAGES, dataset.ENTITIES, dataset.CONVERSATIONS)


def run(argv: list[str]) -> int:
    """Run `sgqlm data`; return the exit code."""
    has_config = any(word.startswith("--config") for word in argv)
    settings, rest = common.load_config(argv) if has_config else (_defaults(), argv)
    args = _parser().parse_args(rest)
    if has_config and args.run is not _show:
        raise errors.SgqlmError(
            "only `sgqlm data show` takes a configuration", where="--config", fix="leave it out"
        )
    args.settings = settings
    return args.run(args)


def _defaults() -> config.Config:
    """Return the settings that samples are shown under when no configuration is named."""
    return config.Config(model=presets.get("tiny"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sgqlm data", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="{check,build,show}")
    check = verbs.add_parser("check", help="list every fault; exit code 3 if there is one")
    build = verbs.add_parser("build", help="write the image, entity and conversation stores")
    show = verbs.add_parser("show", help="write a page of samples as training sees them")
    for verb, what in ((check, "or a built data set"), (build, "or `scenes`")):
        verb.add_argument("path", type=pathlib.Path, help=f"folder, LLaVA json, {what}")
        verb.add_argument("--json", type=pathlib.Path, help="which json, if there are several")
        verb.add_argument("--images", type=pathlib.Path, help="folder that image paths start from")
    check.set_defaults(run=_check)
    build.add_argument("--out", type=pathlib.Path, required=True, help="becomes the data set")
    build.add_argument("--entities", default="regions", help="regions, none, or an entity store")
    build.add_argument("--drop-bad", action="store_true", help="leave records with faults out")
    build.add_argument("--budget", type=float, default=0.001, help="share --drop-bad may leave out")
    scene = config.SceneConfig()
    for name in ("num_train", "num_val", "num_test", "image_size"):
        flag, default = f"--{name.replace('_', '-')}", getattr(scene, name)
        build.add_argument(flag, type=int, default=default, help=f"of scenes ({default})")
    build.add_argument("--workers", type=int, default=2, help="processes that draw scenes")
    build.set_defaults(run=_build)
    show.add_argument("path", type=pathlib.Path, help="built data set, folder or LLaVA json")
    show.add_argument("--n", type=int, default=8, help="samples to show")
    show.add_argument("--start", type=int, default=0, help="first sample")
    show.add_argument("--split", default="train")
    show.add_argument("--out", type=pathlib.Path, help="page to write (runs/data/NAME.html)")
    show.add_argument("--text", action="store_true", help="print to the terminal, write no page")
    show.add_argument("--config", help="configuration whose model and text settings are used")
    show.add_argument("--template", help="plain, vicuna_v1 or v1_sq")
    show.add_argument("--self-questioning", type=float, help="share of asked turns")
    show.add_argument("--seed", type=int, help="of the draws")
    show.add_argument("--epoch", type=int, default=0, help="pass over the data")
    show.add_argument("--tokenizer", help="model file, or `train`: made from the data")
    show.set_defaults(run=_show)
    return parser


def _check(args: argparse.Namespace) -> int:
    if _is_built(args.path):
        return _check_built(args.path)
    file, root = _locate(args)
    with _reports() as report:
        scan = llava_json.examine(file, root, progress=lambda *at: report("check", *at))
    fatal = [fault for fault in scan.faults if fault.drops]
    if scan.faults:
        print(_table(scan.faults))
        print()
    print(f"{file}: {scan.total} records, {len(scan.records)} usable, images in {root}")
    print(_verdict(scan.faults))
    return errors.DATA if fatal else errors.OK


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
        print(_table(faults))
        print()
    print(f"{folder}: " + ", ".join(f"{count} {name}" for name, count in rows.items()))
    print(_verdict(faults))
    return errors.DATA if faults else errors.OK


def _build(args: argparse.Namespace) -> int:
    if str(args.path) == SCENES:
        return _build_scenes(args)
    if not 0 <= args.budget <= 1:
        raise errors.SgqlmError("a budget is a share", where="--budget", fix="give 0 to 1")
    file, root = _locate(args)
    extract.refuse_other(args.out, dataset.CONVERSATIONS)
    source = _entity_source(args.entities)
    with _reports() as report:
        scan = llava_json.examine(file, root, progress=lambda *at: report("check", *at))
        dropped = _refuse_or_drop(scan, file, args)
        about = {
            "json": file.name, "sha256": records.file_digest(file), "records": scan.total,
            "dropped": dropped,
        }  # fmt: skip
        made = dataset.build(scan.records, args.out, entities=source, about=about, progress=report)
    print(
        f"{args.out}: {made.conversations} conversations, {made.images} images, "
        f"{made.entities} entities"
    )
    if dropped:
        left_out = scan.total - len(scan.records)
        reasons = ", ".join(f"{rule} ({count})" for rule, count in dropped.items())
        print(f"  left out: {left_out} of {scan.total} records: {reasons}")
    for key, reason in made.failed[:20]:
        print(f"  without entities: {key}: {reason}")
    print(f"look at it: sgqlm data show {args.out}")
    return errors.OK


def _build_scenes(args: argparse.Namespace) -> int:
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


def _refuse_or_drop(
    scan: llava_json.Scan, file: pathlib.Path, args: argparse.Namespace
) -> dict[str, int]:
    """Return the number of faults by rule that are left out; refuse what may not be."""
    fatal = [fault for fault in scan.faults if fault.drops]
    bad = scan.total - len(scan.records)
    if not args.drop_bad or not scan.records:
        llava_json.refuse(fatal, str(file))
    if not scan.records:
        raise errors.SgqlmError(
            "there are no records", where=str(file), fix="add some", code=errors.DATA
        )
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


def _show(args: argparse.Namespace) -> int:
    settings, wanted = _settings(args), _wanted(args)
    source = sources.open_source(wanted, seed=settings.train.seed)
    tokenizer, text = _tokenizer(settings, wanted), settings.text
    encoder = batch.Encoder(settings.model, text, tokenizer, text.template)
    chosen = range(max(args.start, 0), min(max(args.start, 0) + max(args.n, 0), len(source)))
    if not chosen:
        raise errors.SgqlmError(
            "there is no such sample",
            where=f"--start={args.start} --n={args.n}",
            why=f"{args.path} has {len(source)} in the split {args.split!r}",
            code=errors.USAGE,
        )
    found = [_sample(source, index, encoder, settings, args.epoch) for index in chosen]
    if args.text:
        print("\n".join(samples.text(s, tokenizer, colour=sys.stdout.isatty()) for s in found))
        return errors.OK
    subtitle = (
        f"Samples {chosen[0] + 1} to {chosen[-1] + 1} of {len(source)}, split {args.split}, as "
        f"epoch {args.epoch} sees them: template {text.template}, self-questioning "
        f"{text.self_questioning:g}, {tokenizer.vocab_size} token ids."
    )
    document = samples.page(f"Data set {source.name}", found, tokenizer, subtitle=subtitle)
    out = args.out or pathlib.Path("runs/data") / f"{source.name}.html"
    print(pages.write(out, document))
    return errors.OK


def _sample(
    source: sources.Source,
    index: int,
    encoder: batch.Encoder,
    settings: config.Config,
    epoch: int,
) -> samples.Sample:
    found, text = source.sample(index, epoch=epoch), settings.text
    form = templates.get(text.template)
    asked: Sequence[int] = ()
    if form.can_ask:
        asked = self_questioning.choose_turns(
            found.turns,
            text.self_questioning,
            seed=settings.train.seed,
            record=found.record_key,
            epoch=epoch,
            has_image=found.has_image,
            compat=text.compat,
        )
    try:
        encoded = encoder.encode_turns(found.turns, has_image=found.has_image, vusr_turns=asked)
    except errors.SgqlmError as error:
        error.where = f"{found.record_key} {error.where}".strip()
        raise
    image, entities, num_nodes = None, found.entities, 0
    if found.image is not None:
        image = images.open_image(found.image, where=found.record_key)
        if entities is None and isinstance(source, sources.JsonSource):
            entities = extract.make("regions").extract(image)
    if isinstance(entities, graphs.Entities):
        num_nodes = len(encoder.make_nodes(entities).boxes)
    return samples.Sample(
        found.record_key,
        image,
        entities,
        encoded,
        encoder.model.num_image_tokens,
        num_nodes,
        system=form.system if text.system is None else text.system,
    )


def _settings(args: argparse.Namespace) -> config.Config:
    """Return the settings with the flags of the command applied."""
    found: config.Config = args.settings
    flags = {
        "template": args.template,
        "self_questioning": args.self_questioning,
        "tokenizer": args.tokenizer,
    }
    text = config.to_dict(found.text) | {k: v for k, v in flags.items() if v is not None}
    seed = found.train.seed if args.seed is None else args.seed
    return dataclasses.replace(
        found,
        text=config.from_config_dict(text, config.TextConfig, "text"),
        train=dataclasses.replace(found.train, seed=seed),
    )


def _wanted(args: argparse.Namespace) -> config.SourceConfig:
    """Return the source that the path means; one that the configuration names keeps its name."""
    path, known = args.path.resolve(), args.settings.train.stages
    for source in (source for stage in known for source in stage.sources):
        if source.path and pathlib.Path(source.path).resolve() == path:
            return dataclasses.replace(source, split=args.split)
    is_scenes = not _is_built(path) and (path / scene_builder.MANIFEST).is_file()
    name = SCENES if is_scenes else path.stem
    return config.SourceConfig(name=name, path=str(args.path), split=args.split)


def _tokenizer(settings: config.Config, source: config.SourceConfig) -> tokenizers.Tokenizer:
    """Load the tokenizer, or make it as training on this source does."""
    if settings.text.tokenizer != "train":
        return tokenizers.load(settings.text.tokenizer, settings.text.legacy)
    from sgqlm.train import feed  # brings jax, which nothing else here needs

    stages = (config.StageConfig(sources=(source,)),)
    alone = dataclasses.replace(settings.train, stages=stages)
    corpus = feed.corpus(dataclasses.replace(settings, train=alone))
    return tokenizers.load(tokenizers.train(corpus, settings.text.vocab_size))


def _locate(args: argparse.Namespace) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the json file and the folder that image paths start from."""
    path = args.path
    if args.json:
        path = args.path / args.json if (args.path / args.json).is_file() else args.json
    file, root = llava_json.find(path)
    if args.images and not args.images.is_dir():
        raise errors.SgqlmError(
            "there is no such folder",
            where=f"--images={args.images}",
            fix="give the folder that the image paths of the json start from",
        )
    return file, args.images or root


def _entity_source(choice: str) -> interfaces.EntityExtractor | pathlib.Path | None:
    if choice == "none":
        return None
    if choice in extract.EXTRACTORS:
        return extract.make(choice)
    records.read_manifest(choice, kind=dataset.ENTITIES)
    return pathlib.Path(choice)


def _is_built(path: pathlib.Path) -> bool:
    return (path / dataset.CONVERSATIONS / records.MANIFEST).is_file()


def _table(faults: Sequence[llava_json.Fault]) -> str:
    """Return faults as aligned columns: record, rule, message."""
    rows = [("record", "rule", "message")]
    rows += [
        (f.record or "(file)", f.rule + ("" if f.drops else " (note)"), f.message) for f in faults
    ]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{a:<{first}}  {b:<{second}}  {c}" for a, b, c in rows)


def _verdict(faults: Sequence[llava_json.Fault]) -> str:
    if not faults:
        return "no faults"
    counts = collections.Counter(fault.rule for fault in faults)
    noun = "fault" if len(faults) == 1 else "faults"
    listed = ", ".join(f"{rule} ({count})" for rule, count in counts.most_common())
    return f"{len(faults)} {noun}: {listed}"


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
