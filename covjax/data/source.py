"""The data source of a run: which films its config means, and where they lie."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covjax.data.covidqu import SPLITS, Film, data_root, is_phantom, list_films
from covjax.data.image_io import shown
from covjax.errors import DataError

Films = dict[str, list[Film]]  # of every split


def find_films(config: Any) -> tuple[Path, Films]:
    """Returns where the data is, and the films of every split.

    Phantoms are made on the first call. Of Train, `config.data.train_share` is kept.

    Raises:
      UsageError: if there is no data, with what was looked for, where, and the two
        ways on.
    """
    if config.data.phantom_films:
        from covjax.data.phantom.dataset import write_phantoms

        counts: dict[str, int] = dict(
            zip(SPLITS, config.data.phantom_films, strict=True)
        )
        size = config.data.image_size
        name = "-".join(map(str, [*counts.values(), f"{size}px"]))
        root = Path("data") / f"phantom-{name}"
        write_phantoms(root, films=counts, size=size, seed=0)
    else:
        root = data_root(config.data.root, Path.cwd())
        if shown(root) != str(root):
            raise DataError(f"{shown(root)}: a folder that no run can name: rename it")
    try:
        films = {split: list_films(root, config.data.task, split) for split in SPLITS}
    except DataError as error:
        if os.path.isdir(root):
            raise
        raise DataError(
            f"no data: {error}.\nGet it (python -m covjax.data.download, then set"
            " COVJAX_DATA or --config.data.root), or try the small model on synthetic"
            f" films: --config=configs/{config.data.task}.py:phantom"
        ) from None
    films["Train"] = keep_share(films["Train"], config.data.train_share)
    return root, films


def keep_share(films: Sequence[Film], share: float) -> list[Film]:
    """Keeps a share of each class, and of a class that has films at least one.

    Which films they are depends on their names alone, by a hash: they are the same for
    every run, and those of a smaller share are among those of a larger one.

    Args:
      films: of one split, which keep their order.
      share: above 0, at most 1.
    """
    counts = Counter(film.label for film in films)
    wanted = {label: max(1, round(share * n)) for label, n in counts.items()}
    taken, kept = Counter[str](), set[Film]()
    for film in sorted(films, key=_hash):
        if taken[film.label] < wanted[film.label]:
            taken[film.label] += 1
            kept.add(film)
    return [film for film in films if film in kept]


def _hash(film: Film) -> bytes:
    return hashlib.sha256(film.name.encode()).digest()


def phantom_prefix(root: Path) -> str:
    """Returns "PHANTOM " for a set of synthetic films, else nothing."""
    return "PHANTOM " if is_phantom(root) else ""
