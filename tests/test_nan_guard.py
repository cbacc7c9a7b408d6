"""What is said of a step's numbers."""

import math

import pytest

from covjax.errors import Diverged
from covjax.train.nan_guard import Watch


def numbers(loss: float = 0.5, grad_norm: float = 1.0, finite: float = 1.0) -> dict:
    return {"loss": loss, "grad_norm": grad_norm, "finite": finite}


BROKEN = numbers(math.nan, math.inf, finite=0.0)


@pytest.mark.parametrize(
    "odd",
    [numbers(math.nan, finite=0), numbers(0.5, math.inf, 0), numbers(0.5, 1.0, 0)],
    ids=["loss", "gradients", "weights"],
)
def test_a_step_that_is_not_finite_ends_the_run_and_says_the_way_on(odd):
    watch = Watch(skip=False)
    assert watch.look(1, numbers()) is None
    with pytest.raises(Diverged, match=r"step 2 is not finite.*on_nan=skip") as error:
        watch.look(2, odd)
    assert f"loss {odd['loss']:.4g}" in str(error.value)
    assert f"gradients {odd['grad_norm']:.4g}" in str(error.value)


def test_dropped_updates_are_counted_and_told():
    watch = Watch(skip=True, dropped=[3, 5])
    said = watch.look(9, BROKEN)
    assert said is not None
    assert "step 9 is not finite: loss nan, norm of the gradients inf" in said
    assert said.endswith("its update is dropped, 3 so far")
    assert watch.look(10, numbers()) is None


def test_ten_dropped_in_a_row_end_the_run():
    watch = Watch(skip=True)
    for step in range(1, 10):
        watch.look(step, BROKEN)
    with pytest.raises(Diverged, match="step 10 is not finite .*nor were the 9 before"):
        watch.look(10, BROKEN)


def test_a_good_step_between_begins_the_row_anew():
    watch = Watch(skip=True)
    for step in [*range(1, 10), *range(11, 20)]:
        watch.look(step, BROKEN)
    watch.look(20, numbers())
    with pytest.raises(Diverged, match="step 30"):
        for step in range(21, 31):
            watch.look(step, BROKEN)


def test_a_run_that_goes_on_remembers_the_row():
    watch = Watch(skip=True, dropped=range(4, 13))
    with pytest.raises(Diverged, match="step 13"):
        watch.look(13, BROKEN)


def wave(step: int) -> float:
    """Losses that alternate between .4 and .6: median .5, median deviation .1."""
    return 0.4 + 0.2 * (step % 2)


@pytest.mark.parametrize("before", [20, 150])
def test_a_loss_far_above_those_before_is_told(before):
    watches = Watch(skip=False), Watch(skip=False)
    for step in range(before):
        for watch in watches:
            assert watch.look(step, numbers(wave(step))) is None
    # 10 times 1.4826 times .1 above .5 is 1.9826.
    below, above = (
        watch.look(before, numbers(loss))
        for watch, loss in zip(watches, (1.98, 1.99), strict=True)
    )
    assert below is None
    assert above is not None
    assert above.startswith(f"step {before}: the loss jumps to 1.99")


def test_a_loss_that_falls_far_is_no_jump():
    watch = Watch(skip=False)
    for step in range(50):
        watch.look(step, numbers(10 + wave(step)))
    assert watch.look(50, numbers(0.1)) is None


def test_few_losses_and_equal_ones_tell_no_jump():
    watch = Watch(skip=False)
    for step in range(19):
        watch.look(step, numbers(wave(step)))
    assert watch.look(19, numbers(100.0)) is None
    equal = Watch(skip=False)
    for step in range(30):
        equal.look(step, numbers(0.5))
    assert equal.look(30, numbers(0.6)) is None


def test_a_level_that_stays_high_is_forgotten_after_a_hundred_steps():
    watch = Watch(skip=False)
    for step in range(100):
        watch.look(step, numbers(wave(step)))
    told = [watch.look(100 + k, numbers(5 + wave(k))) is not None for k in range(120)]
    assert told[0] and not any(told[60:])
