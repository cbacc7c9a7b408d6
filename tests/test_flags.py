"""The command line: what is wrong with it is said in one line."""

import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from covjax.errors import UsageError
from covjax.runtime.flags import parse

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
    assert config.value.data.phantom_images == (320, 64, 128)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [f"--config={CONFIG}", "--config.model.widht=3"],
            "^no such config field: 'widht'. Did you mean \"width\" instead of",
        ),
        (
            [f"--config={CONFIG}", "--config.optim.learning_rate=3"],
            "^no such config field: 'learning_rate'$",
        ),
        ([f"--config={CONFIG}:tiny"], "^no variant 'tiny'"),
        (["--config=nowhere.py"], "^no such config: 'nowhere.py'; give the command in"),
        ([f"--config={CONFIG}", "--config.model.width=wide"], "wide"),
        ([f"--confg={CONFIG}"], "confg"),
        ([f"--config={CONFIG}", "runs/lung"], "not a flag: runs/lung"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(parse_words, words, said):
    with pytest.raises(UsageError, match=said) as error:
        parse_words(["program", *words])
    assert "\n" not in str(error.value)
