"""Scores of a split equal those of one film at a time, and the files agree."""

import csv
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from PIL import Image

from configs import infection
from covjax import evaluate, parallel
from covjax.data.covidqu import PHANTOM_MARKER, Film, read_film
from covjax.data.pipeline import make_eval_dataset
from covjax.report.figures import Panel
from covjax.train_state import TrainState

SIDE, N, BATCH = 32, 21, 16  # two batches, of which the second is padded by 11
LABELS = ["COVID-19", "Non-COVID", "Normal"]
THRESHOLD = 0.4
# The network: one weight and one bias, so that NumPy computes it as well.
WEIGHT, BIAS = 6.0, -3.0


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Film]:
    """A third has infection; some of the others are dark: nothing will be found."""
    folder = tmp_path_factory.mktemp("films")
    films = []
    for k in range(N):
        rng = np.random.default_rng(k)
        brightest = 60 if k % 3 and k % 2 else 256
        film = rng.integers(0, brightest, (SIDE, SIDE), np.uint8)
        lung = np.zeros_like(film)
        lung[4 : 20 + k % 8, 4:28] = 255
        sick = lung * (rng.random((SIDE, SIDE)) < 0.1 + k / 30) * (k % 3 == 0)
        paths = [folder / f"{k}-{kind}.png" for kind in ("film", "lung", "sick")]
        for path, array in zip(paths, (film, lung, sick), strict=True):
            Image.fromarray(array.astype(np.uint8)).save(path)
        films.append(Film(f"film, {k}.png", LABELS[k % 3], "Test", *paths))
    return films


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
        return images * variables["params"]["weight"] + variables["params"]["bias"]

    state = TrainState.create(
        apply_fn=apply,
        tx=optax.identity(),
        params={"weight": jnp.float32(WEIGHT), "bias": jnp.float32(BIAS)},
        batch_stats={},
    )
    return parallel.replicate(state.replace(step=77))


@pytest.fixture(scope="module")
def eval_step(config):
    return evaluate.compile_eval_step(config)


def seen_by_network(film: Film) -> tuple[np.ndarray, np.ndarray]:
    """The film inside its lungs, and its infection."""
    record = read_film(film, SIDE)
    return record["image"] * record["lung"], record["infection"]


def expected_scores(film: Film) -> tuple[list[int], float]:
    """Counts and loss of one film, in float64."""
    image, truth = seen_by_network(film)
    logits = WEIGHT * image.astype(np.float64) / 255 + BIAS
    p = 1 / (1 + np.exp(-logits))
    found, true = p > THRESHOLD, truth > 0
    counts = [found & true, found & ~true, ~found & true, ~found & ~true]
    dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    bce = -np.where(true, np.log(p), np.log(1 - p)).mean()
    return [int(c.sum()) for c in counts], 0.7 * dice + 0.3 * bce


def test_split_over_eight_devices_scores_as_one_film_at_a_time(
    films, config, state, eval_step
):
    assert jax.device_count() == 8
    dataset = make_eval_dataset(films, config=config)
    scores = evaluate.score(eval_step, state, dataset, N)
    assert scores.counts.shape == (N, 4) and scores.counts.dtype == np.int64
    assert scores.losses.shape == (N,) and scores.losses.dtype == np.float64
    counts, losses = zip(*map(expected_scores, films), strict=True)
    assert scores.counts.tolist() == list(counts)
    np.testing.assert_allclose(scores.losses, losses, rtol=2e-6)


def test_scores_do_not_depend_on_the_batch(films, config, state, eval_step):
    one = evaluate.score(eval_step, state, make_eval_dataset(films, config=config), N)
    other = ml_collections.ConfigDict(config.to_dict())
    other.train.batch_size = 8
    two = evaluate.score(eval_step, state, make_eval_dataset(films, config=other), N)
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-6)


@pytest.mark.parametrize("given", [slice(0, 1), slice(1, 2)], ids=["last", "first"])
def test_batch_that_is_missing_is_an_error(films, config, state, eval_step, given):
    batches = list(make_eval_dataset(films, config=config))
    missing = N - BATCH if given.start == 0 else BATCH
    with pytest.raises(RuntimeError, match=f"{missing} of {N} films were not scored"):
        evaluate.score(eval_step, state, batches[given], N)


def test_film_that_comes_twice_is_an_error(films, config, state, eval_step):
    batches = list(make_eval_dataset(films, config=config))
    with pytest.raises(RuntimeError, match=f"5 of {N} films were not scored once"):
        evaluate.score(eval_step, state, [*batches, batches[1]], N)


class Evaluated(NamedTuple):
    """What `evaluate_split` left: a run's folder, and what its figure shows."""

    workdir: Path
    figure: Path
    panels: list[Panel]
    title: str


@pytest.fixture(scope="module")
def evaluated(films, config, state, tmp_path_factory) -> Evaluated:
    workdir = tmp_path_factory.mktemp("runs") / "infection"
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "draw_qualitative", lambda *args: drawn.append(args))
        summary = evaluate.evaluate_split(
            config, workdir, workdir.parent, films, "Test", state
        )
    assert summary == read_results(workdir)
    (arguments,) = drawn
    return Evaluated(workdir, *arguments)


@pytest.fixture
def workdir(evaluated) -> Path:
    return evaluated.workdir


def read_results(workdir: Path) -> dict:
    return json.loads((workdir / "results" / "test.json").read_text())


def read_rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results" / "test.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_json_has_the_keys_that_others_read(workdir):
    results = read_results(workdir)
    interval = {"mean", "low", "high"}
    assert set(results) == {
        "split", "n", "n_empty", "threshold", "loss",
        "all", "positive", "pooled", "blank_rate",
        "task", "roi", "image_size", "checkpoint", "phantom",
    }  # fmt: skip
    for family in ("all", "positive", "pooled"):
        assert set(results[family]) == {"dice", "iou"}
        for figure in results[family].values():
            assert set(figure) == interval
            assert figure["low"] < figure["mean"] < figure["high"]
    assert set(results["blank_rate"]) == {*interval, "Normal", "Non-COVID"}


def test_json_says_what_was_evaluated(workdir):
    about = {"split": "test", "n": N, "n_empty": 14, "threshold": THRESHOLD}
    about |= {"task": "infection", "roi": "truth", "image_size": SIDE}
    about |= {"checkpoint": 77, "phantom": False}
    results = read_results(workdir)
    assert {name: results[name] for name in about} == about


def test_csv_has_a_row_a_film_in_order(workdir, films):
    rows = read_rows(workdir)
    columns = ["file", "class", "TP", "FP", "FN", "TN", "loss", "dice", "iou"]
    assert list(rows[0]) == columns
    assert [row["file"] for row in rows] == [film.name for film in films]
    assert [row["class"] for row in rows] == [film.label for film in films]
    for row, film in zip(rows, films, strict=True):
        counts, loss = expected_scores(film)
        assert [int(row[name]) for name in ("TP", "FP", "FN", "TN")] == counts
        assert math.isclose(float(row["loss"]), loss, rel_tol=2e-6)


def test_rows_of_the_csv_give_the_figures_of_the_json(workdir):
    rows, results = read_rows(workdir), read_results(workdir)
    numbers = {
        name: np.array([float(row[name]) for row in rows])
        for name in ("TP", "FP", "FN", "loss", "dice", "iou")
    }
    tp, fp, fn, loss, dice, iou = numbers.values()
    label = np.array([row["class"] for row in rows])
    empty, blank = tp + fn == 0, tp + fp == 0
    expected = {
        "all": (dice.mean(), iou.mean()),
        "positive": (dice[~empty].mean(), iou[~empty].mean()),
        "pooled": (
            2 * tp.sum() / (2 * tp + fp + fn).sum(),
            tp.sum() / (tp + fp + fn).sum(),
        ),
    }
    for family, (of_dice, of_iou) in expected.items():
        assert results[family]["dice"]["mean"] == pytest.approx(of_dice, rel=1e-12)
        assert results[family]["iou"]["mean"] == pytest.approx(of_iou, rel=1e-12)
    assert results["loss"] == pytest.approx(loss.mean(), rel=1e-12)
    assert results["n_empty"] == empty.sum()
    rates = results["blank_rate"]
    assert rates["mean"] == pytest.approx(blank[empty].mean())
    for name in ("Normal", "Non-COVID"):
        assert rates[name] == pytest.approx(blank[empty & (label == name)].mean())
    assert 0 < rates["mean"] < 1  # or the lines above would say little
    # An empty output for an empty truth is right; for a single film, by definition.
    union = tp + fp + fn
    np.testing.assert_allclose(iou, np.where(union, tp / np.maximum(union, 1), 1))
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou))


def test_figure_shows_what_the_network_saw_and_made_of_it(evaluated, films):
    assert evaluated.figure == evaluated.workdir / "figures" / "qualitative.png"
    assert evaluated.title == "infection, Test: infection"
    names = [panel.title.split(":")[0] for panel in evaluated.panels]
    assert names == ["severe", "mild", "Normal"]
    for panel in evaluated.panels:
        name = panel.title.split("\n")[0].split(": ")[1]
        (film,) = (film for film in films if film.name == name)
        image, truth = seen_by_network(film)
        np.testing.assert_array_equal(panel.film, read_film(film, SIDE)["image"])
        np.testing.assert_array_equal(panel.seen, image)
        np.testing.assert_array_equal(panel.truth, truth)
        found = 1 / (1 + np.exp(-(WEIGHT * image / 255 + BIAS))) > THRESHOLD
        np.testing.assert_array_equal(panel.output, found)
        assert f"{truth.sum()} px true, {found.sum()} found" in panel.title


def test_phantoms_are_marked_in_results_and_figure(films, config, state, tmp_path):
    (tmp_path / PHANTOM_MARKER).write_text("{}")
    run = tmp_path / "run"
    titles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluate, "draw_qualitative", lambda *args: titles.append(args[2])
        )
        results = evaluate.evaluate_split(config, run, tmp_path, films, "Val", state)
    assert titles == ["PHANTOM infection, Val: run"]
    assert results["phantom"] is True
    assert sorted(p.name for p in (run / "results").iterdir()) == [
        "val.csv",
        "val.json",
    ]


def test_split_without_any_film_to_show_is_still_evaluated(
    films, config, state, tmp_path
):
    pneumonia = [film for film in films if film.label == "Non-COVID"]
    results = evaluate.evaluate_split(
        config, tmp_path / "run", tmp_path, pneumonia, "Test", state
    )
    assert (results["n"], results["n_empty"]) == (7, 7)
