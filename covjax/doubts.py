"""What makes one doubt that a film is a frontal chest film, or its lungs were found."""

import numpy as np

from covjax.data.masks import areas

# Published lungs are all of frontal chest films. They take 4.5 to 60 % of the film, in
# two areas; of 1,398 films in all but one the smaller has .3 of the larger or more.
_LEAST, _MOST = 0.04, 0.62
_SMALLER = 0.25
_CONTRAST = 40  # levels of 255 between the 1st and the 99th percentile
_ELONGATED = 1.8


def doubt(film: np.ndarray, lungs: np.ndarray) -> list[str]:
    """Says in a few words each what speaks against a film, or its lungs.

    Args:
      film: uint8 [H, W].
      lungs: that were found, uint8 [H, W] in {0, 1}.
    """
    told = []
    long, short = max(film.shape), min(film.shape)
    if long > _ELONGATED * short:
        told.append(f"{film.shape[1]} x {film.shape[0]} pixels")
    step = 1 + short // 256
    dark, bright = np.percentile(film[::step, ::step], [1, 99])
    if bright - dark < _CONTRAST:
        told.append("little contrast")
    share = lungs.mean()
    sizes = np.sort(areas(lungs)[1])[::-1]
    if not len(sizes):
        told.append("no lungs found")
    elif not _LEAST <= share <= _MOST:
        told.append(f"lungs of {share:.0%} of the film")
    elif len(sizes) < 2:
        told.append("one area in place of two lungs")
    elif sizes[1] < _SMALLER * sizes[0]:
        told.append(f"one lung of {sizes[1] / sizes[0]:.0%} of the other")
    if told:
        told[-1] += ": not a frontal chest film?"
    return told
