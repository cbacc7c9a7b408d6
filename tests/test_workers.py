"""Processes that work for this one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import in_workers
from covjax.workers import Worker, WorkerDied, Workers
from whole_runs import PROJECT


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # What has ended, and was not waited for, is there still.
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(") ")[2][0] != "Z"


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def test_each_worker_is_one_process_of_its_own_and_ends(capfd):
    with Workers(2) as workers:
        asked = [workers[k].submit(in_workers.own_number) for k in range(6)]
        numbers = [future.result() for future in asked]
    assert numbers[:2] * 3 == numbers
    assert len({*numbers, os.getpid()}) == 3
    assert not any(map(is_there, numbers))
    said = capfd.readouterr()
    assert said.out == "" and said.err == "no answer\n" * 6


def test_what_a_function_raises_is_raised_here():
    with Workers(1) as workers:
        with pytest.raises(FileNotFoundError) as caught:
            workers[0].submit(in_workers.fail, "some/film.png").result()
        assert (caught.value.errno, caught.value.filename) == (2, "some/film.png")
        assert workers[0].submit(in_workers.own_number).result()


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ((in_workers.leave, 3), "ended with status 3"),
        ((os.abort,), "ended by signal 6 (Aborted)"),
    ],
)
def test_one_that_dies_is_told_and_replaced(end, told):
    with Workers(1) as workers:
        first = workers[0].submit(in_workers.own_number).result()
        with pytest.raises(WorkerDied) as caught:
            workers[0].submit(*end).result()
        assert str(caught.value) == told
        assert workers[0].submit(in_workers.own_number).result() != first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_for_who_asks(number):
    with Workers(1) as workers:
        process = workers[0].submit(in_workers.own_number).result()
        os.kill(process, number)
        assert workers[0].submit(in_workers.own_number).result() == process


def test_what_is_not_begun_is_not_done(tmp_path):
    worker = Worker()
    asked = [
        worker.submit(in_workers.touch_later, tmp_path / str(k), 0.5) for k in range(3)
    ]
    assert wait_until(asked[0].running)
    worker.cancel()
    worker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert [future.cancelled() for future in asked] == [False, True, True]


def test_they_end_when_who_asks_is_killed():
    program = """if True:
        import time, in_workers
        from covjax.workers import Worker
        print(Worker().submit(in_workers.own_number).result(), flush=True)
        time.sleep(60)
    """
    paths = f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths}, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert is_there(number)
        process.kill()
    assert wait_until(lambda: not is_there(number))


def test_what_films_need_loads_no_jax():
    """It would take each of them a second, and memory of the GPU."""
    program = "import sys, covjax.film_work; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
