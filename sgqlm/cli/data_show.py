"""`sgqlm data show`: samples as training sees them."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm.data import batch, graphs, images, records, sources
from sgqlm.entities import dataset, extract
from sgqlm.scenes import builder as scene_builder
from sgqlm.text import self_questioning, templates
from sgqlm.text import tokenizer as tokenizers
from sgqlm.viz import pages, samples

SCENES = "scenes"


def add_parser(verbs) -> None:
    """Add the verb `show` to those of `sgqlm data`."""
    show = verbs.add_parser("show", help="write a page of samples as training sees them")
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


def is_built(path: pathlib.Path) -> bool:
    """Tell whether a folder is a data set that `sgqlm data build` wrote."""
    return (path / dataset.CONVERSATIONS / records.MANIFEST).is_file()


def _show(args: argparse.Namespace) -> int:
    _refuse_store(args.path)
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


def _refuse_store(path: pathlib.Path) -> None:
    file = path / records.MANIFEST
    kind = json.loads(file.read_text("utf-8")).get("kind") if file.is_file() else None
    if kind:  # built scenes have a manifest of another form
        fix = "name the data set that it belongs to"
        if kind == dataset.ENTITIES:
            fix += f", or look at it with `sgqlm entities show {path}`"
        raise errors.SgqlmError(f"this is a store of {kind}, no data set", where=str(path), fix=fix)


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
    is_scenes = not is_built(path) and (path / scene_builder.MANIFEST).is_file()
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
