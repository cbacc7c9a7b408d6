"""What is drawn over an image, and what of the image is left to be seen."""

import numpy as np
import pytest

from covjax.predict.overlay import draw_overlay

IMAGE = np.full((64, 64), 100, np.uint8)
BLUE, ORANGE = (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)  # Okabe and Ito


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros_like(IMAGE)
    mask[top:bottom, left:right] = 1
    return mask


LUNGS, SPOT = box(10, 50, 10, 30), box(20, 40, 14, 26)


def is_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == colour).all(axis=-1)


def test_outlines_lie_on_the_edges_of_the_masks():
    drawn = draw_overlay(IMAGE, LUNGS, SPOT)
    for mask, colour in ((LUNGS, BLUE), (SPOT, ORANGE)):
        inner = np.zeros_like(mask)
        inner[1:-1, 1:-1] = (
            mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1]
            & mask[1:-1, :-2] & mask[1:-1, 2:]
        )  # fmt: skip
        assert np.array_equal(is_colour(drawn, colour), (mask & ~inner & 1) > 0)


def test_a_lung_that_is_infected_as_a_whole_has_the_outline_of_the_infection():
    drawn = draw_overlay(IMAGE, LUNGS, LUNGS, opacity=0)
    assert is_colour(drawn, ORANGE).sum() == 2 * 40 + 2 * 18
    assert not is_colour(drawn, BLUE).any()


def test_what_lies_outside_of_the_infection_is_the_image():
    radiograph = np.random.default_rng(0).integers(0, 256, IMAGE.shape, dtype=np.uint8)
    drawn = draw_overlay(radiograph, LUNGS, SPOT)
    rest = (SPOT == 0) & ~is_colour(drawn, BLUE)
    assert (drawn[rest] == radiograph[rest][:, None]).all()


@pytest.mark.parametrize("opacity", [0.0, 0.5, 1.0])
def test_opacity_is_the_share_of_the_colour(opacity):
    drawn = draw_overlay(IMAGE, LUNGS, SPOT, opacity=opacity)
    inside = drawn[21:39, 15:25].astype(float)  # within the outline
    full, half = (
        np.rint((1 - share) * 100 + share * np.array(ORANGE))
        for share in (opacity, opacity / 2)
    )
    is_full = (inside == full).all(axis=-1)
    assert (is_full | (inside == half).all(axis=-1)).all()
    if opacity:  # one diagonal of eight is drawn in full
        assert np.isclose(is_full.mean(), 1 / 8, atol=0.03)


def test_the_hatch_stays_where_it_is_when_the_infection_grows():
    small, large = (
        is_colour(draw_overlay(IMAGE, LUNGS, spot, opacity=1.0), ORANGE)
        for spot in (box(23, 38, 17, 26), SPOT)
    )
    assert np.array_equal(small[25:36, 19:24], large[25:36, 19:24])


def test_an_image_without_infection_has_lungs_alone():
    for infection in (None, np.zeros_like(IMAGE)):
        drawn = draw_overlay(IMAGE, LUNGS, infection)
        assert not is_colour(drawn, ORANGE).any() and is_colour(drawn, BLUE).any()


def test_a_phantom_is_called_one():
    radiograph, lungs = (a.repeat(4, 0).repeat(4, 1) for a in (IMAGE, LUNGS))
    plain = draw_overlay(radiograph, lungs)
    named = draw_overlay(radiograph, lungs, phantom=True)
    changed = (plain != named).any(axis=-1)
    assert changed[:32, :128].sum() > 500 and is_colour(named, (255, 255, 255)).any()
    assert not changed[40:].any()  # the lungs begin there


def test_lines_are_thicker_on_large_images():
    drawn = draw_overlay(
        IMAGE.repeat(16, 0).repeat(16, 1), LUNGS.repeat(16, 0).repeat(16, 1)
    )
    row = is_colour(drawn, BLUE)[30 * 16]
    assert row.sum() in (8, 10)  # two edges of 4 or, as OpenCV centres them, 5 pixels
