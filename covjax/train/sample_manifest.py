"""The images of a run: each looked at before the first step, and the same ever after.

`samples.json` in the run's folder holds, of each split that was looked at, the number
of its images, a digest of their names in order, and those that are skipped. A run that
goes on, and its evaluation, skip the same images, mended or not. Training does not go
on with
others: each batch would hold other images than in a run that was never stopped.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from covjax import multihost, parallel
from covjax.data.covidqu import Sample
from covjax.data.image_io import shown
from covjax.data.integrity import BadSample, BadSamples
from covjax.data.source import Samples
from covjax.errors import DataError, UsageError
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json
from covjax.train.readable_check import find_bad

FILE = "images.json"
MOST_SKIPPED = 0.01  # of a split

_SKIP = "config.data.on_bad_record = 'skip'"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The images that a run uses.

    Attributes:
      samples: of every split; those that were looked at hold whole images alone.
      told: what `samples.json` says.
    """

    samples: Samples
    told: Mapping[str, Any]

    def write(self, workdir: Path) -> None:
        """Writes `samples.json`, from the main process."""
        if parallel.is_main():
            write_whole(workdir / FILE, json.dumps(self.told, indent=1) + "\n")


def choose_samples(
    config: ml_collections.ConfigDict,
    workdir: Path,
    samples: Samples,
    splits: Sequence[str],
    *,
    training: bool,
) -> Chosen:
    """Looks at every image and mask of some splits; leaves out what may be left out.

    What a run began with is kept to, whatever `config.data.on_bad_record` says now. An
    evaluation on other images looks at those for themselves, and notes nothing of them.

    Args:
      config: `data` is read.
      workdir: the run's folder, or what will be.
      samples: of every split.
      splits: that will be read.
      training: whether the run goes on with them.

    Raises:
      DataError: if an image cannot be used and may not be skipped, or, in training, the
        images are not those that the run began with.
    """
    before = multihost.on_main(lambda: _read(workdir))
    told = dict(before)
    kept, known, bad = multihost.in_all(
        lambda: _look(config, workdir, samples, splits, before, training=training)
    )
    _compare_processes(kept, bad)
    for split, some in bad.items():
        if some and split in known:
            raise DataError(
                f"{BadSamples(some)}\n{shown(workdir)} began with what cannot be used"
                " now"
                f" ({FILE}): mend it, or begin another run"
            )
    every = [one for some in bad.values() for one in some]
    if every and config.data.on_bad_record == "error":
        raise DataError(
            f"{BadSamples(every)}\nMend or remove them; {_SKIP} leaves out up to"
            f" {MOST_SKIPPED:.0%} of a split"
        )
    own = all(split in known for split in bad if split in before)
    for split, some in bad.items():
        noted = own and split not in before
        if split not in known:
            kept[split] = _skip(kept[split], some, split, listed=noted)
        if noted:
            told[split] = _tell(kept[split], some)
    return Chosen(kept, told)


def _look(
    config: ml_collections.ConfigDict,
    workdir: Path,
    samples: Samples,
    splits: Sequence[str],
    before: Mapping[str, Any],
    *,
    training: bool,
) -> tuple[Samples, set[str], dict[str, list[BadSample]]]:
    """Looks at the images of some splits on this host.

    Returns:
      The images of every split, without those that the run skipped before; the splits
      of which these are the run's images; and what cannot be used, by split.
    """
    kept, known = dict(samples), set[str]()
    bad: dict[str, list[BadSample]] = {}
    for split in dict.fromkeys(splits):
        if split in before:
            skipped = {one["image"] for one in before[split]["skipped"]}
            without = [f for f in samples[split] if _name(f) not in skipped]
            if before[split]["digest"] == _digest(without):
                known.add(split)
                kept[split] = without
            elif training:
                raise DataError(
                    f"{shown(workdir)} began with {before[split]['images']:,} {split}"
                    f" images, and these {len(without):,} are others ({FILE}):"
                    " put them back, or give another --workdir"
                )
        bad[split] = find_bad(kept[split], config.data)
    return kept, known, bad


def _skip(
    samples: Sequence[Sample], bad: Sequence[BadSample], split: str, *, listed: bool
) -> list[Sample]:
    """Returns the images without the bad ones, and says which those are.

    Raises:
      DataError: if they are too many.
    """
    if not bad:
        return list(samples)
    said = f"{len(bad):,} of {len(samples):,} {split} images"
    if len(bad) > MOST_SKIPPED * len(samples):
        raise DataError(
            f"{BadSamples(bad)}\nThose are {said}, more than the {MOST_SKIPPED:.0%}"
            " that"
            f" {_SKIP} leaves out"
        )
    if parallel.is_main():
        where = f", and listed in {FILE}" if listed else ""
        print(f"{said} are skipped{where}: {BadSamples(bad)}", flush=True)
    left_out = {one.sample for one in bad}
    return [sample for sample in samples if sample not in left_out]


def _tell(samples: Sequence[Sample], bad: Sequence[BadSample]) -> dict[str, Any]:
    skipped = [{"image": _name(one.sample), "reason": one.reason} for one in bad]
    return {"images": len(samples), "digest": _digest(samples), "skipped": skipped}


def _name(sample: Sample) -> str:
    return f"{sample.label}/{sample.name}"


def _digest(samples: Sequence[Sample]) -> str:
    names = "\n".join(map(_name, samples))  # a name holds no end of a line
    return hashlib.sha256(names.encode()).hexdigest()


def _compare_processes(
    samples: Samples, bad: Mapping[str, Sequence[BadSample]]
) -> None:
    """Refuses to go on, in every process, unless all found the same.

    Raises:
      DataError: naming what this process cannot use, if anything.
    """
    found = [
        (split, _digest(samples[split]), [_name(one.sample) for one in some])
        for split, some in bad.items()
    ]
    digest = hashlib.sha256(json.dumps(found).encode()).digest()
    digests = parallel.gather(np.frombuffer(digest, np.uint8)[None, None])
    if (digests != digests[0]).any():
        mine = [one for some in bad.values() for one in some]
        raise DataError(
            (f"{BadSamples(mine)}\n" if mine else "")
            + "The processes do not find the same images: each needs a whole copy"
        )


def _read(workdir: Path) -> dict[str, Any]:
    """Returns what `samples.json` says; nothing of a run from before there was one."""
    path = workdir / FILE
    try:
        told = read_json(path)
        for of_split in told.values():
            _ = of_split["images"], of_split["digest"]
            _ = [one["image"] for one in of_split["skipped"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a run's list of images ({repr(error)[:200]})"
        ) from None
    return told
