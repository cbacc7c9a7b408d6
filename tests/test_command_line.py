"""The command line: what is wrong with it is said in one line."""

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from covjax.command_line import parse, plain_ending
from covjax.errors import Diverged, UsageError

# Of ml_collections, where it reads a config's file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = str(Path(__file__).parents[1] / "configs" / "lung.py")


@pytest.fixture
def config(monkeypatch) -> flags.FlagHolder:
    """The flag of the config, among no others."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    return config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values
    )


@pytest.fixture
def parse_words(config, monkeypatch):
    def parse_as_typed(words: list[str]) -> list[str]:
        monkeypatch.setattr(sys, "argv", words)  # where ml_collections looks as well
        return parse(words, config)

    return parse_as_typed


def test_what_was_typed_stands_in_the_config(config, parse_words):
    words = ["program", f"--config={CONFIG}:phantom", "--config.model.width=24"]
    assert parse_words(words) == ["program"]
    assert config.value.model.width == 24
    assert config.value.data.phantom_films == (320, 64, 128)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [f"--config={CONFIG}", "--config.model.widht=3"],
            "no such config field.*widht",
        ),
        ([f"--config={CONFIG}:tiny"], "no variant 'tiny'"),
        (["--config=nowhere.py"], "nowhere.py"),
        ([f"--config={CONFIG}", "--config.model.width=wide"], "wide"),
        ([f"--confg={CONFIG}"], "confg"),
        ([f"--config={CONFIG}", "runs/lung"], "not a flag: runs/lung"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(parse_words, words, said):
    with pytest.raises(UsageError, match=said) as error:
        parse_words(["program", *words])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UsageError("config.seed: no"), 2, "config.seed: no"),
        (Diverged("step 3 is not finite"), 1, "step 3 is not finite"),
        (OSError(errno.ENOSPC, "full", "runs/a"), 1, "runs/a: full"),
    ],
)
def test_a_failure_ends_the_process_with_its_line_and_status(
    capsys, error, status, said
):
    with pytest.raises(SystemExit) as end, plain_ending():
        raise error
    assert end.value.code == status
    assert capsys.readouterr().err.startswith(f"covjax: {said}")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_the_process_with_a_line_and_its_status(capsys, number, status):
    with pytest.raises(SystemExit) as end, plain_ending():
        os.kill(os.getpid(), number)
    assert end.value.code == status
    assert f"stopped by signal {number:d}" in capsys.readouterr().err


def test_what_nobody_foresaw_is_not_hidden():
    with pytest.raises(ZeroDivisionError), plain_ending():
        raise ZeroDivisionError
