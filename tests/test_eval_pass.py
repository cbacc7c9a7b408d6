"""What a pass over a split gives equals that of one image at a time."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from PIL import Image

from configs import infection
from covjax import parallel
from covjax.data.covidqu import Sample, read_sample
from covjax.data.pipeline import make_eval_dataset
from covjax.train import eval_pass
from covjax.train.train_state import TrainState
from covjax.types import Prediction

SIDE, N, BATCH = 32, 21, 16  # two batches, of which the second is padded by 11
LABELS = ["COVID-19", "Non-COVID", "Normal"]
THRESHOLD = 0.4
# The network: one weight and one bias, so that NumPy computes it as well.
WEIGHT, BIAS = 6.0, -3.0


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """A third has infection; some of the others are dark: nothing will be found."""
    folder = tmp_path_factory.mktemp("images")
    samples = []
    for k in range(N):
        rng = np.random.default_rng(k)
        brightest = 60 if k % 3 and k % 2 else 256
        sample = rng.integers(0, brightest, (SIDE, SIDE), np.uint8)
        lung = np.zeros_like(sample)
        lung[4 : 20 + k % 8, 4:28] = 255
        sick = lung * (rng.random((SIDE, SIDE)) < 0.1 + k / 30) * (k % 3 == 0)
        paths = [folder / f"{k}-{kind}.png" for kind in ("image", "lung", "sick")]
        for path, array in zip(paths, (sample, lung, sick), strict=True):
            Image.fromarray(array.astype(np.uint8)).save(path)
        samples.append(Sample(f"image, {k}.png", LABELS[k % 3], "Test", *paths))
    return samples


@pytest.fixture(scope="module")
def config() -> ml_collections.ConfigDict:
    config = infection.get_config("phantom")
    config.data.image_size, config.train.batch_size = SIDE, BATCH
    config.eval.threshold = THRESHOLD
    config.loss.dice, config.loss.bce = 0.7, 0.3
    return config


@pytest.fixture(scope="module")
def state() -> TrainState:
    def apply(variables, images, *, train):
        assert not train
        params = variables["params"]
        return Prediction(images * params["weight"] + params["bias"])

    state = TrainState.create(
        apply_fn=apply,
        tx=optax.identity(),
        params={"weight": jnp.float32(WEIGHT), "bias": jnp.float32(BIAS)},
        batch_stats={},
    )
    return parallel.replicate(state.replace(step=77))


@pytest.fixture(scope="module")
def eval_step(config):
    return eval_pass.compile_eval_step(config)


# Weight and bias of a presence head that goes by the mean of the image's left half.
CLAIM = -30.0, 3.0


@pytest.fixture(scope="module")
def claiming() -> TrainState:
    """A state whose network tells presence, and left from right."""

    def apply(variables, images, *, train):
        assert not train
        left = images[:, :, : SIDE // 2]
        claim = CLAIM[0] * left.mean(axis=(1, 2, 3)) + CLAIM[1]
        across = jnp.linspace(0, 2 * WEIGHT, SIDE)[:, None]
        return Prediction(images * across + BIAS, claim)

    state = TrainState.create(
        apply_fn=apply, tx=optax.identity(), params={}, batch_stats={}
    )
    return parallel.replicate(state)


@pytest.fixture(scope="module")
def asking(config) -> ml_collections.ConfigDict:
    """A config whose network has a presence head."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.model.presence_head, config.loss.presence = True, 0.5
    return config


def sigmoid(logits: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.float64(logits)))


def seen_by_network(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The image inside its lungs, and its infection."""
    record = read_sample(sample, SIDE)
    return record["image"] * record["lung"], record["infection"]


def expected_scores(sample: Sample) -> tuple[list[int], float]:
    """Counts and loss of one image, in float64."""
    image, truth = seen_by_network(sample)
    logits = WEIGHT * image.astype(np.float64) / 255 + BIAS
    p = 1 / (1 + np.exp(-logits))
    found, true = np.rint(255 * p) / 255 > THRESHOLD, truth > 0
    counts = [found & true, found & ~true, ~found & true, ~found & ~true]
    dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    bce = -np.where(true, np.log(p), np.log(1 - p)).mean()
    return [int(c.sum()) for c in counts], 0.7 * dice + 0.3 * bce


def test_split_over_eight_devices_scores_as_one_image_at_a_time(
    samples, config, state, eval_step
):
    assert jax.device_count() == 8
    dataset = make_eval_dataset(samples, config=config)
    scores = eval_pass.score(eval_step, state, dataset, N)
    assert scores.counts.shape == (N, 4) and scores.counts.dtype == np.int64
    assert scores.losses.shape == (N,) and scores.losses.dtype == np.float64
    counts, losses = zip(*map(expected_scores, samples), strict=True)
    assert scores.counts.tolist() == list(counts)
    np.testing.assert_allclose(scores.losses, losses, rtol=5e-6)


def test_scores_do_not_depend_on_the_batch(samples, config, state, eval_step):
    one = eval_pass.score(
        eval_step, state, make_eval_dataset(samples, config=config), N
    )
    other = ml_collections.ConfigDict(config.to_dict())
    other.train.batch_size = 8
    two = eval_pass.score(eval_step, state, make_eval_dataset(samples, config=other), N)
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-6)


@pytest.mark.parametrize("given", [slice(0, 1), slice(1, 2)], ids=["last", "first"])
def test_batch_that_is_missing_is_an_error(samples, config, state, eval_step, given):
    batches = list(make_eval_dataset(samples, config=config))
    missing = N - BATCH if given.start == 0 else BATCH
    with pytest.raises(RuntimeError, match=f"{missing} of {N} images were not scored"):
        eval_pass.score(eval_step, state, batches[given], N)


def test_image_that_comes_twice_is_an_error(samples, config, state, eval_step):
    batches = list(make_eval_dataset(samples, config=config))
    with pytest.raises(RuntimeError, match=f"5 of {N} images were not scored once"):
        eval_pass.score(eval_step, state, [*batches, batches[1]], N)


def test_levels_of_a_split_are_those_of_one_image_at_a_time(samples, config, state):
    found = eval_pass.predict_split(config, samples, state)
    assert found.levels.shape == (N, SIDE, SIDE) and found.levels.dtype == np.uint8
    for sample, levels, loss in zip(samples, found.levels, found.losses, strict=True):
        image, _ = seen_by_network(sample)
        p = 1 / (1 + np.exp(-(WEIGHT * image.astype(np.float64) / 255 + BIAS)))
        assert np.abs(255 * p - levels).max() < 0.5001
        assert loss == pytest.approx(expected_scores(sample)[1], rel=5e-6)


def test_counts_on_the_devices_are_those_of_the_levels(
    samples, config, state, eval_step
):
    scores = eval_pass.score(
        eval_step, state, make_eval_dataset(samples, config=config), N
    )
    levels = eval_pass.predict_split(config, samples, state).levels
    above = (levels / 255 > THRESHOLD).sum(axis=(1, 2))
    np.testing.assert_array_equal(scores.counts[:, :2].sum(axis=1), above)


def test_presence_is_the_mean_of_the_surest_pixels_without_a_head(
    samples, config, state
):
    found = eval_pass.predict_split(config, samples, state)
    # Of 32 x 32 pixels, 4: one in 256.
    surest = np.sort(found.levels.reshape(N, -1), axis=1)[:, -4:]
    np.testing.assert_allclose(found.presence, surest.mean(axis=1) / 255, rtol=1e-12)
    assert len(np.unique(found.presence)) > 2


def test_presence_is_what_the_head_says_where_there_is_one(samples, asking, claiming):
    found = eval_pass.predict_split(asking, samples, claiming)
    left = [
        seen_by_network(sample)[0][:, : SIDE // 2].mean() / 255 for sample in samples
    ]
    expected = sigmoid(CLAIM[0] * np.array(left) + CLAIM[1])
    assert found.presence.shape == (N,) and found.presence.dtype == np.float64
    np.testing.assert_allclose(found.presence, expected, rtol=1e-5)
    surest = np.sort(found.levels.reshape(N, -1), axis=1)[:, -4:].mean(axis=1) / 255
    assert np.abs(found.presence - surest).max() > 0.5


@pytest.mark.parametrize("flip", [False, True])
def test_the_mirror_image_is_asked_where_the_config_says_so(
    samples, asking, claiming, flip
):
    config = ml_collections.ConfigDict(asking.to_dict())
    config.eval.tta_flip = flip
    found = eval_pass.predict_split(config, samples, claiming)
    dataset = make_eval_dataset(samples, config=config)
    scores = eval_pass.score(eval_pass.compile_eval_step(config), claiming, dataset, N)
    across = np.linspace(0, 2 * WEIGHT, SIDE)
    halves = np.arange(SIDE) < SIDE // 2
    for sample, levels, presence in zip(
        samples, found.levels, found.presence, strict=True
    ):
        x = seen_by_network(sample)[0] / 255
        # Turned back, the mirror's columns are weighed from the other side.
        logits = x * ((across + across[::-1]) / 2 if flip else across) + BIAS
        assert np.abs(255 * sigmoid(logits) - levels).max() < 0.501
        seen = x.mean() if flip else x[:, halves].mean()
        assert presence == pytest.approx(sigmoid(CLAIM[0] * seen + CLAIM[1]), rel=1e-5)
    above = (found.levels / 255 > THRESHOLD).sum(axis=(1, 2))
    np.testing.assert_array_equal(scores.counts[:, :2].sum(axis=1), above)
    np.testing.assert_allclose(scores.losses, found.losses, rtol=1e-6)
