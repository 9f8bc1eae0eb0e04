"""Captions: BLEU, METEOR, ROUGE-L and CIDEr-D by pycocoevalcap, the program of COCO.

Its `Cider` is the D variant (Vedantam et al. 2015). Values are of the scale of the program: BLEU,
METEOR and ROUGE-L up to 1, CIDEr-D up to 10. METEOR and the tokeniser of the Penn Treebank run in
Java; SPICE, which loads further programs from the network, is not offered.
"""

import collections
import dataclasses
import importlib
import pathlib
import re
import shutil
import subprocess
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sgqlm import errors

METRICS = ("bleu", "meteor", "rouge_l", "cider")
TOKENISERS = ("ptb", "simple", "none")
MAX_WORDS, MAX_WORDS_PREDICTION = 50, 20  # SQ-LLaVA, references and predictions
_JAR = "stanford-corenlp-3.4.1.jar"
_MARKS = frozenset("'\"`()[]{}.?!,:;-")
_TOKEN = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,:]\d+)+|(?:(?!n't\b)[^\W_])+(?:[-/][^\W_]+)*|[^\w\s]"
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a set of captions.

    Attributes:
        values: `bleu_1` to `bleu_4`, `meteor`, `rouge_l`, `cider`: of the whole set.
        per_item: the same names -> id -> value; the mean is the value, but for BLEU and METEOR.
        tokeniser: what cut the text into words; scores under `simple` are not the published ones.
        left_out: metric or program -> why it was not used.
    """

    values: dict[str, float]
    per_item: dict[str, dict[Hashable, float]]
    tokeniser: str
    left_out: dict[str, str]


def pre_caption(text: str, max_words: int = MAX_WORDS) -> str:
    """Return a caption as SQ-LLaVA prepares it before scoring.

    Lower case; each of `. ! " ( ) * # : ; ~` becomes a space; runs of spaces become one; words
    after `max_words` are cut off (50 of references, 20 of predictions).
    """
    text = re.sub(r"\s{2,}", " ", re.sub(r'[.!"()*#:;~]', " ", text.lower()))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:max_words])


def simple_tokens(text: str) -> str:
    """Return words with spaces between, close to the Penn Treebank's; punctuation is left out."""
    return " ".join(word for word in _TOKEN.findall(text.lower()) if word not in _MARKS)


def read_references(value: Any) -> dict[Hashable, list[str]]:
    """Return id -> captions of a COCO file, `{"annotations": [...]}` or the list of records alone.

    Raises:
        SgqlmError: it is of another form.
    """
    records = value.get("annotations") if isinstance(value, Mapping) else value
    found = collections.defaultdict(list)
    for key, caption in _records(records, "references"):
        found[key].append(caption)
    return dict(found)


def read_flickr(lines: Iterable[str]) -> dict[Hashable, list[str]]:
    """Return image name -> captions of Flickr30k's token file, `name.jpg#0<tab>caption` a line.

    Raises:
        SgqlmError: a line is of another form.
    """
    found = collections.defaultdict(list)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, caption = line.rstrip("\r\n").partition("\t")
        if not tab or "#" not in name:
            raise _wrong("a line has no `name#number<tab>caption`", f"line {number}")
        found[name.rpartition("#")[0]].append(caption)
    return dict(found)


def score(
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    tokeniser: str = "ptb",
) -> Scores:
    """Score captions against references, joined by id; ids of one alone are in no score.

    Args:
        predictions: id -> caption.
        references: id -> captions of people.
        metrics: of `METRICS`.
        tokeniser: `ptb` as published, which needs Java and becomes `simple` without it (then
            `left_out` says so); `none` for text that is cut into words already.

    Raises:
        SgqlmError: pycocoevalcap is not installed, no id is in both, or a name is wrong.
    """
    if bad := [*(set(metrics) - set(METRICS)), *({tokeniser} - set(TOKENISERS))]:
        raise _wrong("there is no such metric or tokeniser", ", ".join(map(str, bad)))
    _library("bleu.bleu")
    shared = [key for key in predictions if key in references]
    if not shared or not all(references[key] for key in shared):
        what = "no prediction has a reference" if not shared else "an image has no reference"
        raise _wrong(what, f"{len(predictions)} predictions, {len(references)} images")
    left_out = {}
    if not shutil.which("java"):
        tokeniser, left_out = _without_java(metrics, tokeniser)
    texts = [_line(text) for key in shared for text in (predictions[key], *references[key])]
    cut = iter(_tokenise(texts, tokeniser))
    said, true = {}, {}
    for key in shared:
        said[key] = [next(cut)]
        true[key] = [next(cut) for _ in references[key]]
    values: dict[str, float] = {}
    per_item: dict[str, dict[Hashable, float]] = {}
    for name in [name for name in METRICS if name in metrics and name not in left_out]:
        for column, (total, each) in _measure(name, true, said).items():
            values[column] = float(total)
            per_item[column] = dict(zip(shared, map(float, each), strict=True))
    return Scores(values, per_item, tokeniser, left_out)


def _without_java(metrics: Sequence[str], tokeniser: str) -> tuple[str, dict[str, str]]:
    left_out = {}
    if "meteor" in metrics:
        left_out["meteor"] = "it runs in Java, and there is no `java` here"
    if tokeniser == "ptb":
        left_out["ptb"] = (
            "the tokeniser runs in Java, and there is no `java` here; a simple one took its place, "
            "and the scores are close to the published program's but not the same"
        )
        tokeniser = "simple"
    return tokeniser, left_out


def _measure(name: str, true: Mapping, said: Mapping) -> dict[str, tuple[float, Sequence[float]]]:
    if name == "bleu":
        totals, each = _library("bleu.bleu").Bleu(4).compute_score(true, said, verbose=0)
        return {f"bleu_{n + 1}": (totals[n], each[n]) for n in range(4)}
    if name == "rouge_l":
        total, each = _library("rouge.rouge").Rouge().compute_score(true, said)
        return {name: (total, each.tolist())}
    if name == "cider":
        total, each = _library("cider.cider").Cider().compute_score(true, said)
        return {name: (total, each.tolist())}
    meteor = _library("meteor.meteor").Meteor()
    try:
        return {name: meteor.compute_score(true, said)}
    except (OSError, ValueError) as error:
        raise _java("METEOR", str(error)) from error
    finally:
        if meteor.lock.locked():  # after an error it is, and its destructor would wait for ever
            meteor.lock.release()
        meteor.meteor_p.kill()
        meteor.meteor_p.communicate()


def _tokenise(texts: Sequence[str], tokeniser: str) -> list[str]:
    if tokeniser == "none":
        return list(texts)
    if tokeniser == "simple":
        return [simple_tokens(text) for text in texts]
    # the library's own wrapper writes into its folder and depends on the locale
    library = _library("tokenizer.ptbtokenizer")
    folder = pathlib.Path(library.__file__).parent
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(folder / _JAR), *program]
    done = subprocess.run(
        [*command, "-encoding", "UTF-8"],
        input="".join(f"{text}\n" for text in texts).encode(),
        capture_output=True,
        check=False,
    )
    lines = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(lines) != len(texts):
        raise _java("the tokeniser", done.stderr.decode(errors="replace")[-300:])
    words = [line.rstrip().split(" ") for line in lines]
    return [" ".join(w for w in line if w not in library.PUNCTUATIONS) for line in words]


def _line(text: str) -> str:
    """Return a text on one line, without what separates the fields of METEOR."""
    return " ".join(text.replace("|||", " ").split())


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ModuleNotFoundError as error:
        raise errors.SgqlmError(
            "scores of captions need a package that is not installed",
            where=f"pycocoevalcap.{name}",
            fix="pip install -e '.[caption]' in the clone",
            code=errors.RESOURCES,
        ) from error


def _records(records: Any, what: str) -> list[tuple[Hashable, str]]:
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise _wrong(f"the {what} are no list of records", type(records).__name__)
    for number, record in enumerate(records):
        if not isinstance(record, Mapping) or not {"image_id", "caption"} <= set(record):
            raise _wrong("a record has no image_id and caption", f"{what}: record {number}")
    return [(record["image_id"], str(record["caption"])) for record in records]


def _java(what: str, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"{what} of pycocoevalcap failed",
        why=why,
        fix="try `java -version`; Java 8 or later with 2 GB of memory is needed",
        code=errors.RESOURCES,
    )


def _wrong(what: str, where: str) -> errors.SgqlmError:
    return errors.SgqlmError(what, where=where, fix="correct the file or name", code=errors.DATA)
