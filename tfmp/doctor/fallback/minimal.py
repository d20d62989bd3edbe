"""A smallest set that makes a test pass, in few tests; nothing of Keras here."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def minimal_set(
    items: Sequence[T], is_good: Callable[[tuple[T, ...]], bool], likely: int = 0
) -> list[T] | None:
    """A good set of which no item can be left out.

    The shortest good prefix of the items is found by bisection: its last item is needed beside
    those before it. That item is kept, and the search goes on among those before it until the kept
    ones do alone. Then each is left out once, which changes nothing where a good set stays good
    with more items.

    With n items and a result of k, where more items never make a good set bad, it takes at most
    2 + k (ceil(log2 n) + 3) tests. Of several such sets it finds one that begins early.

    Args:
        items: What to choose from, each once, the likeliest first.
        is_good: The test of a set, which it gets in the order of `items`; no set is tried twice.
        likely: How many of the first items are suspected: they are tried as a whole first.

    Returns:
        The set, in the order of `items`; None where all of them together are not good.

    References:
        Zeller & Hildebrandt 2002, "Simplifying and isolating failure-inducing input", IEEE TSE 28
            (the question, and 1-minimal as the answer's quality).
        Junker 2004, "QuickXplain", AAAI (bisection for what is needed beside what is kept).
    """
    place = {item: index for index, item in enumerate(items)}
    tried: dict[frozenset, bool] = {}

    def good(chosen) -> bool:
        key = frozenset(chosen)
        if key not in tried:
            tried[key] = is_good(tuple(sorted(chosen, key=place.__getitem__)))
        return tried[key]

    if good(()):
        return []
    if not good(items):
        return None
    kept: list[T] = []
    rest = list(items)
    while not good(kept):
        bad, sufficient = 0, len(rest)  # lengths of prefixes
        while sufficient - bad > 1:
            middle = likely if bad < likely < sufficient else (bad + sufficient) // 2
            if good(kept + rest[:middle]):
                sufficient = middle
            else:
                bad = middle
        kept.append(rest[sufficient - 1])
        rest = rest[: sufficient - 1]
    return sorted(_without_spare(kept, good), key=place.__getitem__)


def _without_spare(kept, good):
    """The set without what can be left out."""
    for item in kept:
        fewer = [x for x in kept if x != item]
        if good(fewer):
            return _without_spare(fewer, good)
    return kept
