"""The data source of a run: which images its config means, and where they lie."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covjax.data.covidqu import SPLITS, Sample, data_root, is_phantom, list_samples
from covjax.data.image_io import shown
from covjax.errors import DataError

Samples = dict[str, list[Sample]]  # of every split


def find_samples(config: Any) -> tuple[Path, Samples]:
    """Returns where the data is, and the images of every split.

    Phantoms are made on the first call. Of Train, `config.data.train_share` is kept.

    Raises:
      UsageError: if there is no data, with what was looked for, where, and the two
        ways on.
    """
    if config.data.phantom_images:
        from covjax.data.phantom.dataset import write_phantoms

        counts: dict[str, int] = dict(
            zip(SPLITS, config.data.phantom_images, strict=True)
        )
        size = config.data.image_size
        name = "-".join(map(str, [*counts.values(), f"{size}px"]))
        root = Path("data") / f"phantom-{name}"
        write_phantoms(root, samples=counts, size=size, seed=0)
    else:
        root = data_root(config.data.root, Path.cwd())
        if shown(root) != str(root):
            raise DataError(f"{shown(root)}: a folder that no run can name: rename it")
    try:
        samples = {
            split: list_samples(root, config.data.task, split) for split in SPLITS
        }
    except DataError as error:
        if os.path.isdir(root):
            raise
        raise DataError(
            f"no data: {error}.\nGet it (python -m covjax.data.download, then set"
            " COVJAX_DATA or --config.data.root), or try the small model on synthetic"
            f" samples: --config=configs/{config.data.task}.py:phantom"
        ) from None
    samples["Train"] = keep_share(samples["Train"], config.data.train_share)
    return root, samples


def keep_share(samples: Sequence[Sample], share: float) -> list[Sample]:
    """Keeps a share of each class, and of a class that has images at least one.

    Which images they are depends on their names alone, by a hash: they are the same for
    every run, and those of a smaller share are among those of a larger one.

    Args:
      samples: of one split, which keep their order.
      share: above 0, at most 1.
    """
    counts = Counter(sample.label for sample in samples)
    wanted = {label: max(1, round(share * n)) for label, n in counts.items()}
    taken, kept = Counter[str](), set[Sample]()
    for sample in sorted(samples, key=_hash):
        if taken[sample.label] < wanted[sample.label]:
            taken[sample.label] += 1
            kept.add(sample)
    return [sample for sample in samples if sample in kept]


def _hash(sample: Sample) -> bytes:
    return hashlib.sha256(sample.name.encode()).digest()


def phantom_prefix(root: Path) -> str:
    """Returns "PHANTOM " for a set of synthetic images, else nothing."""
    return "PHANTOM " if is_phantom(root) else ""
