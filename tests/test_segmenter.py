"""Both networks in a row, at the size of any image.

The networks hand every pixel on (plain_network.py), so that NumPy knows what they find.
"""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image

from covjax.errors import UsageError
from covjax.metrics.operating_point import OperatingPoint
from covjax.predict.postprocess import Origin
from covjax.predict.segmenter import Segmenter
from plain_network import (
    POINTS,
    SIDE,
    draw_image,
    make_config,
    make_weights,
    probabilities,
)

IMAGE, LUNGS, SPOT = draw_image()
SQUARE = np.ones((3, 3), np.uint8)


@pytest.fixture(scope="module")
def both() -> Segmenter:
    return Segmenter(make_weights("lung"), make_weights("infection"))


def look(segmenter: Segmenter, radiographs: list[np.ndarray]):
    """Eight devices share a batch."""
    return segmenter.look(radiographs + radiographs[-1:] * (8 - len(radiographs)))[
        : len(radiographs)
    ]


def test_infection_is_found_within_the_lungs_that_were_found(both):
    (seen,) = look(both, [IMAGE])
    # The spot is a hole of what is dark: filled, it is part of the lungs. All else that
    # is bright is black to the second network, whose probability is .02 there.
    assert np.array_equal(both.points.lungs_of(seen, IMAGE.shape), LUNGS)
    assert np.array_equal(both.points.infection_of(seen, IMAGE.shape), SPOT)
    assert seen.levels is not None
    expected = 255 * probabilities(IMAGE * LUNGS, "infection")
    assert np.abs(seen.levels - expected).max() <= 0.5 + 1e-3
    # No head tells: the surest pixel of 256.
    assert seen.presence == pytest.approx(seen.levels.max() / 255)


def test_what_a_presence_head_says_is_a_probability_that_gates_the_mask():
    config = make_config("infection")
    config.model.presence_head = True
    weights = make_weights("infection", config)
    weights.trained.state.params["presence"]["bias"][:] = np.log(3)  # of odds 3 : 1
    segmenter = Segmenter(make_weights("lung"), weights)
    (seen,) = look(segmenter, [IMAGE])
    assert seen.presence == pytest.approx(0.75)
    for gate, pixels in ((0.74, SPOT.sum()), (0.76, 0)):
        point = OperatingPoint(0.7, presence=gate)
        assert segmenter.points.infection_of(seen, IMAGE.shape, point).sum() == pixels


def test_images_of_a_batch_do_not_meet(both):
    turned = np.ascontiguousarray(IMAGE[:, ::-1])
    first, second = look(both, [IMAGE, turned])
    assert np.array_equal(both.points.infection_of(first, IMAGE.shape), SPOT)
    assert np.array_equal(both.points.infection_of(second, IMAGE.shape), SPOT[:, ::-1])


def test_lungs_are_told_beside_the_image_where_the_run_was_trained_so():
    config = make_config("infection", roi_as="channel")
    segmenter = Segmenter(make_weights("lung"), make_weights("infection", config))
    (seen,) = look(segmenter, [IMAGE])
    # The network sees the whole image in its first channel: the body is above .5, .82.
    assert np.abs(seen.levels - 255 * probabilities(IMAGE, "infection")).max() < 1


def test_a_run_of_whole_images_is_shown_whole_images():
    config = make_config("infection", roi="none")
    segmenter = Segmenter(make_weights("lung"), make_weights("infection", config))
    (seen,) = look(segmenter, [IMAGE])
    assert np.abs(seen.levels - 255 * probabilities(IMAGE, "infection")).max() < 1


def test_stages_may_be_of_two_sizes():
    config = make_config("infection", image_size=2 * SIDE)
    segmenter = Segmenter(make_weights("lung"), make_weights("infection", config))
    (seen,) = look(segmenter, [IMAGE.repeat(2, 0).repeat(2, 1)])
    assert seen.lungs.shape == (SIDE, SIDE)
    assert seen.levels is not None
    assert seen.levels.shape == (2 * SIDE, 2 * SIDE)
    found = segmenter.points.infection_of(seen, (2 * SIDE, 2 * SIDE))
    assert np.array_equal(found, SPOT.repeat(2, 0).repeat(2, 1))


def test_the_first_stage_alone_finds_lungs_alone():
    segmenter = Segmenter(make_weights("lung"))
    (seen,) = look(segmenter, [IMAGE])
    assert np.array_equal(segmenter.points.lungs_of(seen, IMAGE.shape), LUNGS)
    assert segmenter.points.infection is seen.levels is seen.presence is None
    with pytest.raises(ValueError, match="no infection"):
        segmenter.points.infection_of(seen, IMAGE.shape)


def test_an_image_of_another_size_has_masks_of_that_size(both):
    big = np.asarray(Image.fromarray(IMAGE).resize((100, 60), Image.Resampling.NEAREST))
    (seen,) = look(both, [big])
    for name, truth in (("lungs_of", LUNGS), ("infection_of", SPOT)):
        found = getattr(both.points, name)(seen, big.shape)
        assert found.shape == (60, 100) and set(np.unique(found)) == {0, 1}
        # Edges move by less than a pixel of the network.
        inner, outer = (
            np.asarray(
                Image.fromarray(mask).resize((100, 60), Image.Resampling.NEAREST)
            )
            for mask in (cv2.erode(truth, SQUARE), cv2.dilate(truth, SQUARE))
        )
        assert inner.any() and not (inner & ~found & 1).any()
        assert not (found & ~outer & 1).any()


def test_another_point_changes_the_mask_without_the_network(both):
    (seen,) = look(both, [IMAGE])
    point = both.points.infection
    blank = dataclasses.replace(point, presence=0.99)
    assert not both.points.infection_of(seen, IMAGE.shape, blank).any()
    small = dataclasses.replace(point, min_area=10)  # the spot has nine pixels
    assert not both.points.infection_of(seen, IMAGE.shape, small).any()
    all_of_it = dataclasses.replace(point, threshold=0.01, min_area=0)
    assert both.points.infection_of(seen, IMAGE.shape, all_of_it).all()


def with_point(task: str, roi: str, **changes):
    weights = make_weights(task)
    return dataclasses.replace(weights, points={roi: POINTS[task] | changes})


def test_a_point_that_was_chosen_with_other_lungs_is_told():
    told = dataclasses.asdict(OperatingPoint(0.4)) | {"run": "elsewhere", "step": 3}
    same = with_point("infection", "predicted", lungs=told | {"fingerprint": "lung-1"})
    assert Segmenter(make_weights("lung"), same).remarks == []
    other = with_point("infection", "predicted", lungs=told | {"fingerprint": "9"})
    (remark,) = Segmenter(make_weights("lung"), other).remarks
    assert "lungs of another run" in remark


def test_a_point_that_was_chosen_with_true_lungs_serves_and_is_told():
    only = with_point("infection", "truth", threshold=0.6)
    segmenter = Segmenter(make_weights("lung"), only)
    assert segmenter.points.infection == OperatingPoint(0.6, 3, 0.1)
    assert "chosen with true lungs" in segmenter.remarks[0]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (make_weights("infection"), None, "trained to find infection"),
        (make_weights("lung"), make_weights("lung"), "trained to find lung"),
        (make_weights("lung"), with_point("infection", "none"), "no operating point"),
        (with_point("lung", "truth"), None, "no operating point for roi = none"),
        (
            make_weights("lung"),
            make_weights("infection", make_config("infection", roi="outside")),
            "a probe",
        ),
    ],
)
def test_networks_that_do_not_go_together_are_refused(first, second, said):
    with pytest.raises(UsageError, match=said) as error:
        Segmenter(first, second)
    assert "\n" not in str(error.value)


def test_phantom_weights_are_known_as_such():
    real = dataclasses.replace(make_weights("lung"), phantom=False)
    assert Segmenter(real).origin == Origin({"lungs": "lung-1"}, phantom=False)
    both = Segmenter(real, make_weights("infection"))
    known = {"lungs": "lung-1", "infection": "infection-1"}
    assert both.origin == Origin(known, phantom=True)
    real = dataclasses.replace(make_weights("infection"), phantom=False)
    assert Segmenter(make_weights("lung"), real).origin == both.origin
