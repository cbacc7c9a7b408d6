"""Errors of the machine are said in a line, others with their traceback."""

import errno
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from covjax.errors import Diverged, Failure, UsageError
from covjax.runtime import distributed
from covjax.runtime.distributed import LOST
from covjax.runtime.exit_messages import tell
from covjax.runtime.signals import Interrupted
from whole_runs import PROJECT, environment

SETTINGS = (
    "train.batch_size",
    "data.image_size",
    "model.width",
    "model.remat",
    "augment.where",
    "data.cache",
)


def lacking(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


def ask_for_too_much() -> BaseException:
    with pytest.raises(MemoryError) as error:
        np.empty(2**60, np.uint8)
    return error.value


@pytest.mark.parametrize(
    "number",
    [
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE,
    ],
)  # fmt: skip
def test_storage_that_fails_is_told_with_the_file(capsys, number):
    assert tell(OSError(number, os.strerror(number), "runs/a/test.csv")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"covjax: runs/a/test.csv: {os.strerror(number)}. What is")
    assert said.count("\n") == 1


def test_a_terminal_obeys_nothing_that_is_said(capsys):
    assert tell(UsageError("run \x1b[31m\x07ü\nsecond \udcff\u202e")) == 2
    said = "covjax: run \\x1b[31m\\x07ü\nsecond \\udcff\\u202e\n"
    assert capsys.readouterr().err == said


def test_a_file_that_is_not_there_is_nobodys_fault_that_was_foreseen(capsys):
    assert tell(FileNotFoundError(errno.ENOENT, "No such file", "x")) == 1
    assert "FileNotFoundError: [Errno 2] No such file: 'x'" in capsys.readouterr().err


OF_A_DEVICE = "RESOURCE_EXHAUSTED: Out of memory allocating 137438953472 bytes.\nTrace:"


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (jax.errors.JaxRuntimeError(OF_A_DEVICE), "of a device: Out of memory alloc"),
        (ValueError(OF_A_DEVICE), "of a device: Out of memory alloc"),
        (
            RuntimeError("INTERNAL: during compilation: RESOURCE_EXHAUSTED: hbm"),
            "of a device: INTERNAL: during compilation",
        ),
        (ask_for_too_much(), "of the host: Unable to allocate 1.00 EiB"),
        (MemoryError(), "of the host)"),
        (lacking(RuntimeError("a worker"), MemoryError()), "of the host)"),
    ],
)
def test_out_of_memory_names_the_settings_to_lower(capsys, error, where):
    assert tell(error) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"covjax: out of memory ({where}")
    assert len(said.splitlines()) == 2
    assert all(setting in said for setting in SETTINGS)


@pytest.mark.parametrize(
    ("code", "told"), [(-9, "signal 9"), (-11, "signal 11"), (1, "exit status 1")]
)
def test_a_loading_process_that_was_killed_is_told(capsys, code, told):
    grain = f"Worker process was terminated unexpectedly with exit code {code}. Search"
    assert tell(RuntimeError(grain)) == 1
    said = capsys.readouterr().err
    assert f"ended from outside ({told})" in said and "data.workers" in said
    assert said.count("\n") == 1


def test_the_loss_of_another_process_is_not_told_after_its_cause(capsys, monkeypatch):
    monkeypatch.setattr(distributed, "silent", True)
    assert tell(Failure(LOST)) == 1 and tell(UsageError("a flag")) == 2
    assert capsys.readouterr().err == "covjax: a flag\n"


def test_failures_say_what_they_say(capsys):
    assert tell(UsageError("no such file"), "covjax.export") == 2
    assert capsys.readouterr().err == "covjax.export: no such file\n"
    assert tell(Diverged("the loss is nan")) == 1


def test_a_signal_has_its_status_and_no_traceback(capsys):
    assert tell(Interrupted(15, "stopped by signal 15")) == 143
    assert tell(KeyboardInterrupt()) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.startswith("covjax: stopped by signal 15\n")


def test_an_error_that_nobody_foresaw_has_its_traceback(capsys):
    # The same words mean nothing where there is no other process.
    assert tell(RuntimeError("UNKNOWN: Gloo all-reduce failed")) == 1
    said = capsys.readouterr().err
    assert said.endswith("RuntimeError: UNKNOWN: Gloo all-reduce failed\n")


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError(
            "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]"
        ),
        ValueError("UNKNOWN: Gloo all-gather failed: Read error [10.0.0.2]:4321"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: The following tasks are unhealthy"),
        lacking(RuntimeError("save"), RuntimeError("Barrier failed: shutdown")),
    ],
)
def test_a_process_that_is_gone_is_told_among_several(capsys, monkeypatch, error):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert tell(error) == 1
    assert capsys.readouterr().err == f"covjax: {LOST}\n"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("MemoryError('8 GiB')", 1, "covjax: out of memory (of the host: 8 GiB)"),
        ("KeyboardInterrupt", 130, "covjax: interrupted; what is whole stays"),
    ],
)
def test_the_command_line_ends_with_it(tmp_path, raised, status, said):
    program = (
        "import runpy, covjax.run\n"
        f"def fail(*_): raise {raised}\n"
        "covjax.run.train_and_evaluate = fail\n"
        "runpy.run_module('covjax.main', run_name='__main__')"
    )
    flags = [f"--config={PROJECT}/configs/lung.py:phantom", "--workdir=run"]
    found = subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=tmp_path,
        # In a new home, Matplotlib would look for fonts, and say so if it takes long.
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == status
    assert found.stderr.startswith(said)
    assert len(found.stderr.splitlines()) <= 2
