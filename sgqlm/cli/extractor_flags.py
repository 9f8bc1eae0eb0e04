"""The settings of an entity extractor on the command line: a flag for every field."""

import argparse
import dataclasses
import pathlib
import typing

from sgqlm import errors
from sgqlm.entities import settings

_PATHS = (
    *("tagger_weights", "detector_weights", "segmenter_weights"),
    *("tags", "tag_thresholds", "tags_exclude"),
)
_REGIONS_ON = ("auto", "cpu", "cuda")  # the values of --device that may be left in a command
# all that `regions` makes use of; where it runs and in which numbers is the same everywhere
_REGIONS = ("name", "max_entities", "max_area", "mask_iou", "views", "device", "dtype")


def add(parser: argparse.ArgumentParser, *, default: str = "regions") -> None:
    """Add `--extractor` and a flag for every other setting, such as `--box-threshold`.

    Args:
        parser: of a verb.
        default: preset that is taken without `--extractor`.
    """
    group = parser.add_argument_group("settings of the extractor")
    hints = typing.get_type_hints(settings.ExtractorConfig)
    for field in dataclasses.fields(settings.ExtractorConfig):
        text = field.metadata["help"]
        if field.name == "name":
            group.add_argument("--extractor", default=default, help=f"{text} ({default})")
        elif hints[field.name] is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(_flag(field.name), action=action, help=text)
        else:
            kind = hints[field.name] if hints[field.name] in (int, float) else str
            group.add_argument(
                _flag(field.name), type=kind, help=f"{text} ({_shown(field.default)})"
            )


def read(args: argparse.Namespace) -> settings.ExtractorConfig:
    """Return the settings: those of the preset, changed by the flags that were given.

    Paths that exist are made absolute, since a worker may run in another folder.

    Raises:
        SgqlmError: a value does not fit, or the extractor makes no use of a flag.
    """
    fields = [field.name for field in dataclasses.fields(settings.ExtractorConfig)]
    given = {name: getattr(args, name, None) for name in fields if name != "name"}
    given = {name: value for name, value in given.items() if value is not None}
    for name in _PATHS:
        if given.get(name) and pathlib.Path(given[name]).exists():
            given[name] = str(pathlib.Path(given[name]).absolute())
    if "views" in given:
        given["views"] = tuple(word.strip() for word in given["views"].split(",") if word.strip())
        if not given["views"]:
            raise errors.SgqlmError(
                "no view of patches is named", where="--views", fix="leave the flag out"
            )
    made = dataclasses.replace(settings.preset(args.extractor), **given)
    if made.name == "regions" and made.device not in _REGIONS_ON:
        raise errors.SgqlmError(
            f"the extractor regions does not run on {made.device!r}",
            where="--device",
            fix="leave the flag out: regions runs on the CPU",
        )
    for part, useless in _useless(made).items():
        for name in useless & given.keys():
            raise errors.SgqlmError(
                f"{part} makes no use of {_flag(name)}", where=_flag(name),
                fix="leave the flag out, or choose another extractor or part",
            )  # fmt: skip
    return made


def _useless(made: settings.ExtractorConfig) -> dict[str, set[str]]:
    """Return the settings that change nothing, by the extractor or part that makes no use of them.

    What would be ignored is refused: who gives it expects that it does something.
    """
    if made.name == "regions":
        fields = {field.name for field in dataclasses.fields(made)}
        return {"the extractor regions": fields - set(_REGIONS)}
    found: dict[str, set[str]] = {}
    if made.name == "sam3":
        found["sam3"] = {"detector", "detector_weights", "separator", "segmenter"}
    elif made.segmenter == "box":
        found["the segmenter box"] = {"segmenter_weights"}
    if made.tagger in ("fixed", "none"):
        found[f"the tagger {made.tagger}"] = {"tagger_weights", "tag_thresholds"}
    if made.detector == "owlv2":
        found["owlv2"] = {"separator"}
    return found


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _shown(default: object) -> str:
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return (text or "none").replace("%", "%%")
