"""What is said of films that are no frontal chest films, and of lungs that are none."""

import numpy as np
import pytest

from covjax.doubts import doubt

FILM = np.tile(np.arange(200, dtype=np.uint8), (200, 1))


def lungs(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros_like(FILM)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


PAIR = lungs((40, 160, 30, 80), (50, 150, 110, 170))


def test_a_chest_film_raises_no_doubts():
    assert doubt(FILM, PAIR) == []


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (lungs(), "no lungs found: not a frontal chest film?"),
        (lungs((40, 160, 30, 80)), "one area in place of two lungs: not a frontal"),
        (lungs((40, 60, 30, 50), (40, 60, 110, 130)), "lungs of 2% of the film"),
        (lungs((0, 190, 0, 95), (0, 190, 100, 195)), "lungs of 90% of the film"),
        (lungs((40, 160, 30, 80), (50, 60, 110, 150)), "one lung of 7% of the other"),
    ],
)
def test_lungs_that_are_none_are_doubted(mask, said):
    (told,) = doubt(FILM, mask)
    assert told.startswith(said) and told.endswith("not a frontal chest film?")


def test_films_that_are_none_are_doubted():
    (told,) = doubt(FILM // 10 + 100, PAIR)
    assert told.startswith("little contrast")
    (told,) = doubt(FILM.T[:, :90], PAIR[:, ::2][:, :90])
    assert told.startswith("90 x 200 pixels")
