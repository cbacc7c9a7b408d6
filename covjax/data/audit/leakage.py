"""Which splits share an image, and where that lets a score look better than it is."""

import collections
import itertools
from typing import Any, NamedTuple

from covjax.data import covidqu


class Place(NamedTuple):
    """Where an image stands; `str(place)` is "infection/Test/COVID-19/covid_1.png"."""

    task: str
    split: str
    label: str
    name: str

    def __str__(self) -> str:
        """Joins the four with slashes."""
        return "/".join(self)

    @property
    def part(self) -> str:
        """Tree and split: "infection/Test"."""
        return f"{self.task}/{self.split}"


def is_leak(earlier: str, later: str) -> bool:
    """Tells whether images of one part are seen before another part is scored.

    An image is seen when it is trained on (Train) or selected on (Val). Stage 2 starts
    from the weights of stage 1, so that what the lung tree shows is seen before the
    infection tree is; nothing goes the other way.

    Args:
      earlier: tree and split, "lung/Train".
      later: the same, "infection/Test".
    """
    (stage, split), (later_stage, later_split) = _rank(earlier), _rank(later)
    return stage <= later_stage and split < later_split


def find_leaks(
    pictures: list[list[Place]], near: list[tuple[int, int, float]]
) -> dict[str, Any]:
    """Sorts identical and near-identical images by where they stand.

    Args:
      pictures: for every different picture, all the places where it stands.
      near: (i, j, correlation) of pictures that look the same; i and j count in
        `pictures`.

    Returns:
      "identical", "near" and "seen_before", as `covjax.data.audit.audit` has them.
    """
    counts = {"identical": collections.Counter(), "near": collections.Counter()}
    seen: dict[str, dict[str, set[Place]]] = {}

    def add(kind: str, a: Place, b: Place) -> None:
        a, b = sorted((a, b), key=lambda place: _rank(place.part))
        counts[kind][a.part, b.part] += 1
        if is_leak(a.part, b.part):
            kinds = seen.setdefault(b.part, {k: set() for k in counts})
            kinds[kind].add(b)

    identical, alike = [], []
    for places in pictures:
        for a, b in itertools.combinations(places, 2):
            add("identical", a, b)
        if _several_splits(places):
            identical.append({"images": [str(place) for place in places]})
    for i, j, correlation in near:
        for a, b in itertools.product(pictures[i], pictures[j]):
            add("near", a, b)
        if _several_splits(pictures[i] + pictures[j]):
            first, second = ([str(place) for place in pictures[k]] for k in (i, j))
            couple = {"first": first, "second": second}
            alike.append({**couple, "correlation": round(correlation, 3)})
    alike.sort(key=lambda couple: (-couple["correlation"], couple["first"]))
    return {
        "identical": {"pairs": _rows(counts["identical"]), "across_splits": identical},
        "near": {"pairs": _rows(counts["near"]), "across_splits": alike},
        "seen_before": {
            part: {kind: len(places) for kind, places in seen[part].items()}
            for part in sorted(seen, key=_rank)
        },
    }


def _rank(part: str) -> tuple[int, int]:
    task, split = part.split("/")
    return covidqu.TASKS.index(task), covidqu.SPLITS.index(split)


def _several_splits(places: list[Place]) -> bool:
    return len({place.split for place in places}) > 1


def _rows(counter: collections.Counter) -> list[dict[str, Any]]:
    """Pairs counted by two parts, in the order of the trees and splits."""
    return [
        {"parts": [a, b], "pairs": pairs, "leak": is_leak(a, b)}
        for (a, b), pairs in sorted(
            counter.items(), key=lambda item: (_rank(item[0][0]), _rank(item[0][1]))
        )
    ]
