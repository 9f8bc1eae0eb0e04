"""What the entry point `lmms_eval.models` names: the place of our model, and little else.

lmms-eval loads it at every start, whatever model it runs, so nothing heavy is imported here.
"""

import importlib
import json
from typing import Any

from sgqlm import errors

NAME, CLASS = "sgqlm", "sgqlm.evals.lmms_eval_adapter.Sgqlm"


def manifest() -> Any:
    """Return what lmms-eval's registry takes: the name of the model and the place of its class.

    Raises:
        SgqlmError: lmms-eval is not installed.
    """
    registry = library("models.registry_v2")
    return registry.ModelManifest(model_id=NAME, simple_class_path=CLASS)


def library(name: str) -> Any:
    """Return a module of lmms-eval.

    Raises:
        SgqlmError: it cannot be imported.
    """
    try:
        return importlib.import_module(f"lmms_eval.{name}")
    except ImportError as error:
        raise errors.SgqlmError(
            "lmms-eval is not installed, or cannot be imported",
            where=f"lmms_eval.{name}",
            why=str(error),
            fix="install it as docs/lmms_eval.md says: `.[lmms-eval]`, and no torchvision",
            code=errors.RESOURCES,
        ) from error


def json_object(name: str, text: str) -> dict[str, Any]:
    """Return the JSON object of a model argument; an empty text is an empty one.

    Raises:
        SgqlmError: it is none.
    """
    try:
        value = json.loads(text) if text else {}
    except ValueError as error:
        raise wrong(name, f"{text!r} is no JSON", 'write it as {"data": 4}') from error
    if not isinstance(value, dict):
        raise wrong(name, f"{text!r} is no JSON object", 'write it as {"data": 4}')
    return value


def wrong(argument: str, what: str, fix: str) -> errors.SgqlmError:
    """Return the error that a model argument does not fit."""
    return errors.SgqlmError(what, where=f"--model_args {argument}=...", fix=fix)
