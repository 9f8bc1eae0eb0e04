"""Which relations are asked for, so that no predicate floods the questions."""

import collections
from collections.abc import Iterable

from sgqlm.data.relations import conversations, types


def count(items: Iterable[types.Annotated], settings: conversations.Settings):
    """Return the number of relations of each predicate, in canonical form."""
    found: collections.Counter[str] = collections.Counter()
    for item in items:
        found.update(settings.synonyms(relation.predicate) for relation in item.relations)
    return found


def choose(
    items: Iterable[types.Annotated], settings: conversations.Settings
) -> dict[int, list[int]]:
    """Choose at most `max_per_predicate` relations of each predicate.

    Every relation draws a number from (seed, image, its index); the lowest of each predicate stay,
    so the choice does not depend on the order of the images.

    Args:
        items: images, numbered as they come.
        settings: limit, seed and synonyms.

    Returns:
        Number of the image -> indices of its chosen relations, in order.
    """
    drawn: dict[str, list[tuple[float, int, int]]] = collections.defaultdict(list)
    limit = settings.max_per_predicate
    for row, item in enumerate(items):
        name = item.image_id or item.key
        for index, relation in enumerate(item.relations):
            entries = drawn[settings.synonyms(relation.predicate)]
            mark = conversations.draw(settings.seed, name, "balance", index)
            entries.append((mark, row, index))
            if limit and len(entries) >= 2 * limit + 1000:
                entries.sort()
                del entries[limit:]
    chosen: dict[int, list[int]] = collections.defaultdict(list)
    for entries in drawn.values():
        for _, row, index in sorted(entries)[: limit or None]:
            chosen[row].append(index)
    return {row: sorted(indices) for row, indices in chosen.items()}
