"""Reports of an evaluation: the json contract of the quickstart, and lines for a terminal."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from sgqlm import config
from sgqlm.data import files
from sgqlm.evals import descriptions, joining, prior, scenes, scored

ARMS = ("test", "prior", "no_graph", "shuffled_graph", "edges_permuted")
_SHARES = {"chair_i": "CHAIR_i", "chair_s": "CHAIR_s", "recall": "objects named"}


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
    return files.write(path, json.dumps(report, indent=2, allow_nan=False) + "\n")


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


def world_digest(cfg: config.SceneConfig) -> str:
    """Return a short name of the world that scenes of one number are drawn from."""
    about = dataclasses.asdict(cfg)
    about = {k: v for k, v in about.items() if k != "path" and not k.startswith("num_")}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def score(
    evaluation: Mapping,
    cases: Sequence[scenes.SceneCase],
    answers: Sequence[str],
    settings: config.Config,
) -> scored.Scored:
    """Return an evaluation in the form of the benchmarks, for `sgqlm eval report` and `compare`.

    Args:
        evaluation: what `runner.evaluate_scenes` returns; with `described`, what
            `descriptions.evaluate` returns.
        cases: the scenes.
        answers: of the full model, to the questions of the cases in their order.
        settings: world and stages of training.

    Returns:
        Accuracy; below it the families, the controls, and what descriptions have that is not there.
    """
    digest, stages = world_digest(settings.scenes), settings.train.stages
    asked = [(case.scene.index, at, q) for case in cases for at, q in enumerate(case.questions)]
    keys = [f"{digest}/{index}/{at}" for index, at, _ in asked]
    truth = [question for *_, question in asked]
    items = {
        key: float(prior.normalise(given) == prior.normalise(question.answer))
        for key, question, given in zip(keys, truth, answers, strict=True)
    }
    details = {
        key: {
            "question": question.text,
            "wanted": question.answer,
            "given": given,
            "image": f"{digest}/{index}",
            "kinds": [question.family],
        }
        for key, (index, _, question), given in zip(keys, asked, answers, strict=True)
    }
    rows, groups = _rows(
        evaluation, [(q.family, items[k]) for k, q in zip(keys, truth, strict=True)]
    )
    empty = [key for key, given in zip(keys, answers, strict=True) if not given.strip()]
    described = evaluation.get("described")
    accuracy = sum(items.values()) / len(items) if items else None
    return scored.Scored(
        task="scenes",
        score=accuracy,
        metric="accuracy",
        rows=[("accuracy", accuracy, len(items)), *rows],
        items=items,
        faults=joining.Faults(empty=empty),
        notes=descriptions.notes(described, stages) if described else [],
        groups=groups,
        details=details,
    )


def _rows(evaluation: Mapping, hits: Sequence[tuple[str, float]]):
    """Return the figures below the headline, and the chart of each."""
    parts = {family: [hit for name, hit in hits if name == family] for family in prior.FAMILIES}
    rows: list[tuple[str, float | None, int | None]] = [
        (family, sum(part) / len(part) if part else None, len(part))
        for family, part in parts.items()
    ]
    groups = dict.fromkeys(parts, "families")
    for arm in ARMS[1:]:
        rows.append((arm, evaluation[arm]["accuracy"], len(hits)))
        groups[arm] = "controls"
    described = evaluation.get("described")
    if not described:
        return rows, groups
    for key, title in _SHARES.items():
        for level in descriptions.LEVELS:
            for arm in descriptions.ARMS:
                name, part = f"{title} {level} {arm}", described[arm][level]
                count = part["mentions" if key == "chair_i" else "count"]
                rows.append((name, part[key], count))
                groups[name] = title
    return rows, groups
