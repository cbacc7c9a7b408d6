"""Augmentation on the device: as Albumentations draws it, and as OpenCV moves it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp

from configs import base
from covjax.data import augment
from covjax.data.augment import Augment
from covjax.data.augment_params import strengths_of
from covjax.train.device_augment import DeviceAugment, Draw, apply, dilate

STUDY = strengths_of(base.get_config().augment)
OFF = dict.fromkeys(STUDY, 0.0)
PROBS = [name for name in STUDY if name.endswith("_prob")]
BUT_NOISE = [name for name in PROBS if name != "noise_prob"]  # a number for each pixel
ALWAYS = STUDY | dict.fromkeys(BUT_NOISE, 1.0)
SIDE = 64
HEIGHT, WIDTH = 48, 64  # what is confused shows


def draws(strengths: dict[str, float], n: int, first: int = 0) -> Draw:
    """What happens to n images of 64 pixels: numpy arrays [n]."""
    draw = functools.partial(DeviceAugment(**strengths).draw, height=SIDE, width=SIDE)
    seeds = jnp.arange(first, first + n, dtype=jnp.uint32)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(seeds))


def drawn_by_albumentations(n: int) -> dict[str, np.ndarray]:
    """The same, as the host draws it; every transform happens."""
    always = Augment(**ALWAYS)
    blank = np.zeros((SIDE, SIDE), np.uint8)
    record = {"image": blank, "lung": blank}
    rows = []
    for seed in range(n):
        always(record, seed)
        _, affine, tone, gamma = always._local.compose.transforms
        centre = np.array([SIDE / 2 - 0.5, SIDE / 2 - 0.5, 1])
        shift = affine.params["matrix"] @ centre - centre
        rows.append(
            {
                "angle": np.radians(affine.params["rotate"]),
                "scale": affine.params["scale"]["x"],
                "shift_x": shift[0],
                "shift_y": shift[1],
                "contrast": tone.params["alpha"],
                "brightness": tone.params["beta"],
                "gamma": gamma.params["gamma"],
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_what_happens_is_distributed_as_albumentations_draws_it():
    ours, theirs = draws(ALWAYS, 8000)._asdict(), drawn_by_albumentations(1500)
    for name, values in theirs.items():
        if name.startswith("shift"):
            values = np.round(values)  # of a matrix; they are whole
        probability = np.asarray(ks_2samp(ours[name], values))[1]
        assert probability > 0.001, name


def test_ranges_are_those_of_the_config():
    strengths = ALWAYS | {"rotate": 30.0, "scale": 0.25, "contrast": 0.5}
    drawn = draws(strengths | {"brightness": 0.4}, 20000)
    for values, low, high in [
        (np.degrees(drawn.angle), -30, 30),
        (drawn.scale, 0.75, 1.25),
        (drawn.contrast, 0.5, 1.5),
        (drawn.brightness, -0.4 * 255, 0.4 * 255),
        (drawn.gamma, 0.7, 1.3),
    ]:
        reach = high - low
        assert low - 1e-4 <= values.min() < low + 0.01 * reach
        assert high - 0.01 * reach < values.max() <= high + 1e-4
        # The mean and the spread of a uniform distribution.
        assert abs(values.mean() - (low + high) / 2) < 0.01 * reach
        assert abs(values.std() - reach / 12**0.5) < 0.01 * reach


def test_shifts_are_whole_pixels_cut_towards_0():
    # Of a share up to 4 / 64 to either side, 1 / 4 ends at 0 and 1 / 8 at 1, 2, 3 each.
    drawn = draws(ALWAYS | {"shift": 4 / SIDE}, 16000)
    for shifts in (drawn.shift_x, drawn.shift_y):
        values, counts = np.unique(shifts, return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        expected = np.array([1, 1, 1, 2, 1, 1, 1]) / 8
        assert np.abs(counts / 16000 - expected).max() < 0.015


def test_a_shift_is_a_share_of_its_own_side():
    draw = functools.partial(
        DeviceAugment(**ALWAYS | {"shift": 0.5}).draw, height=16, width=160
    )
    drawn = jax.vmap(draw)(jnp.arange(500, dtype=jnp.uint32))
    assert 75 < np.abs(drawn.shift_x).max() < 80
    assert np.abs(drawn.shift_y).max() == 7


def test_transforms_happen_as_often_as_asked_and_independently():
    wanted = {
        "flip_prob": 0.2,
        "affine_prob": 0.5,
        "brightness_contrast_prob": 0.7,
        "gamma_prob": 0.6,
    }
    drawn = draws(STUDY | wanted, 20000)
    happened = [drawn.flip, drawn.angle != 0, drawn.contrast != 1, drawn.gamma != 1]
    # A transform happens as a whole.
    assert np.array_equal(happened[1], drawn.scale != 1)
    assert np.array_equal(happened[2], drawn.brightness != 0)
    assert not drawn.shift_x[~happened[1]].any()
    assert not drawn.shift_y[~happened[1]].any()
    for which in np.ndindex(2, 2, 2, 2):
        together = [h == bool(w) for h, w in zip(happened, which, strict=True)]
        expected = np.prod(
            [p if w else 1 - p for p, w in zip(wanted.values(), which, strict=True)]
        )
        assert abs(np.logical_and.reduce(together).mean() - expected) < 0.01


@pytest.mark.parametrize("happens", [0.0, 1.0])
def test_never_and_always_are_exact(happens: float):
    drawn = draws(STUDY | dict.fromkeys(BUT_NOISE, happens), 20000, first=7)
    assert (drawn.flip == bool(happens)).all()
    assert ((drawn.angle != 0) == bool(happens)).all()
    assert ((drawn.contrast != 1) == bool(happens)).all()
    assert np.all(drawn.gamma != 1) if happens else drawn.gamma is None


def test_what_is_beyond_the_study_leaves_its_draws_as_they_were():
    # A run of the study has the images that it had before there were others.
    beyond = {"gamma_prob": 0.5, "noise_prob": 0.5, "noise": 0.1}
    alone, among = draws(STUDY, 50), draws(STUDY | beyond, 50)
    assert alone.gamma is None and alone.noise is None
    assert among.gamma is not None and among.gamma.shape == (50,)
    assert among.noise is not None and among.noise.shape == (50, SIDE, SIDE)
    for name in Draw._fields[:7]:
        np.testing.assert_array_equal(getattr(alone, name), getattr(among, name))
    nine = jax.jit(
        jax.vmap(lambda seed: jax.random.uniform(jax.random.key(seed), (9,)))
    )
    u = np.asarray(nine(jnp.arange(50, dtype=jnp.uint32)))
    np.testing.assert_array_equal(alone.flip, u[:, 0] < 0.5)
    tone = np.where(u[:, 6] < 0.5, 255 * 0.2 * (2 * u[:, 8] - 1), 0)
    np.testing.assert_allclose(alone.brightness, tone, atol=1e-4)


def test_noise_is_drawn_as_albumentations_draws_it():
    side, noise = 24, 0.1
    strengths = ALWAYS | {"noise_prob": 1.0, "noise": noise}
    draw = functools.partial(DeviceAugment(**strengths).draw, height=side, width=side)
    drawn = jax.jit(jax.vmap(draw))(jnp.arange(3000, dtype=jnp.uint32))
    ours = np.asarray(drawn.noise, float)
    deviations = ours.std(axis=(1, 2))
    # Uniform from 0 to the limit, whatever else happens to the image.
    assert deviations.max() < 1.1 * 255 * noise
    assert abs(deviations.mean() - 255 * noise / 2) < 0.5
    assert abs(np.corrcoef(deviations, np.asarray(drawn.gamma))[0, 1]) < 0.06
    # Normal, without memory along rows, columns or from image to image.
    maps = ours / deviations[:, None, None]
    assert abs(np.mean(np.abs(maps) < 1) - 0.683) < 0.005
    for one, other in [
        (maps[:, 1:], maps[:, :-1]),
        (maps[:, :, 1:], maps[:, :, :-1]),
        (maps[1:], maps[:-1]),
    ]:
        assert abs(np.mean(one * other)) < 0.005
    always = Augment(**OFF | {"noise_prob": 1.0, "noise": noise})
    blank, theirs = np.zeros((side, side), np.uint8), []
    for seed in range(1000):
        always({"image": blank, "lung": blank}, seed)
        (transform,) = always._local.compose.transforms
        theirs.append(transform.params["noise_map"])
    theirs = np.array(theirs)[..., 0]
    assert np.asarray(ks_2samp(deviations, theirs.std(axis=(1, 2))))[1] > 0.001
    pixels = ks_2samp(ours[:, 3, 5], theirs[:, 3, 5])
    assert np.asarray(pixels)[1] > 0.001


def test_noise_happens_as_often_as_asked_and_not_with_gamma():
    strengths = OFF | {"noise_prob": 0.3, "noise": 0.1, "gamma_prob": 0.6, "gamma": 0.3}
    draw = functools.partial(DeviceAugment(**strengths).draw, height=4, width=4)
    drawn = jax.jit(jax.vmap(draw))(jnp.arange(8000, dtype=jnp.uint32))
    noisy = np.any(np.asarray(drawn.noise) != 0, axis=(1, 2))
    bent = np.asarray(drawn.gamma) != 1
    assert abs(noisy.mean() - 0.3) < 0.02 and abs(bent.mean() - 0.6) < 0.02
    assert abs((noisy & bent).mean() - 0.18) < 0.02


def test_every_number_is_drawn_for_itself():
    numbers = draws(ALWAYS | {"flip_prob": 0.5}, 20000)[:-1]  # without noise
    correlations = np.corrcoef(np.array([np.asarray(v, float) for v in numbers]))
    assert np.abs(correlations - np.eye(8)).max() < 0.03


def test_seeds_of_32_bits_give_draws_of_their_own():
    study = DeviceAugment(**ALWAYS)
    seeds = [0, 1, 2**31, 2**31 + 1, 2**32 - 1]
    drawn = {float(study.draw(jnp.uint32(seed), SIDE, SIDE).angle) for seed in seeds}
    assert len(drawn) == len(seeds)


def make_draw(**what: Any) -> Draw:
    """Nothing happens but what is named; `degrees` is the angle."""
    return Draw(
        flip=jnp.bool_(what.get("flip", False)),
        angle=jnp.float32(np.radians(what.get("degrees", 0))),
        scale=jnp.float32(what.get("scale", 1)),
        shift_x=jnp.float32(what.get("shift_x", 0)),
        shift_y=jnp.float32(what.get("shift_y", 0)),
        contrast=jnp.float32(what.get("contrast", 1)),
        brightness=jnp.float32(what.get("brightness", 0)),
        gamma=jnp.float32(what["gamma"]) if "gamma" in what else None,
        noise=jnp.float32(what["noise"]) if "noise" in what else None,
    )


def moved(record: dict[str, np.ndarray], **what: Any) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, jax.jit(apply)(make_draw(**what), record))


def smooth(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """An image without any symmetry, bright up to its border."""
    y, x = np.mgrid[:height, :width]
    waves = 30 * np.sin(x / 5 + y / 17) + 25 * np.cos(y / 7) + x + 0.5 * y
    return (60 + waves).astype(np.uint8)


def blocks(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 2, (-(-height // 8), -(-width // 8)), np.uint8)
    return np.kron(coarse, np.ones((8, 8), np.uint8))[:height, :width]


def make_record(height: int = HEIGHT, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Infection of single pixels, which any mixing of neighbours would change."""
    dots = np.random.default_rng(1).integers(0, 2, (height, width), np.uint8)
    lung = blocks(height, width)
    return {"image": smooth(height, width), "lung": lung, "infection": lung * dots}


MOVES = [
    {"shift_x": 5.0},
    {"shift_y": -3.0},
    {"degrees": 15.0},
    {"degrees": -8.0},
    {"scale": 1.13},  # at 1.1, pixels would come from half-way between two
    {"scale": 0.87},
    {"degrees": 11.0, "scale": 0.93, "shift_x": -4.0, "shift_y": 2.0},
    {"degrees": -14.0, "scale": 1.08, "shift_x": 3.0, "shift_y": 4.0, "flip": True},
]


def moved_by_albumentations(
    record: dict[str, np.ndarray], move: dict[str, float]
) -> dict[str, np.ndarray]:
    numbers = {"degrees": 0.0, "scale": 1.0, "shift_x": 0.0, "shift_y": 0.0} | move
    angle, scale = numbers["degrees"], numbers["scale"]
    affine = augment.A.Affine(
        rotate=(angle, angle),
        scale=(scale, scale),
        keep_ratio=True,
        translate_px={"x": int(numbers["shift_x"]), "y": int(numbers["shift_y"])},
        p=1,
    )
    flip = augment.A.HorizontalFlip(p=float(move.get("flip", 0)))
    names = ("lung", "infection")
    compose = augment.A.Compose([flip, affine])
    result = compose(image=record["image"], masks=[record[name] for name in names])
    return {"image": result["image"]} | dict(zip(names, result["masks"], strict=True))


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_image_and_masks_move_as_through_albumentations(move):
    record = make_record()
    ours, theirs = moved(record, **move), moved_by_albumentations(record, move)
    levels = np.abs(ours["image"].astype(int) - theirs["image"])
    # Bilinear inside and along the border. Some versions of OpenCV take places to
    # 1 / 32 of a pixel; a border that does not blend with black is off by up to 200.
    assert levels.max() <= 8 and np.mean(levels > 1) < 0.05
    assert np.mean(levels) < 0.1
    for name in ("lung", "infection"):
        assert set(np.unique(ours[name])) == {0, 1}
        assert np.mean(ours[name] != theirs[name]) < 0.002


@pytest.mark.parametrize(
    ("move", "corner"),
    [
        ({"shift_x": 2.0}, [[0, 0, 1], [0, 0, 4], [0, 0, 7]]),
        ({"shift_y": -1.0}, [[4, 5, 6], [7, 8, 9], [0, 0, 0]]),
        ({"degrees": 90.0}, [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),  # counter-clockwise
        ({"flip": True, "shift_x": 1.0}, [[0, 3, 2], [0, 6, 5], [0, 9, 8]]),
        ({"scale": 3.0}, [[4, 4, 4], [5, 5, 5], [6, 6, 6]]),  # 5 + x / 3 + y, rounded
        # Half of the way to the black beyond the border; 3 / 4, where that is twofold.
        ({"scale": 2 / 3}, [[0, 1, 1], [2, 5, 3], [2, 4, 2]]),
    ],
)
def test_moves_by_hand(move, corner):
    sample = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    ours = moved({"image": sample, "lung": sample % 2}, **move)
    np.testing.assert_array_equal(ours["image"], corner)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (15, 33), (64, 64)])
def test_an_image_to_which_nothing_happens_keeps_every_bit(shape):
    rng = np.random.default_rng(0)
    record = make_record(*shape) | {"image": rng.integers(0, 256, shape, np.uint8)}
    for result in (
        moved(record),
        moved(record, gamma=1, noise=np.zeros(shape)),
        jax.jit(DeviceAugment(**STUDY | dict.fromkeys(PROBS, 0.0)))(record, 5),
    ):
        assert result.keys() == record.keys()
        for name, array in record.items():
            np.testing.assert_array_equal(result[name], array)
            assert result[name].dtype == np.uint8


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (15, 33)])
def test_flip_alone_mirrors_left_and_right_exactly(shape):
    record = make_record(*shape)
    flipped = jax.jit(DeviceAugment(**OFF | {"flip_prob": 1.0}))(record, 3)
    for name, array in record.items():
        np.testing.assert_array_equal(flipped[name], np.fliplr(array))


@pytest.mark.parametrize(
    ("contrast", "brightness"),
    [(0.0, 0.17), (0.0, -0.2), (0.13, 0.0), (-0.2, 0.0), (0.19, 0.11), (-0.07, -0.15)],
)
def test_tone_is_the_table_of_albumentations(contrast, brightness):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = augment.A.RandomBrightnessContrast(
        contrast_limit=(contrast, contrast),
        brightness_limit=(brightness, brightness),
        p=1,
    )(image=levels)["image"]
    ours = moved({"image": levels}, contrast=1 + contrast, brightness=255 * brightness)
    off = ours["image"] != table
    # Where a sum is a whole number but for its last bit.
    assert off.sum() <= 1
    assert np.abs(ours["image"].astype(int) - table)[off].sum() <= 1


@pytest.mark.parametrize("gamma", [0.7, 0.91, 1.07, 1.3])
def test_gamma_is_the_table_of_albumentations(gamma):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    percent = 100 * gamma
    table = augment.A.RandomGamma(gamma_limit=(percent, percent), p=1)(image=levels)
    ours = moved({"image": levels}, gamma=gamma)["image"]
    by_hand = np.floor(255 * (levels / 255.0) ** gamma)
    for expected in (table["image"], by_hand):
        off = ours != expected
        # Where a power is a whole number but for its last bit.
        assert off.sum() <= 1
        assert np.abs(ours.astype(int) - expected)[off].sum() <= 1


def test_tone_comes_first_then_gamma_then_noise_by_hand():
    sample = np.array([[100, 0, 255], [20, 200, 7]], np.uint8)
    noise = np.array([[3.9, 5.5, -300], [-0.2, 0.2, 80]])
    # 100 + 55 = 155, 155^2 / 255 = 94.2, 94 + 3.9; 55^2 / 255 = 11.9, 11 + 5.5;
    # white, then black; 75^2 / 255 = 22.1, 22 - 0.2; white stays; 62^2 / 255 = 15.1.
    toned = moved({"image": sample}, brightness=55, gamma=2, noise=noise)
    assert toned["image"].tolist() == [[97, 16, 0], [21, 255, 95]]


def test_tone_leaves_masks_alone():
    record = make_record()
    noise = np.full((HEIGHT, WIDTH), 9.0)
    toned = moved(record, contrast=0.8, brightness=-30, gamma=0.8, noise=noise)
    for name in ("lung", "infection"):
        np.testing.assert_array_equal(toned[name], record[name])


def test_images_look_on_average_as_those_that_the_host_augments():
    record = make_record(32, 32)
    strong = ALWAYS | {"flip_prob": 0.3, "affine_prob": 0.7, "shift": 0.2}
    strong |= {"gamma": 0.6, "noise_prob": 0.7, "noise": 0.4}
    here = Augment(**strong | {"brightness": 0.4})
    there = DeviceAugment(**strong | {"brightness": 0.4})
    host = [here(record, seed) for seed in range(2000)]
    device = jax.jit(jax.vmap(there, (None, 0)))(record, jnp.arange(2000))
    for name in record:
        expected = np.mean([result[name] for result in host], axis=0)
        found = np.asarray(device[name]).mean(axis=0)
        # Pixels vary by about 60 levels (masks by 0.5), their means of 2000 by 1.3.
        assert np.sqrt(np.mean((found - expected) ** 2)) < (
            3 if name == "image" else 0.025
        ), name


def test_an_image_is_the_same_alone_and_among_others():
    study = DeviceAugment(**STUDY | dict.fromkeys(PROBS, 0.8))
    samples = np.stack([np.roll(smooth(), 3 * k, axis=1) for k in range(12)])
    masks = np.stack([blocks(seed=k) for k in range(12)])
    seeds = jnp.arange(12, dtype=jnp.uint32) * 31
    many = jax.jit(jax.vmap(study))
    whole = many({"image": samples, "lung": masks}, seeds)
    turned = many({"image": samples[::-1], "lung": masks[::-1]}, seeds[::-1])
    alone = jax.jit(study)
    for k in range(12):
        one = alone({"image": samples[k], "lung": masks[k]}, seeds[k])
        for name in ("image", "lung"):
            np.testing.assert_array_equal(one[name], whole[name][k])
            np.testing.assert_array_equal(one[name], turned[name][11 - k])


def test_another_mask_changes_nothing_of_image_and_lungs():
    study = jax.jit(DeviceAugment(**ALWAYS))
    record = make_record()
    lungs_alone = {k: record[k] for k in ("image", "lung")}
    for seed in range(5):
        result, whole = study(lungs_alone, seed), study(record, seed)
        assert list(result) == ["image", "lung"]
        for name in result:
            np.testing.assert_array_equal(result[name], whole[name])


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 20])
def test_dilation_reaches_all_pixels_at_most_so_far_away(radius):
    rng = np.random.default_rng(radius)
    mask = (rng.random((13, 17)) < 0.02).astype(np.uint8)
    mask[0, 0] = mask[12, 9] = 1  # nothing comes in from beyond the border
    rows, columns = np.nonzero(mask)
    wide = np.zeros_like(mask)
    for y, x in np.ndindex(*mask.shape):
        wide[y, x] = np.any((y - rows) ** 2 + (x - columns) ** 2 <= radius**2)
    found = np.asarray(dilate(jnp.asarray(mask), radius))
    np.testing.assert_array_equal(found, wide)
    assert found.dtype == np.uint8
