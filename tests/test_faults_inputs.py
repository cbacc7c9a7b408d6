"""A slice of the broken sets through the check before a run; and their judge."""

import shutil

import numpy as np
import pytest

from experiments.faults.corpus import SIDE, Case, Whole, make_cases, make_whole
from experiments.faults.inputs import judge, look, make_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    return make_whole(tmp_path_factory.mktemp("faults") / "whole")


@pytest.fixture(scope="module")
def cases(whole) -> list[Case]:
    return make_cases(whole)


def test_there_are_hundreds_of_faults_of_every_kind(cases):
    assert len(cases) >= 300
    names = " ".join(case.name for case in cases)
    for kind in (
        "cut-", "zero-bytes", "text", "16-bit", "alpha", "palette", "CMYK", "pages-PNG",
        "1x1", "bomb-grey", "mask-of-64x64", "third-level", "inverted", "missing",
        "surplus", "capitals", "forbidden", "circle", "nowhere", "pipe", "spaces", "肺",
        "class-empty", "split-empty", "flip", "check-IDAT", "length-32-bits",
    ):  # fmt: skip
        assert kind in names
    assert {case.must for case in cases} == {"read", "refuse", "either"}


@pytest.mark.parametrize("start", range(4))
def test_every_set_is_read_right_or_refused_in_a_line(
    whole, cases, tmp_path, capfd, start
):
    for k, case in enumerate(cases[start * 10 :: 40]):
        root = tmp_path / str(k) / "SET"
        shutil.copytree(whole.root, root)
        case.make(root)
        outcome, arrays = look(make_config(root), tmp_path / "run")
        told = capfd.readouterr()
        outcome |= {"printed": told.out + told.err, "arrays": arrays}
        verdict = judge(whole, case, outcome)
        assert verdict in ("read right", "one line"), case.name


def as_meant(whole: Whole) -> dict:
    names = list(whole.samples)
    arrays = {
        f"{k}-{part}": np.asarray(array).copy()
        for k, name in enumerate(names)
        for part, array in whole.samples[name].items()
    }
    return {"images": names, "arrays": arrays, "printed": ""}


def test_what_is_read_wrong_is_a_failure(whole):
    case = Case("x", print, "read", "x.png")
    assert judge(whole, case, as_meant(whole)) == "read right"
    for name, change in {
        "off by 1": lambda a: a.__setitem__((3, 4), a[3, 4] ^ 1),
        "off by 128": lambda a: a.__setitem__((0, 0), a[0, 0] ^ 128),
    }.items():
        outcome = as_meant(whole)
        change(outcome["arrays"]["2-image"])
        assert name in judge(whole, case, outcome)
    outcome = as_meant(whole)
    outcome["arrays"]["2-lung"] = np.zeros((SIDE, SIDE + 1), np.uint8)
    assert "lung: uint8" in judge(whole, case, outcome)
    outcome = as_meant(whole)
    del outcome["images"][-1]
    assert "other images" in judge(whole, case, outcome)
    outcome = as_meant(whole) | {"printed": "a warning"}
    assert "printed" in judge(whole, case, outcome)
    refusing = Case("x", print, "refuse", "x.png")
    assert judge(whole, refusing, as_meant(whole)) == "read, and should be refused"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("/x.png: broken", "one line"),
        ("/x.png: broken\nmend it", "one line"),
        ("/x.png:\nbroken\nmend it", "more than 2 lines"),
        ("/x.png:\u2028broken\nmend it", "more than 2 lines"),
        ("/y.png: broken", "names not x.png"),
    ],
)
def test_a_refusal_names_the_file_in_two_lines_at_most(whole, said, verdict):
    case = Case("x", print, "refuse", "x.png")
    outcome = {"refused": said, "printed": ""}
    assert judge(whole, case, outcome).startswith(verdict)
    reading = Case("x", print, "read", "x.png")
    assert judge(whole, reading, outcome).startswith("refused, and could be read")


def test_a_fall_and_a_traceback_are_failures(whole):
    case = Case("x", print, "either", "x.png")
    assert judge(whole, case, {"fell": "no end after 60 s"}).startswith("no end")
    outcome = {"raised": "KeyError('x.png')", "printed": ""}
    assert judge(whole, case, outcome).startswith("raised KeyError")
