"""Processes that work for this one."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import in_limits
import in_workers
from covjax.runtime.worker_process import Limits, WorkerDied, Workers
from processes import is_there, wait_until
from whole_runs import PROJECT


def test_each_worker_is_one_process_of_its_own_and_ends(capfd, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
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
            workers[0].submit(in_workers.fail, "some/image.png").result()
        assert (caught.value.errno, caught.value.filename) == (2, "some/image.png")
        assert "in fail\n" in caught.value.__notes__[0]  # where it came from
        assert workers[0].submit(in_workers.own_number).result()


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (in_workers.fail_in_two_words, "TwoWords: some thing"),
        (in_workers.give_a_lambda, "give_a_lambda.<locals>.<lambda>"),
    ],
)
def test_what_cannot_travel_is_told(function, told):
    with Workers(1) as workers:
        process = workers[0].submit(in_workers.own_number).result()
        error = workers[0].submit(function).exception()
        assert told in str(error)
        # What is asked next is answered, and not what was asked before.
        assert workers[0].submit(in_workers.own_number).result() == process


def test_one_that_dies_while_it_waits_costs_nothing():
    with Workers(1) as workers:
        process = workers[0].submit(in_workers.own_number).result()
        os.kill(process, signal.SIGKILL)
        assert wait_until(lambda: not is_there(process))
        assert workers[0].submit(in_workers.own_number).result() != process


def test_what_is_printed_while_python_starts_is_no_answer(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('hello')\n")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *paths]))
    with Workers(1) as workers:
        assert workers[0].submit(in_workers.own_number).result() != os.getpid()


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


@pytest.mark.parametrize(
    ("limits", "function", "told"),
    [
        ((1, 60, 2**30), in_limits.spin, "took more than 1 s of CPU time"),
        ((60, 2, 2**30), in_limits.wait, "took more than 2 s"),
        ((60, 2, 2**30), in_limits.stop, "took more than 2 s"),
        ((60, 60, 2**30), in_limits.die_killed, "was killed (signal 9), as a system"),
        ((60, 60, 2**31), os.abort, "perhaps as it needed more than 2 GiB"),
    ],
)
def test_a_request_beyond_a_limit_ends_its_process_alone(limits, function, told):
    with Workers(1, Limits(*limits)) as workers:
        first = workers[0].submit(in_limits.own_number).result()
        with pytest.raises(WorkerDied) as caught:
            workers[0].submit(function).result()
        assert told in str(caught.value)
        assert workers[0].submit(in_limits.own_number).result() != first


def test_memory_is_limited_for_each_request():
    with Workers(1, Limits(60, 60, 2**26)) as workers:
        process = workers[0].submit(in_limits.own_number).result()
        with pytest.raises(MemoryError):
            workers[0].submit(in_limits.allocate, 2**27).result()
        # What the process keeps from one request does not count for the next.
        for k in range(1, 4):
            assert workers[0].submit(in_limits.keep, 2**25).result() == k * 2**25
        assert workers[0].submit(in_limits.own_number).result() == process


def test_time_is_limited_for_each_request():
    with Workers(1, Limits(1, 60, 2**30)) as workers:
        process = workers[0].submit(in_limits.own_number).result()
        for _ in range(4):
            workers[0].submit(in_limits.use_cpu, 0.4).result()
        assert workers[0].submit(in_limits.own_number).result() == process


def test_one_that_is_stopped_while_it_waits_is_replaced():
    with Workers(1, Limits(60, 2, 2**30)) as workers:
        process = workers[0].submit(in_limits.own_number).result()
        os.kill(process, signal.SIGSTOP)
        assert workers[0].submit(in_limits.own_number).result() != process


def test_one_that_is_stopped_ends_in_the_end():
    with Workers(1, Limits(60, 2, 2**30)) as workers:
        process = workers[0].submit(in_limits.own_number).result()
        os.kill(process, signal.SIGSTOP)
    assert not is_there(process)


def test_no_core_file_is_left():
    with Workers(1) as workers:
        assert workers[0].submit(in_limits.core_limit).result() == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_for_who_asks(number):
    with Workers(1) as workers:
        process = workers[0].submit(in_workers.own_number).result()
        os.kill(process, number)
        assert workers[0].submit(in_workers.own_number).result() == process


def test_what_is_not_begun_is_not_done(tmp_path):
    may_end = tmp_path / "may end"

    def let_end() -> None:
        wait_until(lambda: all(future.cancelled() for future in asked[2:]))
        may_end.touch()

    with ThreadPoolExecutor(1) as thread, Workers(2) as workers:
        asked = [
            workers[k].submit(in_workers.touch_once, may_end, tmp_path / str(k))
            for k in range(6)
        ]
        thread.submit(let_end)
        assert wait_until(lambda: asked[0].running() and asked[1].running())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "may end"]
    assert [future.cancelled() for future in asked] == [False] * 2 + [True] * 4


def test_they_end_when_who_asks_is_killed():
    program = """if True:
        import time, in_workers
        from covjax.runtime.worker_process import Worker
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


def test_what_a_process_with_limits_prints_is_discarded(capfd):
    with Workers(1, Limits(seconds=60, wall=60, memory=2**30)) as workers:
        assert workers[0].submit(in_limits.print_lines).result() == "done"
    assert capfd.readouterr() == ("", "")
