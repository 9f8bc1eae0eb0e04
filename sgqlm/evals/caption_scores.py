"""Score captions by SQ-LLaVA's protocol, and beside it by that of the COCO program."""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sgqlm.evals import caption_files, joining, scored, tables
from sgqlm.evals.metrics import captions

METRIC, UNIT = "CIDEr-D", "x 100"
_NAMES = {
    "cider": METRIC,
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
}
_MAIN = tuple(_NAMES)[:4]
_UNCUT = "uncut"  # figures of the captions as they are


def score(
    task: str,
    path: pathlib.Path,
    files: Sequence[pathlib.Path],
    *,
    only: Collection[str] | None = None,
) -> scored.Scored:
    """Score a file of captions.

    An image without an answer counts as one with an empty caption. Of captions_val2014.json and
    other files with more images than the benchmark, those that are answered count, as in the
    COCO program.

    Args:
        task: of `caption_files.TASKS`.
        path: LLaVA's answers, or COCO's results `[{"image_id", "caption"}]`.
        files: see `caption_files.read`.
        only: ids of the questions that were asked; None for all.

    Returns:
        Figures of SQ-LLaVA's protocol, whose CIDEr-D is the headline, then those of the captions as
        they are; of NoCaps each domain too. A share of 1, CIDEr-D of 10 at most.

    Raises:
        SgqlmError: a file is missing or damaged, nothing fits together, or a package is missing.
    """
    true = caption_files.read(task, files)
    given = [
        (true.key(answer.key, is_image="caption" in answer.record), answer)
        for answer in caption_files.results(path)
    ]
    wanted = {str(item.id): item for item in true.items}
    if only is not None:
        keys = {true.key(str(key)) for key in only}
        wanted = {key: item for key, item in wanted.items() if key in keys}
    notes = []
    if true.is_pool and only is None:
        said = {key for key, _ in given}
        whole, wanted = len(wanted), {key: item for key, item in wanted.items() if key in said}
        notes.append(f"over the answered ones of the {whole:,} images in the file")
    if bare := [key for key, item in wanted.items() if not item.captions]:
        raise tables.damaged(
            files[0], f"{len(bare)} images have no captions: {joining.shown(bare)}"
        )
    joined, faults = joining.join(given, wanted, where=str(path))
    texts = {key: joined[key].text if key in joined else "" for key in wanted}
    rows, items, more = _figures(texts, wanted)
    done = scored.Scored(task, rows[0][1], METRIC, rows, items, faults, [*notes, *more])
    done.unit = UNIT
    done.groups = {  # CIDEr-D by itself: it ends at 10, the others at 1
        name: METRIC if name.startswith(METRIC) else name.partition(" ")[2] or "as SQ-LLaVA"
        for name, *_ in rows
    }
    done.details = {key: _told(item, joined.get(key)) for key, item in wanted.items()}
    return done


def _told(item: caption_files.Captioned, answer: tables.Answer | None) -> dict[str, Any]:
    given = {} if answer is None else {"given": answer.text, "question": answer.prompt}
    found = {"wanted": " / ".join(item.captions), "image": item.image, **given}
    return found | ({"kinds": [item.domain]} if item.domain else {})


def _figures(texts: Mapping[str, str], wanted: Mapping[str, caption_files.Captioned]):
    """Return the rows, id -> CIDEr-D, and notes."""
    short, long = captions.MAX_WORDS_PREDICTION, captions.MAX_WORDS
    cut = {key: captions.pre_caption(text, short) for key, text in texts.items()}
    references = {
        key: [captions.pre_caption(text, long) for text in item.captions]
        for key, item in wanted.items()
    }
    parts: dict[str, list[str]] = {"": list(wanted)}
    for domain in sorted({item.domain for item in wanted.values() if item.domain}):
        parts[domain] = [key for key, item in wanted.items() if item.domain == domain]
    plain = {key: item.captions for key, item in wanted.items()}
    rows, items, notes = [], {}, []
    for said, true, kind in ((cut, references, ""), (texts, plain, _UNCUT)):
        for domain, keys in parts.items():
            metrics = [m for m in captions.METRICS if m != "meteor" or not (domain and kind)]
            found = captions.score(
                {k: said[k] for k in keys}, {k: true[k] for k in keys}, metrics=metrics
            )
            names = _MAIN if domain or kind else _NAMES
            for name in [name for name in names if name in found.values]:
                told = " ".join(filter(None, (_NAMES[name], domain, kind)))
                rows.append((told, found.values[name], len(keys) if name == "cider" else None))
            if not items:
                items = {str(key): value for key, value in found.per_item["cider"].items()}
                notes = _notes(found, has_domains=len(parts) > 1)
    return rows, items, notes


def _notes(found: captions.Scores, *, has_domains: bool) -> list[str]:
    cutter = "the Penn Treebank's tokeniser" if found.tokeniser == "ptb" else "a simple tokeniser"
    out = [
        f'as SQ-LLaVA: lower case, . ! " ( ) * # : ; ~ taken out, answers cut to '
        f"{captions.MAX_WORDS_PREDICTION} words and references to {captions.MAX_WORDS}; `{_UNCUT}` "
        "as the COCO program, with the captions as they are",
        f"pycocoevalcap with {cutter}; shown times 100: CIDEr-D ends at 1,000, the others at 100",
    ]
    out += [f"{name} left out: {why}" for name, why in found.left_out.items()]
    if has_domains:
        out.append("each domain is scored by itself, with word frequencies of its own")
    return out
