"""Where objects stand and which of them can be joined by a stroke that meets nobody else."""

from collections.abc import Sequence

import numpy as np

Point = Sequence[float]

PATCH = 14.0  # side of a ViT patch: half the centres are pulled to a patch border
NEAR_BORDER = 0.2  # of a patch
CLEARANCE = 1.5  # pixels between a stroke and a third object
SHORTEST = 9.5  # pixels of stroke between two rims
MAX_LINKS = 3  # strokes that end at one object
MAX_COSINE = 0.615  # strokes at one object are at least 52 degrees apart
OUT_DEGREES = ((2, 1), (2, 2), (2, 2, 1))  # relations of each subject: most stand in two


def quantise(pixels: np.ndarray) -> np.ndarray:
    """Round to eighths of a pixel, which float32 holds exactly."""
    return np.round(np.asarray(pixels) * 8.0) / 8.0


def arrange(
    rng: np.random.Generator, radii: np.ndarray, side: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Place discs with little overlap and choose directed links between them.

    Args:
        rng: random stream.
        radii: f64[n] in pixels.
        side: of the square image, pixels.

    Returns:
        Centres f64[n, 2], and (subject, object) index pairs: 3 to 5 where the layout allows it,
        of which at least half the subjects have two.
    """
    gap = 0.93 if rng.random() < 0.3 else 1.06  # of the sum of two radii
    wanted = int(rng.integers(len(OUT_DEGREES)))
    for attempt in range(200):
        # crowded draws are loosened step by step, so that every scene ends
        centres = _place(rng, radii, side, max(0.8, gap - 0.01 * attempt))
        if centres is None:
            continue
        links = _link(rng, centres, radii, OUT_DEGREES[max(wanted - attempt // 8, 0)])
        if links:
            return centres, links
    return _lattice(radii, side), []


def _place(rng, radii: np.ndarray, side: int, gap: float) -> np.ndarray | None:
    centres = np.zeros((len(radii), 2))
    placed: list[int] = []
    for k in np.argsort(-radii, kind="stable"):
        low, high = radii[k] + 1.0, side - radii[k] - 1.0
        points = rng.uniform(low, high, size=(32, 2))
        snapped = (
            np.round(points / PATCH) * PATCH + rng.uniform(-1, 1, (32, 2)) * NEAR_BORDER * PATCH
        )
        points = np.where(rng.random((32, 1)) < 0.6, snapped, points).clip(low, high)
        points = quantise(points)
        apart = np.hypot(*(points[:, None] - centres[placed][None]).transpose(2, 0, 1))
        room = (apart / (radii[placed] + radii[k])).min(1, initial=np.inf)
        fits = np.flatnonzero(room >= gap)
        if not len(fits):
            return None
        some = fits[:3] if gap > 1 else fits[:1]  # the freest of three leaves room for strokes
        centres[k] = points[some[room[some].argmax()]]
        placed.append(int(k))
    return centres


def _link(rng, centres, radii, out_degrees) -> list[tuple[int, int]]:
    """Draw links by chance among the clear pairs; empty when some draws found none."""
    clear = clear_pairs(centres, radii)
    able = np.flatnonzero(clear.sum(1) >= 2)
    if len(able) < len(out_degrees):
        return []
    turns, points = _turns(centres), centres.tolist()
    for _ in range(4):
        subjects = np.repeat(rng.permutation(able)[: len(out_degrees)], out_degrees).tolist()
        targets = {k: rng.permutation(np.flatnonzero(clear[k])).tolist() for k in set(subjects)}
        if links := _complete([], subjects, targets, points, turns):
            return links
    return []


def _complete(links, subjects, targets, points, turns) -> list[tuple[int, int]]:
    """Add a link for each of `subjects` in turn, going back where one finds no target."""
    if len(links) == len(subjects):
        return links
    subject = subjects[len(links)]
    for target in targets[subject]:
        if _fits(subject, target, links, points, turns):
            longer = [*links, (subject, target)]
            if found := _complete(longer, subjects, targets, points, turns):
                return found
    return []


def clear_pairs(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return bool[n, n]: a stroke from i to j is long enough and passes every third object.

    Args:
        centres: f64[n, 2].
        radii: f64[n].
    """
    offset = centres[None] - centres[:, None]  # [i, j] = j - i
    length = np.hypot(offset[..., 0], offset[..., 1])
    unit = offset / np.maximum(length, 1e-9)[..., None]
    along = np.einsum("ijc,ikc->ijk", unit, offset).clip(0, length[..., None])
    nearest = centres[:, None, None] + along[..., None] * unit[:, :, None]
    distance = np.hypot(*np.moveaxis(nearest - centres, -1, 0))
    index = np.arange(len(radii))
    ends = (index[:, None, None] == index) | (index[None, :, None] == index)
    passes = (ends | (distance >= radii + CLEARANCE)).all(-1)
    return passes & (length - radii[:, None] - radii >= SHORTEST)


def crosses(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Tell whether the segments a-b and c-d cut each other."""
    return _side(a, b, c) * _side(a, b, d) < 0 and _side(c, d, a) * _side(c, d, b) < 0


def _side(p: Point, q: Point, r: Point) -> float:
    """Return a number whose sign says on which side of the line p-q the point r lies."""
    return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])


def _fits(subject: int, target: int, links, centres, turns) -> bool:
    for end, other in ((subject, target), (target, subject)):
        partners = [b if a == end else a for a, b in links if end in (a, b)]
        if other in partners or len(partners) >= MAX_LINKS:
            return False
        if any(turns[end][other][p] > MAX_COSINE for p in partners):
            return False
    line = centres[subject], centres[target]
    return not any(crosses(*line, centres[a], centres[b]) for a, b in links)


def _turns(centres: np.ndarray) -> list[list[list[float]]]:
    """Return [i][j][k]: cosine of the angle at i between the rays to j and to k."""
    offset = centres[None] - centres[:, None]
    unit = offset / np.maximum(np.hypot(offset[..., 0], offset[..., 1]), 1e-9)[..., None]
    return np.einsum("ijc,ikc->ijk", unit, unit).tolist()


def _lattice(radii: np.ndarray, side: int) -> np.ndarray:
    """Return a plain raster, for configurations too crowded to be drawn by chance."""
    columns = int(np.ceil(np.sqrt(len(radii))))
    index = np.arange(len(radii))
    cells = np.stack([index % columns, index // columns], 1) + 0.5
    return quantise(cells * side / columns)
