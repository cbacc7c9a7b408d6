"""The tutorial does what it says: its blocks are run as they stand, in their order.

Blocks marked `sh` go to a shell, `python` to Python's prompt; `text` is what the block
before it prints, with other numbers; `console` is not run (it installs or serves).
The flags that make it short are those that the page itself offers to whoever hurries.
"""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from whole_runs import PROJECT, environment, make_project

PAGE = PROJECT / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")
KINDS = {"sh", "python", "text", "console"}
FENCE = re.MULTILINE | re.DOTALL
NUMBER = r"-?(\d[\d,]*(\.\d+)?(e[+-]\d+)?|–)"  # a dash where there is none


class Block(NamedTuple):
    """A block of the page, and what it printed: stdout and stderr; None if not run."""

    kind: str
    code: str
    said: str | None = None


def read_blocks() -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, FENCE)
    ]


def read_shorter() -> list[tuple[str, str]]:
    """What the page offers to append, by the beginnings of commands."""
    return re.findall(r"^\| `(python -m [\w.]+)`.* \| `(--.*)` \|$", TEXT, re.M)


def shorten(code: str) -> str:
    """Returns the commands of a block, each with what the page offers for it."""
    lines = code.replace("\\\n", " ").splitlines()
    for start, flags in read_shorter():
        lines = [f"{x} {flags}" if x.startswith(f"{start} ") else x for x in lines]
    return "\n".join(lines)


def run(block: Block, project: Path) -> Block:
    if block.kind == "sh":
        command, fed = ["sh", "-e", "-c", shorten(block.code)], None
    else:
        command, fed = ["python", "-i", "-q"], block.code
    env = environment()
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        command, input=fed, cwd=project, env=env, text=True, capture_output=True
    )
    # Python's prompt goes on after an error, and ends with status 0.
    failed = done.returncode or "Error" in done.stderr
    assert not failed, (block.code, done.stdout, done.stderr)
    return block._replace(said=done.stdout)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="module")
def blocks(project: Path) -> list[Block]:
    """The page's blocks, after all of them were run."""
    return [
        run(block, project) if block.kind in ("sh", "python") else block
        for block in read_blocks()
    ]


def test_each_block_is_run_or_says_why_not():
    assert TEXT.count("```") == 2 * len(read_blocks())
    for block in read_blocks():
        assert block.kind in KINDS, block
        lines = block.code.splitlines()
        assert block.kind != "console" or lines[0].startswith("$ "), block


def test_what_is_offered_in_a_hurry_fits_the_commands():
    commands = "\n".join(block.code for block in read_blocks() if block.kind == "sh")
    starts = [start for start, _ in read_shorter()]
    assert [commands.count(f"{start} ") for start in starts] == [1, 2]


def test_prints_what_the_page_shows(blocks):
    shown, printed = 0, iter(())
    for block in blocks:
        if block.said is not None:
            printed = iter(block.said.splitlines())
        elif block.kind == "text":  # two of them may share a command
            lines = block.code.splitlines()
            for line in (line for line in lines if line != "…"):  # any lines
                seen = any(map(form(line).fullmatch, printed))
                assert seen, f"after {shown} lines, nobody prints: {line}"
                shown += 1
    assert shown > 30


def form(line: str) -> re.Pattern[str]:
    """Returns what a line looks like with other numbers; … stands for anything."""
    kinds = {"number": NUMBER, "gap": r"\s+", "any": "…", "other": "."}
    token = "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in kinds.items())
    standing_for = {"number": NUMBER, "gap": r"\s+", "any": ".*"}
    return re.compile(
        "".join(
            standing_for.get(str(found.lastgroup), re.escape(found[0]))
            for found in re.finditer(token, line)
        )
    )


def test_files_that_the_page_names_are_there(blocks, project):
    named = set(re.findall(r"`((?:data|runs)/[\w./-]+)`", TEXT))
    assert len(named) > 10
    assert not [name for name in named if not (project / name).exists()]


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", TEXT)
    assert len(links) > 10
    for path, anchor in links:
        target = (PAGE.parent / path).resolve()
        assert target.is_file(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", h).lower() for h in headings]
            assert anchor in [slug.replace(" ", "-") for slug in slugs], (path, anchor)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_images_get_masks_of_their_size_and_rows_that_count_them(blocks, project):
    samples = sorted((project / "data/images").iterdir())
    assert len(samples) == 4
    with (project / "runs/found/predictions.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == [sample.stem for sample in samples]
    for sample in samples:
        found, row = project / "runs/found", rows[sample.stem]
        lungs = read(found / f"lungs/{sample.stem}.png")
        infection = read(found / f"infection/{sample.stem}.png")
        assert read(sample).shape == lungs.shape == infection.shape == (320, 360)
        assert read(found / f"overlays/{sample.stem}.jpg").shape == (320, 360, 3)
        assert set(np.unique([lungs, infection])) <= {0, 255}
        assert row["error"] == "" and row["lung_pixels"] == str((lungs > 0).sum())
        assert row["infected_pixels"] == str(((lungs & infection) > 0).sum())
        assert (row["height"], row["width"]) == ("320", "360")
    (reading,) = (block for block in blocks if "predictions.csv" in block.code)
    counted, told = str(reading.said).split()[-2:]  # which the page calls one number
    assert counted == told == rows[samples[0].stem]["infected_pixels"]


def test_whatever_comes_of_phantoms_says_so(blocks, project):
    for block in blocks:
        if block.said and "covjax.main" in block.code:
            assert "PHANTOM images" in block.said
    for run_of in ("lung", "infection"):
        assert "PHANTOM" in (project / f"runs/{run_of}/report.html").read_text("utf-8")
