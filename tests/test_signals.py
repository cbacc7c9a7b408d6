"""Signals: raised, or noted; a second one does what it always did."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from covjax.runtime.signals import Interrupt, Interrupted, raise_signals, shield_workers

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def told_before():
    """Handlers of before, which note the signals that come to them."""
    told = []
    old = {n: signal.signal(n, lambda n, _: told.append(n)) for n, _ in SIGNALS}
    yield told
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_is_raised_with_its_status(told_before, number, status):
    with pytest.raises(Interrupted, match=f"signal {number:d};.*goes on") as error:
        with raise_signals():
            os.kill(os.getpid(), number)
    assert error.value.exit_status == status
    os.kill(os.getpid(), number)
    assert told_before == [number]


@pytest.mark.parametrize(("number", "_"), SIGNALS)
def test_a_second_signal_does_what_it_did_before(told_before, number, _):
    with raise_signals():
        try:
            os.kill(os.getpid(), number)
        except Interrupted:
            os.kill(os.getpid(), number)
    assert told_before == [number]


@pytest.mark.parametrize(("number", "_"), SIGNALS)
def test_where_it_is_only_noted_nothing_is_raised(told_before, number, _):
    with raise_signals(), Interrupt() as interrupt:
        assert interrupt.number is None
        os.kill(os.getpid(), number)
        assert interrupt.number == number
    assert told_before == []


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_one_that_comes_within_a_callback_from_c_is_not_lost(
    told_before, number, status
):
    def collecting(*_: object) -> None:  # as jax does
        gc.callbacks.remove(collecting)
        signal.raise_signal(number)  # and the handler is called

    hook = sys.unraisablehook
    with pytest.raises(Interrupted, match="goes on") as error, raise_signals():
        gc.callbacks.append(collecting)
        gc.collect()
        time.sleep(60)
    assert error.value.exit_status == status
    assert told_before == [] and sys.unraisablehook is hook


def test_what_else_is_dropped_within_a_callback_is_reported(told_before, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    def collecting(*_: object) -> None:
        gc.callbacks.remove(collecting)
        raise ValueError("of the callback")

    with raise_signals():
        gc.callbacks.append(collecting)
        gc.collect()
    assert [repr(one.exc_value) for one in reported] == [
        "ValueError('of the callback')"
    ]


def test_who_takes_every_exception_for_its_own_does_not_take_a_signal():
    with pytest.raises(Interrupted), raise_signals():
        try:  # as jax does around its cache of compiled programs
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pass


def test_after_a_second_signal_a_third_does_what_it_did_before(told_before):
    with raise_signals():
        with pytest.raises(Interrupted), Interrupt():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert told_before == [signal.SIGTERM]


def test_after_the_noting_a_signal_is_raised_again():
    with pytest.raises(Interrupted), raise_signals():
        with Interrupt():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted), raise_signals(), Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)


def test_processes_that_start_with_the_first_element_get_no_signals(told_before):
    program = "import time; print(1, flush=True); time.sleep(60)"

    def elements() -> Iterator[Any]:
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            signal.raise_signal(signal.SIGTERM)  # to this thread: held back
            assert told_before == []
            for number, _ in SIGNALS:
                worker.send_signal(number)
            assert worker.stdout and worker.stdout.read(1) == b"1"
            yield worker
            assert told_before == [signal.SIGTERM]
            yield worker.poll()
            worker.kill()

    worker, ended = shield_workers(elements())
    assert ended is None and worker.returncode == -signal.SIGKILL
    os.kill(os.getpid(), signal.SIGINT)
    assert told_before == [signal.SIGTERM, signal.SIGINT]


def test_all_elements_come_once_and_in_order():
    assert list(shield_workers(range(3))) == [0, 1, 2]
    assert list(shield_workers([])) == []
