"""A process that stands still ends with a line, and its run with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from covjax.errors import UsageError
from covjax.runtime import watchdog
from test_distributed import _JOIN, two

# The first process is one beat further than the second.
_STUCK = """
from covjax.runtime import watchdog
os.environ["COVJAX_STALL_MINUTES"] = "0.02"
with watchdog.watched():
    for k in range(8 + (rank == 0)):
        watchdog.beat("loading images" if k % 2 else "computing")
        time.sleep(0.05)
    time.sleep(100)
"""


def test_all_processes_name_the_one_that_is_stuck(tmp_path):
    with two(tmp_path, "stuck", _JOIN, _STUCK) as group:
        group.finish(1, 1)
        for rank in (0, 1):
            said = group.said(rank)
            assert "minutes: process 1 (" in said and "process 0 (" not in said
            assert "), while loading images. What is whole stays" in said


@pytest.mark.parametrize(
    ("changes", "stuck"),
    [
        ({}, "process 1, while loading images"),
        ({"still": 59.0}, None),  # it has moved a minute ago
        ({"watched": False}, None),  # at work on what may take as long as it will
        ({"count": 9}, "process 0, while computing"),
        ({"count": 7}, "process 0, while computing and process 1, while loading"),
    ],
)
def test_who_is_furthest_behind_is_judged(changes, stuck):
    about = {"watched": True, "patience": 60.0, "still": 60.0}
    dog = object.__new__(watchdog._Watchdog)
    dog._own = watchdog._Seen("process 0", count=7, doing="computing", **about)
    told = about | {"count": 5, "doing": "loading images"} | changes
    dog._others = {"1": watchdog._Seen("process 1", **told)}
    verdict = dog._judge()
    assert verdict is None if stuck is None else f"minutes: {stuck}" in str(verdict)


_ALONE = """
import multiprocessing, os, signal, sys, time
from covjax.runtime import watchdog
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
child.start()
os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
with watchdog.watched():
    for _ in range(30):
        time.sleep(0.1)
        watchdog.beat("computing")
    watchdog.beat("loading images")
    child.join()
"""


def test_a_run_that_waits_for_a_process_that_was_stopped_ends(tmp_path):
    env = os.environ | {watchdog.VARIABLE: "0.02"}
    env["PYTHONPATH"] = str(Path(watchdog.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ALONE],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "stuck for 0.02" in done.stderr and "while loading images" in done.stderr
    assert not Path(f"/proc/{done.stdout.strip()}/cwd").exists()  # nor is the child


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(watchdog.VARIABLE, text)
    with pytest.raises(UsageError, match=f"^{watchdog.VARIABLE}={text}: must be"):
        with watchdog.watched():
            pytest.fail("entered")


def test_0_turns_it_off(monkeypatch):
    monkeypatch.setenv(watchdog.VARIABLE, "0")
    monkeypatch.setattr(watchdog, "_watchdog", None)
    with watchdog.watched():
        watchdog.beat("anything")
    assert watchdog._watchdog is None
