"""Reports of an evaluation: the json contract of the quickstart, and lines for a terminal."""

import json
import os
import pathlib
from collections.abc import Mapping

from sgqlm.evals import prior

ARMS = ("test", "prior", "no_graph", "shuffled_graph", "edges_permuted")


def build(evaluation: Mapping, *, seconds: float, stages: Mapping[str, Mapping]) -> dict:
    """Put together the content of `report.json`.

    Args:
        evaluation: what `runner.evaluate_scenes` returns.
        seconds: of the whole run.
        stages: name -> `steps`, `first_loss` and `last_loss`.

    Returns:
        `seconds`, `stages`, the five arms and `asked`, in this order.
    """
    kept = {
        name: {key: stage[key] for key in ("steps", "first_loss", "last_loss")}
        for name, stage in stages.items()
    }
    parts = {name: evaluation[name] for name in (*ARMS, "asked")}
    return {"seconds": round(seconds, 1), "stages": kept, **parts}


def write(path: str | os.PathLike, report: Mapping) -> pathlib.Path:
    """Write a report as json (complete or not at all), making its folder; return its path."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, target)
    return target


def lines(evaluation: Mapping) -> list[str]:
    """Return an evaluation as lines of text: one per arm, one about the asked questions."""
    columns = ("accuracy", *prior.FAMILIES)
    out = [f"{'':16}" + "".join(f"{name:>12}" for name in columns)]
    for arm in ARMS:
        values = (evaluation[arm]["accuracy"], *evaluation[arm]["by_family"].values())
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        out.append(f"{arm:16}" + "".join(f"{cell:>12}" for cell in cells))
    asked = evaluation["asked"]
    out.append(
        f"asked {asked['questions']} questions: {asked['distinct_share']:.2f} distinct, "
        f"{asked['well_formed_share']:.2f} well formed, "
        f"{asked['well_formed_share_shuffled']:.2f} with another scene's graph"
    )
    return out
