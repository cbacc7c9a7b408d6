"""The films of a run: each looked at before the first step, and the same ever after.

`films.json` in the run's folder holds, of each split that was looked at, the number of
its films, a digest of their names in order, and those that are skipped. A run that goes
on, and its evaluation, skip the same films, mended or not. Training does not go on with
others: each batch would hold other films than in a run that was never stopped.
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
from covjax.data.covidqu import Film
from covjax.data.image_io import shown
from covjax.data.integrity import BadFilm, BadFilms
from covjax.data.source import Films
from covjax.errors import DataError, UsageError
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json
from covjax.train.readable_check import find_bad

FILE = "films.json"
MOST_SKIPPED = 0.01  # of a split

_SKIP = "config.data.on_bad_record = 'skip'"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The films that a run uses.

    Attributes:
      films: of every split; those that were looked at hold whole films alone.
      told: what `films.json` says.
    """

    films: Films
    told: Mapping[str, Any]

    def write(self, workdir: Path) -> None:
        """Writes `films.json`, from the main process."""
        if parallel.is_main():
            write_whole(workdir / FILE, json.dumps(self.told, indent=1) + "\n")


def choose_films(
    config: ml_collections.ConfigDict,
    workdir: Path,
    films: Films,
    splits: Sequence[str],
    *,
    training: bool,
) -> Chosen:
    """Looks at every film and mask of some splits; leaves out what may be left out.

    What a run began with is kept to, whatever `config.data.on_bad_record` says now. An
    evaluation on other films looks at those for themselves, and notes nothing of them.

    Args:
      config: `data` is read.
      workdir: the run's folder, or what will be.
      films: of every split.
      splits: that will be read.
      training: whether the run goes on with them.

    Raises:
      DataError: if a film cannot be used and may not be skipped, or, in training, the
        films are not those that the run began with.
    """
    before = multihost.on_main(lambda: _read(workdir))
    told = dict(before)
    kept, known, bad = multihost.in_all(
        lambda: _look(config, workdir, films, splits, before, training=training)
    )
    _compare_processes(kept, bad)
    for split, some in bad.items():
        if some and split in known:
            raise DataError(
                f"{BadFilms(some)}\n{shown(workdir)} began with what cannot be used now"
                f" ({FILE}): mend it, or begin another run"
            )
    every = [one for some in bad.values() for one in some]
    if every and config.data.on_bad_record == "error":
        raise DataError(
            f"{BadFilms(every)}\nMend or remove them; {_SKIP} leaves out up to"
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
    films: Films,
    splits: Sequence[str],
    before: Mapping[str, Any],
    *,
    training: bool,
) -> tuple[Films, set[str], dict[str, list[BadFilm]]]:
    """Looks at the images of some splits on this host.

    Returns:
      The images of every split, without those that the run skipped before; the splits
      of which these are the run's images; and what cannot be used, by split.
    """
    kept, known = dict(films), set[str]()
    bad: dict[str, list[BadFilm]] = {}
    for split in dict.fromkeys(splits):
        if split in before:
            skipped = {one["film"] for one in before[split]["skipped"]}
            without = [f for f in films[split] if _name(f) not in skipped]
            if before[split]["digest"] == _digest(without):
                known.add(split)
                kept[split] = without
            elif training:
                raise DataError(
                    f"{shown(workdir)} began with {before[split]['films']:,} {split}"
                    f" films, and these {len(without):,} are others ({FILE}):"
                    " put them back, or give another --workdir"
                )
        bad[split] = find_bad(kept[split], config.data)
    return kept, known, bad


def _skip(
    films: Sequence[Film], bad: Sequence[BadFilm], split: str, *, listed: bool
) -> list[Film]:
    """Returns the films without the bad ones, and says which those are.

    Raises:
      DataError: if they are too many.
    """
    if not bad:
        return list(films)
    said = f"{len(bad):,} of {len(films):,} {split} films"
    if len(bad) > MOST_SKIPPED * len(films):
        raise DataError(
            f"{BadFilms(bad)}\nThose are {said}, more than the {MOST_SKIPPED:.0%} that"
            f" {_SKIP} leaves out"
        )
    if parallel.is_main():
        where = f", and listed in {FILE}" if listed else ""
        print(f"{said} are skipped{where}: {BadFilms(bad)}", flush=True)
    left_out = {one.film for one in bad}
    return [film for film in films if film not in left_out]


def _tell(films: Sequence[Film], bad: Sequence[BadFilm]) -> dict[str, Any]:
    skipped = [{"film": _name(one.film), "reason": one.reason} for one in bad]
    return {"films": len(films), "digest": _digest(films), "skipped": skipped}


def _name(film: Film) -> str:
    return f"{film.label}/{film.name}"


def _digest(films: Sequence[Film]) -> str:
    names = "\n".join(map(_name, films))  # a name holds no end of a line
    return hashlib.sha256(names.encode()).hexdigest()


def _compare_processes(films: Films, bad: Mapping[str, Sequence[BadFilm]]) -> None:
    """Refuses to go on, in every process, unless all found the same.

    Raises:
      DataError: naming what this process cannot use, if anything.
    """
    found = [
        (split, _digest(films[split]), [_name(one.film) for one in some])
        for split, some in bad.items()
    ]
    digest = hashlib.sha256(json.dumps(found).encode()).digest()
    digests = parallel.gather(np.frombuffer(digest, np.uint8)[None, None])
    if (digests != digests[0]).any():
        mine = [one for some in bad.values() for one in some]
        raise DataError(
            (f"{BadFilms(mine)}\n" if mine else "")
            + "The processes do not find the same films: each needs a whole copy"
        )


def _read(workdir: Path) -> dict[str, Any]:
    """Returns what `films.json` says; nothing of a run from before there was one."""
    path = workdir / FILE
    try:
        told = read_json(path)
        for of_split in told.values():
            _ = of_split["films"], of_split["digest"]
            _ = [one["film"] for one in of_split["skipped"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a run's list of films ({repr(error)[:200]})"
        ) from None
    return told
