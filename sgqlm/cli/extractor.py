"""The flags of an entity extractor: one for each setting, for every verb that needs one."""

import argparse
import dataclasses
import typing
from typing import Any

from sgqlm.entities import settings


def add_flags(parser: argparse.ArgumentParser, *, default: str = "regions") -> None:
    """Add `--extractor` and a flag for every field of `settings.ExtractorConfig`.

    A flag that is not given leaves the preset's value.

    Args:
        parser: of the verb.
        default: the preset without `--extractor`.
    """
    group = parser.add_argument_group("entity extractor")
    hints = typing.get_type_hints(settings.ExtractorConfig)
    for field in dataclasses.fields(settings.ExtractorConfig):
        text = field.metadata["help"].replace("%", "%%")
        if field.name == "name":
            group.add_argument("--extractor", default=default, help=f"{text} ({default})")
            continue
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=f"extractor_{field.name}",
            default=None,
            help=f"{text} ({_shown(field.default)})",
            **_reading(hints[field.name]),
        )


def chosen(args: argparse.Namespace) -> settings.ExtractorConfig:
    """Return the settings that the flags of `add_flags` name.

    Raises:
        SgqlmError: there is no such preset, or a value does not fit.
    """
    names = [field.name for field in dataclasses.fields(settings.ExtractorConfig)]
    given = {name: getattr(args, f"extractor_{name}", None) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(settings.preset(args.extractor), **changes)


def _reading(hint: Any) -> dict[str, Any]:
    """Return how argparse reads a value of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint in (int, float):
        return {"type": hint, "metavar": "N"}
    if hint is str:
        return {"metavar": "TEXT"}
    return {"type": lambda text: tuple(text.split(",")), "metavar": "A,B"}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "none" if value == "" else repr(value) if value != str(value).strip() else str(value)
