"""The scene world: what stands where, what relates to what, and what a detector sees of it.

A scene is a pure function of (configuration, split, index). All its numbers are exact in float32,
so that a record gives back the very scene it was made from.
"""

import dataclasses
import hashlib

import numpy as np

from sgqlm import config, errors
from sgqlm.data import graphs
from sgqlm.scenes import layout

SIZES = ("small", "medium", "large")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped")
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "diamond",
    "hexagon",
    "cross",
    "heart",
    "moon",
    "ring",
    "arrow",
    "bar",
)
ATTRIBUTES = {"size": SIZES, "colour": COLOURS, "texture": TEXTURES, "shape": SHAPES}
PREDICATES = ("pointing at", "looking at", "chasing", "holding", "guarding")

MAX_OBJECTS = 12
DISTINCT = 5  # different colours and shapes a scene has at least: 4 are left beside any object
SPATIAL_MARGIN = 0.06  # share of the side below which two centres are neither left nor right
FREE_TURN = ("arrow", "bar", "moon")  # shapes that stay what they are however they are turned


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object; x, y and radius in pixels, angle in degrees, y downwards."""

    size: str
    colour: str
    texture: str
    shape: str
    x: float
    y: float
    radius: float
    angle: int

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Size, colour, texture, shape: the order in which a noun phrase names them."""
        return self.size, self.colour, self.texture, self.shape


@dataclasses.dataclass(frozen=True)
class Relation:
    """`subject` is `predicate` `object`; both are indices into the scene's objects."""

    subject: int
    predicate: str
    object: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """A whole scene. Later objects lie in front of earlier ones."""

    split: str
    index: int
    image_size: int
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]


def generator(purpose: str, split: str, index: int, seed: int = 0) -> np.random.Generator:
    """Return the random stream of one purpose of one scene, independent of all others."""
    key = hashlib.sha256(f"{purpose}|{split}|{index}|{seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))


def make_scene(cfg: config.SceneConfig, split: str, index: int) -> Scene:
    """Draw a scene.

    Colour and shape together name one object of a scene; at least `DISTINCT` colours and shapes
    occur (all of them different where a scene has fewer objects). Relations are drawn after the
    objects and independently of what the objects are.

    Args:
        cfg: number and size of the objects, side of the image.
        split: name of the split, part of the seed.
        index: position in the split, part of the seed.

    Returns:
        The scene.

    Raises:
        SgqlmError: the numbers of objects cannot be.
    """
    if not 1 <= cfg.min_objects <= cfg.max_objects <= MAX_OBJECTS:
        raise errors.SgqlmError(
            f"a scene cannot have {cfg.min_objects} to {cfg.max_objects} objects",
            where="scenes.min_objects, scenes.max_objects",
            fix=f"give 1 <= min_objects <= max_objects <= {MAX_OBJECTS}",
        )
    rng = generator("scene", split, index)
    side = cfg.image_size
    num = int(rng.integers(cfg.min_objects, cfg.max_objects + 1))
    colours, shapes = _kinds(rng, num)
    sizes = rng.integers(len(SIZES), size=num)
    textures = rng.integers(len(TEXTURES), size=num)
    spread = (cfg.max_radius - cfg.min_radius) / (len(SIZES) - 1)
    share = cfg.min_radius + spread * (sizes + rng.uniform(-0.15, 0.15, size=num))
    radii = layout.quantise(side * share.clip(cfg.min_radius, cfg.max_radius))
    centres, links = layout.arrange(rng, radii, side)
    objects = tuple(
        SceneObject(
            SIZES[sizes[k]],
            COLOURS[colours[k]],
            TEXTURES[textures[k]],
            SHAPES[shapes[k]],
            float(centres[k, 0]),
            float(centres[k, 1]),
            float(radii[k]),
            int(
                rng.integers(-180, 180) if SHAPES[shapes[k]] in FREE_TURN else rng.integers(-9, 10)
            ),
        )
        for k in range(num)
    )
    return Scene(split, index, side, objects, _relations(rng, links))


def region_words(scene: Scene, k: int) -> tuple[str, str, str, str]:
    """Return size, colour, texture and shape of object `k`: the labels of its region."""
    return scene.objects[k].words


def spatial(scene: Scene, a: int, b: int) -> tuple[str, ...]:
    """Return which of left of, right of, above, below object `a` clearly is with respect to `b`."""
    first, second = scene.objects[a], scene.objects[b]
    margin = SPATIAL_MARGIN * scene.image_size
    dx, dy = first.x - second.x, first.y - second.y
    named = (
        ("left of", -dx),
        ("right of", dx),
        ("above", -dy),
        ("below", dy),
    )
    return tuple(name for name, distance in named if distance >= margin)


def detect(
    scene: Scene, id_mask: np.ndarray, cfg: config.SceneConfig
) -> tuple[graphs.Entities, np.ndarray]:
    """Return what a detector finds: objects missed, objects invented, boxes and masks shifted.

    Args:
        scene: the scene, which also seeds the noise.
        id_mask: uint8[h, w] of `render.draw`; k + 1 where object k is visible.
        cfg: shares of missed and invented objects; jitter as a share of a box's sides.

    Returns:
        The entities in random order without labels, and int32[n] with the object behind each
        entity, -1 where there is none.
    """
    rng = generator("detect", scene.split, scene.index)
    masks, truth = [], []
    for k in range(len(scene.objects)):
        missed, invented = rng.random(2) < (cfg.missed, cfg.spurious)
        shift = rng.normal(scale=cfg.box_jitter, size=2)
        if not missed:
            masks.append(_shifted(id_mask == k + 1, shift))
            truth.append(k)
        if invented:
            masks.append(_blob(rng, id_mask.shape, scene.image_size, cfg))
            truth.append(-1)
    kept = [i for i, mask in enumerate(masks) if mask.any()]
    order = [kept[i] for i in rng.permutation(len(kept))]
    if not order:
        return graphs.Entities.empty(id_mask.shape), np.zeros(0, np.int32)
    truth = np.array([truth[i] for i in order], np.int32)
    noise = rng.normal(scale=0.1, size=len(order))
    scores = np.clip(np.where(truth < 0, 0.5, 0.8) + noise, 0.05, 0.99).astype(np.float32)
    entities = graphs.Entities(
        masks=np.stack([masks[i] for i in order]),
        boxes=np.stack([mask_box(masks[i]) for i in order]),
        labels=[],
        scores=scores,
        size=tuple(id_mask.shape),
    )
    return entities, truth


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Return f32[4], the box x0, y0, x1, y1 (exclusive) around a non-empty bool[h, w]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _kinds(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw colours and shapes; later objects mostly repeat, but never both of another's."""
    while True:
        drawn = []
        for values in (COLOURS, SHAPES):
            order = rng.permutation(len(values))
            distinct = min(DISTINCT, num, len(values))
            repeats = order[rng.integers(2, size=num - distinct)]
            fresh = rng.integers(len(values), size=num - distinct)
            extra = np.where(rng.random(num - distinct) < 0.6, repeats, fresh)
            drawn.append(rng.permutation(np.concatenate([order[:distinct], extra])))
        colours, shapes = drawn
        if len(set(zip(colours.tolist(), shapes.tolist(), strict=True))) == num:
            return colours, shapes


def _relations(rng: np.random.Generator, links: list[tuple[int, int]]) -> tuple[Relation, ...]:
    """Give every link a predicate that neither its subject nor its object has in that role."""
    relations: list[Relation] = []
    for subject, target in links:
        used = {r.predicate for r in relations if r.subject == subject or r.object == target}
        free = [p for p in PREDICATES if p not in used]
        relations.append(Relation(subject, free[int(rng.integers(len(free)))], target))
    return tuple(relations)


def _shifted(mask: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Move a mask by a share of its box, rounded to pixels; what leaves the image is lost."""
    if not mask.any():
        return mask
    x0, y0, x1, y1 = mask_box(mask)
    dx, dy = np.rint(shift * (x1 - x0, y1 - y0)).astype(int)
    rows, columns = np.nonzero(mask)
    rows, columns = rows + dy, columns + dx
    height, width = mask.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = np.zeros_like(mask)
    moved[rows[inside], columns[inside]] = True
    return moved


def _blob(rng, shape, side: int, cfg: config.SceneConfig) -> np.ndarray:
    """Draw an ellipse anywhere: an entity that is nothing."""
    x, y = rng.uniform(0.1, 0.9, size=2) * side
    rx, ry = rng.uniform(cfg.min_radius, cfg.max_radius, size=2) * side
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 <= 1.0
