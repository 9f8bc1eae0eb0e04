"""The parity gate: an opened model against torch on the same weights and inputs, in float32."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import config, errors
from sgqlm.convert import hf_config, source
from sgqlm.models import clip_vit, vlm

MAX_DIFFERENCE = 1e-4  # of float32 logits, of their largest value where that is above 1
MAX_KL = 1e-6
_SCRIPT = pathlib.Path(__file__).parent / "hf_code" / "reference.py"
_TEXT_TOKENS = 24


class Gap(NamedTuple):
    """How far one quantity is from torch's.

    Attributes:
        name: of the quantity.
        largest: of its absolute values.
        difference: the largest absolute one.
        kl: the largest divergence of two distributions; None for features.
        same_best: share of positions whose best token is the same; None for features.
    """

    name: str
    largest: float
    difference: float
    kl: float | None = None
    same_best: float | None = None

    @property
    def is_equal(self) -> bool:
        """Whether it is as near as float32 lets it be."""
        near = self.difference <= MAX_DIFFERENCE * max(1.0, self.largest)
        return near and (self.kl is None or (self.kl <= MAX_KL and self.same_best == 1.0))


def check(
    model: source.Source, *, kind: str, folders: Mapping[str, pathlib.Path], seed: int = 0
) -> str:
    """Compare an opened model with what torch makes of the same folders.

    Args:
        model: opened; all of it is read, in float32.
        kind: of the import.
        folders: `source`, and `clip`, `llama`, `base` where given.
        seed: of the images and ids.

    Returns:
        A table of the differences.

    Raises:
        SgqlmError: they are too large, or torch or transformers is missing.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise errors.SgqlmError(
                f"{package} is not installed, so there is nothing to compare with",
                fix="pip install -e '.[hf]' in the clone",
                code=errors.RESOURCES,
            )
    found = compare(model, make_job(kind, model, folders), seed=seed)
    table = format_table(found)
    if not all(gap.is_equal for gap in found):
        raise errors.SgqlmError(
            "the imported model does not compute what the original does",
            where=str(folders["source"]),
            why="\n" + table,
            fix="report this with the config.json of the model; nothing was written",
            code=errors.CHECKPOINT,
        )
    return table


def compare(model: source.Source, job: Mapping[str, Any], *, seed: int = 0) -> list[Gap]:
    """Run both programs on random inputs and return the gaps."""
    given = inputs(model.config, job, seed=seed)
    return gaps(model, job, given, reference(job, given))


def reference(job: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what torch makes of the inputs, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="sgqlm-") as folder:
        place = pathlib.Path(folder)
        (place / "job.json").write_text(json.dumps(job))
        cast(Any, np.savez)(place / "in.npz", **given)
        _run(place)
        with np.load(place / "out.npz") as found:
            return {name: found[name] for name in found}


def gaps(
    model: source.Source,
    job: Mapping[str, Any],
    given: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
) -> list[Gap]:
    """Return how far an opened model is from `theirs`."""
    cfg = dataclasses.replace(model.config, compute_dtype="float32")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model.params())
    ours = _ours(params, cfg, job, given)
    kept = {"logits": _valid(given, "expanded" if job["kind"] == "llava" else "ids")}
    return [_gap(name, ours[name], theirs[name], kept.get(name)) for name in sorted(theirs)]


def format_table(found: list[Gap]) -> str:
    """Return the gaps as text."""
    lines = ["compared with torch, float32   largest   difference   KL        same best token"]
    for gap in found:
        end = "" if gap.kl is None else f"   {gap.kl:<8.1e}  {gap.same_best:.1%}"
        lines.append(f"  {gap.name:28s} {gap.largest:8.3f}   {gap.difference:<10.1e}{end}")
    return "\n".join(lines)


def make_job(
    kind: str, model: source.Source, folders: Mapping[str, pathlib.Path]
) -> dict[str, Any]:
    """Return what torch is to run for a kind of import.

    Raises:
        SgqlmError: there is no original program for it.
    """
    at = {name: str(pathlib.Path(folder).absolute()) for name, folder in folders.items()}
    layer = model.config.vision.feature_layer
    if kind == "llava" and "text_config" in hf_config.read_json(folders["source"]):
        token = model.about.get("image_token_id")
        return {"kind": "llava", "folder": at["source"], "image_token_id": token}
    if kind in ("clip", "llama", "llava"):
        towers = {"clip": at.get("clip", at["source"]), "llama": at.get("llama", at["source"])}
        return {"kind": "towers", "layer": layer, **towers}
    if kind == "sq-llava":
        named = {name: str(folder.absolute()) for name, folder in model.folders.items()}
        vision = str(folders["source"] / "Vit-lora")
        adapters = {"text_adapter": at["source"], "vision_adapter": vision}
        towers = {"clip": named["clip"], "llama": named["base"]}
        return {"kind": "towers", "layer": layer, **towers, **adapters}
    if kind == "sgqlm" and model.about.get("format") == "sgqlm":
        return {"kind": "sgqlm", "folder": at["source"]}
    raise errors.SgqlmError(
        f"--verify knows no original program for the kind {kind!r}",
        fix="import without --verify",
    )


def inputs(
    cfg: config.ModelConfig, job: Mapping[str, Any], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return random images and ids for a job, see `hf_code/reference.py`."""
    rng = np.random.default_rng(seed)
    size = cfg.vision.image_size
    images = rng.integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    pixels = np.asarray(clip_vit.normalise(jnp.asarray(images), jnp.float32))
    token = job.get("image_token_id")
    known = min(cfg.llm.vocab_size, token or cfg.llm.vocab_size)
    ids = rng.integers(3, known, (2, _TEXT_TOKENS))
    lengths = np.array([_TEXT_TOKENS, _TEXT_TOKENS - 5])
    ids[1, lengths[1] :] = 0
    found = {"images": images, "pixels": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
    found |= {"ids": ids.astype(np.int64), "ids_lengths": lengths}
    if job["kind"] == "llava":
        head = rng.integers(3, known, (2, 4))
        image = np.full((1, cfg.num_image_tokens), token)
        first = np.concatenate([head[:1], image, ids[:1]], 1)
        second = np.zeros_like(first)
        second[0, : lengths[1]] = ids[1, : lengths[1]]
        found["expanded"] = np.concatenate([first, second]).astype(np.int64)
        found["expanded_lengths"] = np.array([first.shape[1], lengths[1]])
    return found


def _ours(params, cfg, job, inputs) -> dict[str, np.ndarray]:
    model = vlm.Vlm(cfg)
    tokens = inputs["expanded" if job["kind"] == "llava" else "ids"]
    is_image = tokens == job.get("image_token_id", -1)
    rows = params["llm"]["embed"]["embedding"][jnp.where(is_image, 0, tokens)]
    seen = vlm.encode_images(params, cfg, jnp.asarray(inputs["images"]))
    if job["kind"] == "llava":
        visual = vlm.visual_tokens(params, cfg, seen).tokens
        rows = vlm.place(rows, jnp.asarray(is_image), visual[:, None])
    hidden = model.apply({"params": params}, rows, method=lambda m, x: m.llm(x))
    found = {"logits": np.asarray(vlm.head(params, cfg, hidden))}
    return found | {"features": np.asarray(seen)}


def _valid(inputs, key: str) -> np.ndarray:
    return np.arange(inputs[key].shape[1])[None] < inputs[f"{key}_lengths"][:, None]


def _gap(name: str, ours: np.ndarray, theirs: np.ndarray, kept: np.ndarray | None) -> Gap:
    if ours.shape != theirs.shape:
        return Gap(f"{name} {ours.shape}, torch {theirs.shape}", float("inf"), float("inf"))
    if kept is None:
        return Gap(name, float(np.abs(theirs).max()), float(np.abs(ours - theirs).max()))
    ours, theirs = ours[kept].astype(np.float64), theirs[kept].astype(np.float64)
    log_a, log_b = _log_softmax(ours), _log_softmax(theirs)
    kl = float((np.exp(log_b) * (log_b - log_a)).sum(-1).max())
    same = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    largest, difference = float(np.abs(theirs).max()), float(np.abs(ours - theirs).max())
    return Gap(name, largest, difference, max(kl, 0.0), same)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _run(place: pathlib.Path) -> None:
    files = [str(place / name) for name in ("job.json", "in.npz", "out.npz")]
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), *files],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise errors.SgqlmError(
            "the original program failed",
            why=last[0] if last else f"it ended with {done.returncode}",
            fix="import without --verify, or mend its installation",
            code=errors.CHECKPOINT,
        )
