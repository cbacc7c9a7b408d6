"""Processes that were started differently are refused, by what differs."""

import importlib.metadata
import json

import jax
import pytest

from configs import lung
from covjax import multihost
from covjax.errors import UsageError
from covjax.process_consistency import check_same_start

FLAGS = {"mode": "train", "workdir": "runs/lung", "split": "test"}


@pytest.fixture
def another(monkeypatch) -> dict:
    """What a second process says, but for what a test changes."""
    changes = {}

    def gather(words: str) -> list[str]:
        told = json.loads(words)
        return [words, json.dumps(told | {"process": "process 1 (host-b)"} | changes)]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost, "gather_words", gather)
    monkeypatch.setattr(multihost, "name_process", lambda: "process 0 (host-a)")
    return changes


def test_processes_that_are_alike_go_on(another):
    check_same_start(FLAGS, lung.get_config())
    check_same_start(FLAGS, None)


def test_what_belongs_to_a_host_may_differ(another):
    another.update({"config.data.workers": 9})  # is not compared, nor is this wrong
    config = lung.get_config()
    config.data.workers = 3
    with pytest.raises(UsageError, match=r"config.data.workers \(null on process 0"):
        check_same_start(FLAGS, config)


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [
        ("config.seed", "0", 5),
        ("config.model.width", "64", 8),
        ("--workdir", '"runs/lung"', "runs/other"),
        ("flax", f'"{importlib.metadata.version("flax")}"', "0.0.1"),
        ("devices", "8", 4),
    ],
)
def test_each_difference_is_named_with_both_values(another, name, here, there):
    another[name] = there
    with pytest.raises(UsageError) as error:
        check_same_start(FLAGS, lung.get_config())
    said = str(error.value)
    told = json.dumps(there)
    expected = f"{name} ({here} on process 0 (host-a), {told} on process 1 (host-b))"
    assert said.startswith(f"the processes differ in {expected}: start all")
    assert "\n" not in said


def test_other_code_is_found_whatever_its_commit(another):
    another["code"] = "00000000"
    with pytest.raises(UsageError, match=r"differ in code \(\"[0-9a-f]{8}\" on"):
        check_same_start(FLAGS, None)


def test_many_differences_are_a_line_as_well(another):
    another.update({f"config.data.{k}": k for k in "abcdefgh"})
    with pytest.raises(UsageError, match="and 3 more: start all"):
        check_same_start(FLAGS, lung.get_config())
