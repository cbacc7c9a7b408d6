"""Augmentation: a function of record and seed, within the strengths of the config."""

import functools
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from configs import base
from covjax.data import augment
from covjax.data.augment import Augment
from covjax.data.augment_params import strengths_of

STUDY = strengths_of(base.get_config().augment)
OFF = dict.fromkeys(STUDY, 0.0)
SIDE = 64
SEEDS = range(100)


def make(**settings: float) -> Augment:
    """Everything off, but for what is named."""
    return Augment(**(OFF | settings))


def record_of(mask: np.ndarray, sample: np.ndarray | None = None) -> dict:
    sample = 255 * mask if sample is None else sample
    return {"image": sample, "lung": mask.copy(), "infection": mask.copy()}


def rectangle(half_height: int, half_width: int) -> np.ndarray:
    """A rectangle around the centre of the image."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    centre = SIDE // 2
    rows = slice(centre - half_height, centre + half_height)
    mask[rows, centre - half_width : centre + half_width] = 1
    return mask


def noise(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    lung = np.kron(rng.integers(0, 2, (8, 8), np.uint8), np.ones((8, 8), np.uint8))
    return {
        "image": rng.integers(0, 256, (SIDE, SIDE), np.uint8),
        "lung": lung,
        "infection": lung * rng.integers(0, 2, (SIDE, SIDE), np.uint8),
    }


def is_same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


RECORDS = [noise(seed) for seed in range(48)]


@pytest.fixture(scope="module")
def serial() -> list[dict]:
    """What the study's augmentation makes of the records, one after another."""
    return [Augment(**STUDY)(record, seed) for seed, record in enumerate(RECORDS)]


def test_result_depends_on_record_and_seed_alone(serial):
    shared = Augment(**STUDY)
    for seed in reversed(range(len(RECORDS))):  # other things came before
        assert is_same(shared(RECORDS[seed], seed), serial[seed])


def test_another_thread_gives_the_same(serial):
    shared = Augment(**STUDY)
    shared(RECORDS[0], 0)
    with ThreadPoolExecutor(1) as pool:
        assert is_same(pool.submit(shared, RECORDS[3], 3).result(), serial[3])


def test_many_threads_at_once_give_the_same(serial):
    shared, started = Augment(**STUDY), threading.Barrier(8)

    def run(first: int) -> list[bool]:
        started.wait()
        order = [(first + k) % len(RECORDS) for k in range(len(RECORDS))]
        return [is_same(shared(RECORDS[k], k), serial[k]) for k in order]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(same) for same in pool.map(run, range(8)))


def test_another_process_would_get_the_same(serial):
    used = Augment(**STUDY)
    used(RECORDS[0], 0)
    copy = pickle.loads(pickle.dumps(used))
    assert all(is_same(copy(RECORDS[k], k), serial[k]) for k in range(8))


def test_seeds_give_different_results():
    always = Augment(**(STUDY | {"affine_prob": 1.0}))
    results = [always(RECORDS[0], seed)["image"].tobytes() for seed in range(20)]
    assert len(set(results)) == 20


def test_image_and_masks_of_the_caller_stay_as_they_are():
    record = noise(0)
    for seed in range(10):
        Augment(**STUDY)(record, seed)
    assert is_same(record, noise(0))


def test_keys_shapes_and_dtypes_stay_and_masks_are_binary(serial):
    for result in serial:
        assert list(result) == ["image", "lung", "infection"]
        for array in result.values():
            assert (array.shape, array.dtype) == ((SIDE, SIDE), np.uint8)
        assert set(np.unique(result["lung"])) <= {0, 1}
        assert set(np.unique(result["infection"])) <= {0, 1}


def test_lung_tree_has_no_infection_mask():
    record = {k: v for k, v in noise(1).items() if k != "infection"}
    for seed in range(10):
        result, whole = (Augment(**STUDY)(r, seed) for r in (record, noise(1)))
        assert list(result) == ["image", "lung"]
        assert np.array_equal(result["image"], whole["image"])
        assert np.array_equal(result["lung"], whole["lung"])


def test_lungs_that_a_model_found_move_as_true_ones_would(serial):
    for seed, record in enumerate(RECORDS):
        found = noise(len(RECORDS) + seed)["lung"]
        result = Augment(**STUDY)(record | {"found_lung": found}, seed)
        assert list(result) == ["image", "lung", "infection", "found_lung"]
        moved = Augment(**STUDY)(record | {"lung": found}, seed)["lung"]
        assert np.array_equal(result.pop("found_lung"), moved)
        assert is_same(result, serial[seed])  # and nothing else moves otherwise


def test_masks_move_with_the_image():
    mask = rectangle(20, 8)
    mask[12:20, 40:44] = 1  # no symmetry
    moved = Augment(**(STUDY | {"brightness_contrast_prob": 0.0, "affine_prob": 1.0}))
    changed = 0
    for seed in SEEDS:
        result = moved(record_of(mask) | {"found_lung": mask.copy()}, seed)
        assert np.array_equal(result["lung"], result["infection"])
        assert np.array_equal(result["lung"], result["found_lung"])
        # Image and mask are sampled differently, so they may differ along the edge.
        assert np.mean((result["image"] > 127) != result["lung"]) < 0.015
        changed += np.mean(result["lung"] != mask) > 0.015
    assert changed > 80


def test_infection_stays_inside_the_lungs(serial):
    for result in serial:
        assert not np.any(result["infection"] & ~result["lung"])


def test_no_probability_changes_nothing():
    strengths = {k: v for k, v in STUDY.items() if not k.endswith("_prob")}
    for seed, record in enumerate(RECORDS[:20]):
        assert is_same(make(**strengths)(record, seed), record)


def test_flip_alone_mirrors_left_and_right_exactly():
    for seed, record in enumerate(RECORDS[:20]):
        result = make(flip_prob=1.0)(record, seed)
        assert is_same(result, {k: np.fliplr(v) for k, v in record.items()})


def centroid(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def test_shift_is_bounded_by_a_share_of_the_side_along_both_axes():
    square = rectangle(8, 8)
    move = make(affine_prob=1.0, shift=0.125)
    shifts = np.array(
        [
            centroid(move(record_of(square), seed)["lung"]) - centroid(square)
            for seed in SEEDS
        ]
    )
    limit = 0.125 * SIDE
    assert np.abs(shifts).max() <= limit + 0.5  # masks move by whole pixels
    assert (shifts.max(axis=0) > 0.8 * limit).all()
    assert (shifts.min(axis=0) < -0.8 * limit).all()
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.4  # each axis is drawn anew


def tilt(mask: np.ndarray) -> float:
    """Degrees by which a bar that stood upright leans."""
    rows, columns = np.argwhere(mask).T
    cov = np.cov(rows, columns)
    return np.degrees(0.5 * np.arctan2(2 * cov[0, 1], cov[0, 0] - cov[1, 1]))


def test_rotation_goes_to_its_limit_both_ways():
    bar = rectangle(24, 4)
    turn = make(affine_prob=1.0, rotate=20.0)
    results = [turn(record_of(bar), seed)["lung"] for seed in SEEDS]
    tilts = np.array([tilt(result) for result in results])
    assert np.abs(tilts).max() <= 20.5
    assert tilts.max() > 17 and tilts.min() < -17
    for result in results:  # about the centre, and of the same size
        assert np.abs(centroid(result) - centroid(bar)).max() < 1
        assert abs(result.sum() / bar.sum() - 1) < 0.06


def test_scale_is_the_same_along_both_axes_and_goes_to_both_limits():
    square = rectangle(16, 16)
    resize = make(affine_prob=1.0, scale=0.25)
    sides = []
    for seed in SEEDS:
        rows, columns = np.nonzero(resize(record_of(square), seed)["lung"])
        sides.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
    factors = np.array(sides) / 32
    assert np.abs(factors[:, 0] - factors[:, 1]).max() <= 1.5 / 32
    assert 0.75 - 1.5 / 32 <= factors.min() < 0.8
    assert 1.2 < factors.max() <= 1.25 + 1.5 / 32


def test_pixels_that_the_image_leaves_are_0():
    white = np.ones((SIDE, SIDE), np.uint8)
    move = make(affine_prob=1.0, shift=0.5)
    for seed in range(20):
        result = move(record_of(white), seed)
        # An image that were mirrored or stretched at its border would stay white.
        assert np.any(result["lung"] == 0)
        assert np.mean((result["image"] == 0) != (result["lung"] == 0)) < 0.04
        assert set(np.unique(result["infection"])) == {0, 1}


@pytest.mark.parametrize(
    ("strength", "limit"),
    [("brightness", 0.2 * 255), ("contrast", 0.2 * 100)],
    ids=["brightness", "contrast"],
)
def test_tone_changes_up_to_its_limit_both_ways(strength, limit):
    grey = np.full((SIDE, SIDE), 100, np.uint8)
    expose = make(brightness_contrast_prob=1.0, **{strength: 0.2})
    changes = []
    for seed in SEEDS:
        result = expose(record_of(rectangle(8, 8), grey), seed)
        assert np.array_equal(result["lung"], rectangle(8, 8))
        assert len(np.unique(result["image"])) == 1
        changes.append(int(result["image"][0, 0]) - 100)
    assert np.abs(changes).max() <= limit + 1
    assert max(changes) > 0.8 * limit and min(changes) < -0.8 * limit


def test_contrast_scales_and_brightness_adds():
    sample = np.tile(np.array([60, 120], np.uint8), (SIDE, SIDE // 2))
    for seed in range(20):
        bright, stark = (
            make(brightness_contrast_prob=1.0, **{name: 0.2})(
                record_of(sample // 120, sample), seed
            )
            for name in ("brightness", "contrast")
        )
        low, high = bright["image"][0, :2].astype(int)
        assert abs(high - low - 60) <= 1
        low, high = stark["image"][0, :2].astype(int)
        assert abs(high - 2 * low) <= 2


def test_too_bright_stays_white():
    white = np.full((SIDE, SIDE), 250, np.uint8)
    for seed in SEEDS:
        result = make(brightness_contrast_prob=1.0, brightness=0.2)(
            record_of(white // 250, white), seed
        )
        assert result["image"].min() >= 250 - 52  # nothing wraps around to black


def test_what_is_beyond_the_study_comes_after_it_and_leaves_it_as_it_was(serial):
    # A run of the study has the images that it had before there were others.
    beyond = Augment(**(STUDY | {"gamma_prob": 0.6, "noise_prob": 0.6}))
    changed = 0
    for seed, record in enumerate(RECORDS):
        result = beyond(record, seed)
        for name in ("lung", "infection"):
            assert np.array_equal(result[name], serial[seed][name])
        # The study's three alone, then what happened of the two.
        sample = serial[seed]["image"][..., None]
        *_, gamma, noise = beyond._local.compose.transforms
        for transform in (gamma, noise):
            if transform.params:
                sample = transform.apply(sample, **transform.params)
        assert np.array_equal(result["image"], sample[..., 0])
        changed += bool(gamma.params) + bool(noise.params)
    assert 0.4 < changed / (2 * len(RECORDS)) < 0.8


def test_gamma_bends_the_levels_up_to_its_limit_both_ways():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    bend = make(gamma_prob=1.0, gamma=0.3)
    exponents = []
    for seed in SEEDS:
        result = bend({"image": levels, "lung": levels % 2}, seed)
        assert np.array_equal(result["lung"], levels % 2)
        bent = result["image"].ravel().astype(float)
        # Levels are cut off: half of one is added on the average.
        exponent = np.log((bent[64] + 0.5) / 255) / np.log(64 / 255)
        assert np.abs(bent + 0.5 - 255 * (np.arange(256) / 255) ** exponent).max() < 2
        assert bent[0] == 0 and bent[255] == 255
        exponents.append(exponent)
    assert 0.69 < min(exponents) < 0.74 and 1.26 < max(exponents) < 1.31
    assert abs(np.mean(exponents) - 1) < 0.06  # three of 0.6 / sqrt(12 * 100)


def test_noise_is_of_every_pixel_and_up_to_its_limit():
    grey = np.full((SIDE, SIDE), 128, np.uint8)
    spoil = make(noise_prob=1.0, noise=0.1)
    deviations, maps = [], []
    for seed in SEEDS:
        result = spoil(record_of(rectangle(8, 8), grey), seed)
        assert np.array_equal(result["lung"], rectangle(8, 8))
        added = result["image"].astype(float) - 128 + 0.5  # levels are cut off
        deviations.append(added.std())
        maps.append((added - added.mean()) / added.std())
        assert abs(added.mean()) < 4 * 25.5 / SIDE
    # From 0 to a tenth of 255, uniformly; half of a level is what cutting off adds.
    assert max(deviations) < 26.5 and max(deviations) > 24 and min(deviations) < 1.5
    assert abs(np.mean(deviations) - 12.75) < 3 * 25.5 / np.sqrt(12 * len(SEEDS))
    loud = np.array([z for z, d in zip(maps, deviations, strict=True) if d > 5])
    # A normal distribution, without memory along rows, columns or from image to image.
    assert abs(np.mean(np.abs(loud) < 1) - 0.683) < 0.01
    for one, other in [
        (loud[:, 1:], loud[:, :-1]),
        (loud[:, :, 1:], loud[:, :, :-1]),
        (loud[1:], loud[:-1]),
    ]:
        assert abs(np.mean(one * other)) < 0.01


def test_noise_stays_within_black_and_white():
    sample = np.tile(np.array([3, 252], np.uint8), (SIDE, SIDE // 2))
    for seed in range(20):
        result = make(noise_prob=1.0, noise=0.1)(record_of(sample % 2, sample), seed)
        # Five standard deviations: a level that wraps around is farther off.
        assert np.abs(result["image"].astype(int) - sample).max() < 140


@pytest.mark.parametrize("probability", [0.2, 0.8])
@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("flip_prob", {}),
        ("affine_prob", {"shift": 0.2, "scale": 0.2, "rotate": 15.0}),
        ("brightness_contrast_prob", {"brightness": 0.2, "contrast": 0.2}),
        ("gamma_prob", {"gamma": 0.3}),
        ("noise_prob", {"noise": 0.1}),
    ],
)
def test_transform_happens_as_often_as_asked(name, strength, probability):
    sometimes = make(**{name: probability}, **strength)
    record = RECORDS[0]
    happened = sum(
        not np.array_equal(sometimes(record, seed)["image"], record["image"])
        for seed in range(400)
    )
    # Three standard deviations of 400 draws.
    assert abs(happened / 400 - probability) < 0.06


def test_transforms_happen_independently():
    half = Augment(**(STUDY | {"rotate": 0.0, "scale": 0.0}))
    sample = np.full((SIDE, SIDE), 100, np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[28:36, 10:18] = 1
    events = []
    for seed in range(400):
        result = half(record_of(mask, sample), seed)
        flipped = centroid(result["lung"])[1] > SIDE / 2
        original = np.fliplr(mask) if flipped else mask
        moved = not np.array_equal(result["lung"], original)
        events.append((flipped, moved, result["image"][32, 32] != 100))
    correlations = np.corrcoef(np.array(events, float).T)
    assert np.abs(correlations - np.eye(3)).max() < 0.15


def test_misspelt_setting_is_an_error():
    with pytest.raises(TypeError, match="flipp_prob"):
        make(flipp_prob=0.5)


@pytest.mark.filterwarnings("ignore")  # the code has to refuse, not pytest
def test_argument_that_the_library_does_not_know_is_an_error(monkeypatch):
    known = augment.A.HorizontalFlip
    misspelt = functools.partial(known, **{"probabilty": 0.5})
    monkeypatch.setattr(augment.A, "HorizontalFlip", misspelt)
    with pytest.raises(UserWarning, match="probabilty"):
        make(flip_prob=1.0)(RECORDS[0], 0)


def test_threads_that_start_at_once_leave_the_filters_of_warnings(monkeypatch):
    # `warnings.catch_warnings` is of the whole process: where the first of two threads
    # to enter is the first to leave, the second brings the first's filters back.
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    compose = augment.A.Compose

    def overlap(*arguments, **keywords):
        if not first_in.is_set():
            first_in.set()
            second_in.wait(timeout=0.5)  # in vain, where they come one at a time
        else:
            second_in.set()
            first_out.wait(timeout=60)
        return compose(*arguments, **keywords)

    shared, before = make(flip_prob=1.0), list(warnings.filters)
    monkeypatch.setattr(augment.A, "Compose", overlap)
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared, RECORDS[0], 0)
        assert first_in.wait(timeout=60)
        second = pool.submit(shared, RECORDS[1], 0)
        first.result()
        first_out.set()
        second.result()
        assert list(warnings.filters) == before
