"""The lists of exact versions: complete, within the ranges, every file by its hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1]
ABOUT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
RANGES = {
    "core": ABOUT["project"]["dependencies"],
    "dev": ABOUT["project"]["dependencies"]
    + ABOUT["project"]["optional-dependencies"]["dev"],
}


def read_entries(name: str) -> list[tuple[Requirement, str]]:
    """Returns each entry of a list and the lines of its hashes."""
    text = (PROJECT / "requirements" / f"{name}.txt").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", "").splitlines()
    entries = [line.partition(" --hash=") for line in lines]
    return [(Requirement(entry.strip()), hashes) for entry, _, hashes in entries]


def versions_on(name: str, python: str) -> dict[str, str]:
    """Returns what the list installs on Linux for a version of Python."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    return {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry, _ in read_entries(name)
        if entry.marker is None or entry.marker.evaluate(machine)
    }


@pytest.mark.parametrize("name", RANGES)
def test_every_entry_is_one_version_with_hashes(name):
    entries = read_entries(name)
    assert len(entries) > 50
    for entry, hashes in entries:
        assert str(entry.specifier).startswith("=="), entry
        assert re.fullmatch(r"sha256:[0-9a-f]{64}.*", hashes.strip()), entry


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("name", RANGES)
def test_the_versions_lie_within_the_ranges_of_pyproject(name, python):
    there = versions_on(name, python)
    build = ABOUT["build-system"]["requires"]
    for wanted in map(Requirement, [*RANGES[name], *build]):
        version = there.get(canonicalize_name(wanted.name))
        assert version, f"{wanted.name} is missing: make lock"
        assert version in wanted.specifier, f"{wanted} is not {version}: make lock"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_a_user_and_a_developer_get_the_same_versions(python):
    assert versions_on("core", python).items() <= versions_on("dev", python).items()


def test_both_licences_are_in_the_project_and_in_its_metadata():
    assert ABOUT["project"]["license"] == "Apache-2.0 AND CC-BY-SA-4.0"
    texts = [
        path.read_text()
        for pattern in ABOUT["project"]["license-files"]
        for path in PROJECT.glob(pattern)
    ]
    assert len(texts) == 2
    assert "Apache License" in texts[0]
    assert texts[1].startswith("Attribution-ShareAlike 4.0 International")
