"""Whether all films of a split can be read, told before anything is done with them."""

import functools
from collections.abc import Sequence
from typing import Any

from covjax.data.covidqu import Film, read_film
from covjax.data.integrity import BadFilm, BadFilms, read_all
from covjax.data.pipeline import ReadFilms, make_reader
from covjax.runtime.progress import progress_bar


def find_bad(films: Sequence[Film], data: Any) -> list[BadFilm]:
    """Returns the films of which a file cannot be used.

    Films of which there are packed copies have been read. Where there are none, they
    are made, unless a film is bad; without a cache, all films are read and dropped.

    Args:
      films: of one split.
      data: `config.data`; `cache` and `image_size` are read.

    Raises:
      DataError: if the packed copies cannot be made or opened.
    """
    try:
        if isinstance(make_reader(films, data), ReadFilms):
            read = functools.partial(read_film, size=data.image_size)
            with progress_bar("reading films") as progress:
                for _ in read_all(films, read, progress):
                    pass
    except BadFilms as found:
        return found.bad
    return []
