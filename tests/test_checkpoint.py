"""Checkpoints: which are kept, what they hold, and what a damaged one says."""

import errno
import logging
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from covjax.errors import StorageError, UsageError
from covjax.models.unet import UNet
from covjax.train import checkpoint
from covjax.train.checkpoint import (
    Checkpoints,
    best_of,
    read_variables,
    set_aside_damaged,
)
from covjax.train.train_state import TrainState, start_state

DICE = [0.5, 0.9, 0.7, 0.6]  # of Val, after steps 1, 2, 3, 4
# Orbax writes into a folder with this ending, and renames it when all is written.
UNFINISHED = ".orbax-checkpoint-tmp"


def make_state(
    step: int, width: int = 30, *, statistics: bool = True, averages: bool = False
) -> TrainState:
    """A state whose every leaf tells the step; it needs no network."""
    rng = np.random.default_rng((step, width))

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    params = {
        "encoder_0": {"conv_0": {"kernel": draw(3, 3, 1, width)}},
        "head": {"bias": draw(1), "kernel": draw(1, 1, width, 1)},
    }
    stats = {"encoder_0": {"norm_0": {"mean": draw(width), "var": draw(width)}}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = start_state(UNet(), tx, params, stats if statistics else {})
    moments = jax.tree.map(
        lambda leaf: draw(*leaf.shape) if leaf.ndim else np.int32(step),
        state.opt_state,
    )
    state = state.replace(step=np.int32(step), opt_state=moments)
    if not averages:
        return state
    averaged = jax.tree.map(lambda leaf: draw(*leaf.shape), state.variables())
    return state.replace(averaged=averaged)


def write_run(workdir: Path, dice: list[float], **settings) -> Path:
    with Checkpoints(workdir) as checkpoints:
        for step, value in enumerate(dice, 1):
            checkpoints.save(make_state(step, **settings), dice=value)
    return workdir


def steps_in(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def content(state: TrainState) -> dict:
    names = ("step", "params", "batch_stats", "opt_state", "averaged")
    return {name: getattr(state, name) for name in names}


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(x, y, err_msg=str(path))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "lung", DICE)


@pytest.fixture
def run(written, tmp_path) -> Path:
    """A run that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "lung"))


def test_new_run_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None


def test_latest_and_best_are_kept_and_the_others_deleted(written):
    assert steps_in(written) == ["2", "4"]
    with Checkpoints(written) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (4, 2)


@pytest.mark.parametrize(
    ("dice", "kept", "best"),
    [([0.1, 0.2, 0.3], ["3"], 3), ([0.3, 0.2, 0.1], ["1", "3"], 1)],
    ids=["rising", "falling"],
)
def test_best_has_the_highest_dice(tmp_path, dice, kept, best):
    workdir = write_run(tmp_path, dice)
    assert steps_in(workdir) == kept
    with Checkpoints(workdir) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (3, best)


def test_best_of_equals_is_kept(tmp_path):
    workdir = write_run(tmp_path, [0.5, 0.9, 0.9, 0.1])
    with Checkpoints(workdir) as checkpoints:
        best = checkpoints.best()
        assert best in (2, 3)
        assert steps_in(workdir) == [str(best), "4"]
        assert_same(
            content(checkpoints.restore(make_state(0), best)), content(make_state(best))
        )


def test_run_that_goes_on_remembers_its_best(run):
    with Checkpoints(run) as checkpoints:
        checkpoints.save(make_state(5), dice=0.8)
        checkpoints.save(make_state(6), dice=0.85)
    assert steps_in(run) == ["2", "6"]
    with Checkpoints(run) as checkpoints:
        checkpoints.save(make_state(7), dice=0.95)
    assert steps_in(run) == ["7"]


@pytest.mark.parametrize("step", [2, 4])
def test_restored_state_has_the_same_bits(written, step):
    with Checkpoints(written) as checkpoints:
        restored = checkpoints.restore(make_state(0), step)
    assert int(restored.step) == step
    assert_same(content(restored), content(make_state(step)))


def test_state_without_batch_statistics_is_restored(tmp_path):
    write_run(tmp_path, [0.5], statistics=False)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0, statistics=False), 1)
    assert_same(content(restored), content(make_state(1, statistics=False)))
    assert read_variables(tmp_path / "checkpoints" / "1")["batch_stats"] == {}


@pytest.fixture(scope="module")
def averaging(tmp_path_factory) -> Path:
    """A run that averages its weights."""
    folder = tmp_path_factory.mktemp("runs") / "averaging"
    return write_run(folder, [0.5, 0.4], averages=True)


@pytest.mark.parametrize("step", [1, 2])
def test_averages_are_restored_beside_the_weights_that_training_goes_on_from(
    averaging, step
):
    expected = make_state(step, averages=True)
    weights, averages = (
        variables["params"]["head"]["bias"]
        for variables in (expected.variables(), expected.evaluated())
    )
    assert not np.array_equal(weights, averages)
    with Checkpoints(averaging) as checkpoints:
        restored = checkpoints.restore(make_state(0, averages=True), step)
    assert_same(content(restored), content(expected))
    assert restored.averaged is not None and restored.evaluated() is restored.averaged


def test_run_that_averages_nothing_keeps_what_it_always_kept(written, averaging):
    """Checkpoints of older versions are read by this one, and the other way round."""
    kept = {"step", "params", "batch_stats", "opt_state"}
    for run, more in ((written, set()), (averaging, {"averaged"})):
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(run / "checkpoints" / "2" / "state")
        assert set(tree) == kept | more


@pytest.mark.parametrize("statistics", [True, False])
def test_variables_are_the_averages_where_the_run_has_them(
    averaging, tmp_path, statistics
):
    run = averaging
    if not statistics:
        run = write_run(tmp_path, [0.5], averages=True, statistics=False)
    expected = make_state(1, averages=True, statistics=statistics).averaged
    variables = read_variables(run / "checkpoints" / "1")
    assert_same(variables, expected)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("whole", [True, False], ids=["all files", "first files"])
def test_checkpoint_that_was_not_finished_is_not_seen(run, whole):
    begun = run / "checkpoints" / f"9{UNFINISHED}"
    if whole:
        shutil.copytree(run / "checkpoints" / "2", begun)
    else:
        (begun / "state").mkdir(parents=True)
    with Checkpoints(run) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (4, 2)
    assert best_of(str(run)) == run / "checkpoints" / "2"
    with Checkpoints(run) as checkpoints:  # and the step can be written again
        checkpoints.save(make_state(9), dice=0.99)
    with Checkpoints(run) as checkpoints:
        assert_same(
            content(checkpoints.restore(make_state(0), 9)), content(make_state(9))
        )


def test_best_of_a_run_is_its_best_checkpoint(written):
    assert best_of(str(written)) == written / "checkpoints" / "2"


def test_best_of_a_checkpoint_is_itself(written):
    chosen = written / "checkpoints" / "4"
    assert best_of(str(chosen)) == chosen


@pytest.mark.parametrize("name", ["nothing", "empty", "file", "begun", "states"])
def test_best_of_anything_else_says_what_to_give(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "begun" / "checkpoints" / f"3{UNFINISHED}" / "state").mkdir(
        parents=True
    )
    (tmp_path / "states" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="neither a run") as caught:
        best_of(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "RUN/checkpoints/STEP" in str(caught.value)


def test_best_of_leaves_no_trace_in_what_is_no_run(tmp_path):
    with pytest.raises(UsageError):
        best_of(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_variables_are_exactly_parameters_and_statistics_in_numpy(written):
    variables = read_variables(written / "checkpoints" / "2")
    assert_same(variables, make_state(2).variables())
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(variables))


def test_variables_of_any_shape_are_read(tmp_path):
    write_run(tmp_path, [0.5], width=7)
    variables = read_variables(tmp_path / "checkpoints" / "1")
    assert_same(variables, make_state(1, width=7).variables())


def damage(state: Path, how: str) -> None:
    if how == "emptied":
        shutil.rmtree(state)
        state.mkdir()
    elif how == "without description":
        (state / "_METADATA").unlink()
    elif how == "cut manifest":
        cut(state / "manifest.ocdbt")
    elif how == "cut index":
        for path in (state / "d").iterdir():
            cut(path)
    else:
        files = [path for path in state.rglob("*") if path.is_file()]
        cut(max(files, key=lambda path: path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def closed_loops() -> None:
    """Drops what Orbax's readers say after the first of them has failed, from now on.

    They report to an event loop that is closed by then; each of them would count as a
    warning here, of this test or, as nobody waits for them, of a later one.
    """
    before = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = tell


DAMAGES = ["emptied", "without description", "cut manifest", "cut index", "cut arrays"]
WITH_DIGESTS = pytest.mark.parametrize("digests", [True, False], ids=["", "older"])


def forget_digests(folder: Path, digests: bool) -> None:
    if not digests:  # of a version that wrote none
        (folder / "digests.json").unlink()


def error_of(call: Callable[[], object]) -> tuple[str, str]:
    """Kind and text of an error, without the traceback that holds Orbax's readers."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.usefixtures("closed_loops")
@pytest.mark.parametrize("how", DAMAGES)
@WITH_DIGESTS
def test_damaged_checkpoint_cannot_start_a_run_and_is_named(run, how, digests):
    folder = run / "checkpoints" / "2"
    damage(folder / "state", how)
    forget_digests(folder, digests)
    kind, text = error_of(lambda: read_variables(folder))
    assert kind == "UsageError"
    assert text.startswith(f"{folder}: not ")
    assert "whole" in text
    assert text.count("\n") <= 1


@pytest.mark.usefixtures("closed_loops")
@pytest.mark.parametrize("how", DAMAGES)
@WITH_DIGESTS
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(run, how, digests):
    folder = run / "checkpoints" / "4"
    damage(folder / "state", how)
    forget_digests(folder, digests)
    with Checkpoints(run) as checkpoints:
        state, told = checkpoints.restore_newest(make_state(0))
        assert state is not None
        assert_same(content(state), content(make_state(2)))
        (line,) = told
        assert line.startswith(f"WARNING: {folder}: cannot be restored (")
        assert line.endswith(f"moved to {run / 'damaged' / '4'}")
        assert "\n" not in line
        checkpoints.save(make_state(4), dice=0.6)  # the step can be written again
    assert steps_in(run) == ["2", "4"]
    with Checkpoints(run) as checkpoints:
        state, told = checkpoints.restore_newest(make_state(0))
    assert state is not None and int(state.step) == 4 and told == []


def test_a_bit_that_changed_on_the_disk_is_not_taken_for_a_weight(run):
    state = run / "checkpoints" / "4" / "state"
    arrays = max(state.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(bytes(content))
    (line,) = set_aside_damaged(run)
    assert f"{arrays.relative_to(run / 'checkpoints' / '4')} has changed" in line
    assert steps_in(run) == ["2"]
    assert set_aside_damaged(run) == []


def test_nothing_whole_is_set_aside(run):
    assert set_aside_damaged(run) == []
    assert steps_in(run) == ["2", "4"]


def test_where_nothing_whole_is_left_the_run_does_not_begin_anew(run):
    for step in ("2", "4"):
        cut(run / "checkpoints" / step / "state" / "manifest.ocdbt")
    assert len(set_aside_damaged(run)) == 2
    for _ in range(2):  # nor at the next try
        with Checkpoints(run) as checkpoints:
            with pytest.raises(UsageError, match="no whole checkpoint is left"):
                checkpoints.restore_newest(make_state(0))
    assert sorted(p.name for p in (run / "damaged").iterdir()) == ["2", "4"]


def test_a_step_that_is_damaged_twice_is_kept_twice(run):
    for _ in range(2):
        cut(run / "checkpoints" / "4" / "state" / "manifest.ocdbt")
        set_aside_damaged(run)
        with Checkpoints(run) as checkpoints:
            checkpoints.save(make_state(4), dice=0.6)
    assert sorted(p.name for p in (run / "damaged").iterdir()) == ["4", "4-1"]


@pytest.mark.usefixtures("closed_loops")
def test_a_whole_checkpoint_of_another_kind_of_state_stays_where_it_is(run):
    state = make_state(0)
    other = state.replace(opt_state=optax.sgd(1.0, momentum=0.9).init(state.params))
    with Checkpoints(run) as checkpoints:
        kind, text = error_of(lambda: checkpoints.restore_newest(other))
    assert kind == "UsageError"
    assert text.startswith(f"{run / 'checkpoints' / '4'}: cannot be restored (")
    assert "with other versions of the packages" in text and text.count("\n") <= 1
    assert steps_in(run) == ["2", "4"] and not (run / "damaged").exists()


def test_a_new_run_has_nothing_to_go_on_from(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(make_state(0)) == (None, [])


def test_a_disk_that_is_full_is_told_in_a_line(run, monkeypatch):
    def fail(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: d/1: No space left on device [\n...]")

    with Checkpoints(run) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "save", fail)
            with pytest.raises(StorageError, match="No space left on device") as error:
                checkpoints.save(make_state(5), dice=0.5)
        assert str(run / "checkpoints") in str(error.value)
        assert "\n" not in str(error.value)
    assert steps_in(run) == ["2", "4"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_disk_that_lets_nothing_be_deleted_loses_nothing(run, monkeypatch, number):
    remove = shutil.rmtree

    def fail(path, *rest, **settings):
        if Path(path).parent.name == "checkpoints":
            raise OSError(number, os.strerror(number), str(path))
        return remove(path, *rest, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(StorageError, match=os.strerror(number)) as error:
            with Checkpoints(run) as checkpoints:
                checkpoints.save(make_state(5), dice=0.6)
    assert "\n" not in str(error.value)
    assert set_aside_damaged(run) == [] and {"2", "5"} <= set(steps_in(run))
    with Checkpoints(run) as checkpoints:
        state, told = checkpoints.restore_newest(make_state(0))
        assert state is not None and int(state.step) == 5 and told == []


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_disk_that_does_not_answer_is_no_damage(run, monkeypatch, number):
    opened = Path.open

    def fail(path, *rest, **settings):
        if path.name == "manifest.ocdbt":
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *rest, **settings)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(StorageError, match="says nothing of its files") as error:
        set_aside_damaged(run)
    assert f"checkpoints/2: cannot be read ({os.strerror(number)})" in str(error.value)
    with Checkpoints(run) as checkpoints:

        def stale(*_, **__):
            raise ValueError(f"NOT_FOUND: a/b: {os.strerror(number)} [\n...]")

        monkeypatch.setattr(checkpoints._manager, "restore", stale)
        with pytest.raises(
            StorageError, match=f"4: cannot be read .{os.strerror(number)}"
        ):
            checkpoints.restore_newest(make_state(0))
    assert steps_in(run) == ["2", "4"] and not (run / "damaged").exists()


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_told(run, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_digests", fail)  # in Orbax's own thread
    with pytest.raises(StorageError, match="No space left on device"):
        with Checkpoints(run) as checkpoints:
            checkpoints.save(make_state(5), dice=0.95)
    assert {"2", "4"} < set(steps_in(run))  # the best before it is not yet deleted
    with Checkpoints(run) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (4, 2)


def test_of_writes_that_fail_one_alone_is_told(run, monkeypatch, caplog):
    told, log = [], logging.getLogger("asyncio").error
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    closed, other = (
        cast(Any, types.SimpleNamespace(exc_value=RuntimeError(text)))
        for text in ("Event loop is closed", "Event loop is not closed")
    )

    def complain() -> None:
        for unraisable in (closed, other):
            sys.unraisablehook(unraisable)
        for text in ("Task exception was never retrieved\nfuture: …", "Executing …"):
            log(text)

    with Checkpoints(run):
        complain()
    assert told == [other]
    assert [record.getMessage() for record in caplog.records] == ["Executing …"]
    complain()  # all is as it was before
    assert told == [other, closed, other]
    assert len(caplog.records) == 3


def test_damaged_figures_of_a_checkpoint_are_named(run):
    (run / "checkpoints" / "2" / "metrics" / "metrics").write_bytes(b"")
    kind, text = error_of(lambda: best_of(str(run)))
    assert kind == "UsageError"
    assert str(run) in text


def test_what_is_no_checkpoint_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="not a whole checkpoint") as caught:
            read_variables(folder)
        assert str(folder) in str(caught.value)
