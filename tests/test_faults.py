"""A slice of experiments/faults, of which `make faults` runs all."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from covjax.errors import DataError
from covjax.predict.dicom.codecs import decode_stream
from experiments.faults import __main__ as faults
from experiments.faults import dicom_seeds, fuzz_targets, kills, refusals


def test_every_odd_value_of_every_field_is_refused_by_name_or_legal():
    refused, faults = refusals.check_fields()
    assert faults == []
    assert refused > 1500


def test_fields_drawn_together_are_refused_in_a_line_or_can_be_traced():
    refused, traced, faults = refusals.check_combinations(12, seed=1)
    assert faults == []
    assert refused + traced == 12
    assert refused and traced


def test_the_last_line_holds_the_counts_of_every_part(monkeypatch, capsys):
    told = {
        "inputs": (0, {"seconds": 1, "failures": 0}),
        "kills": (1, {"kills": {"faults": 2}}),
        "fuzz": (0, {"seconds": 3}),
    }
    monkeypatch.setattr(faults, "run", lambda name: told[name])
    assert faults.main(["inputs", "kills", "fuzz"]) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last.pop("minutes") == 0
    assert last == {
        "inputs": {"seconds": 1, "failures": 0},
        "kills": {"faults": 2},
        "fuzz": {"seconds": 3},
        "failed": ["kills"],
    }


def test_a_run_that_hangs_is_ended_and_has_a_status():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        assert kills.finish(process, 0.01) == -9
    with subprocess.Popen([sys.executable, "-c", "exit(3)"]) as process:
        assert kills.finish(process) == 3


def test_an_input_that_takes_too_much_of_a_reader_is_reported():
    costs = fuzz_targets.Costs(seconds=0.05)
    costs.check(lambda _: None, b"")
    with pytest.raises(AssertionError, match=r"took 0\.\d s of CPU time"):
        costs.check(lambda _: _spin(0.1), b"")
    assert costs.seconds >= 0.1
    costs = fuzz_targets.Costs(seconds=60, memory=64)
    with pytest.raises(AssertionError, match=r"took \d+ MiB more"):
        # More than this process ever held before.
        costs.check(lambda _: _fill(fuzz_targets._largest() + 100), b"")
    assert costs.memory > 64


def _spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _fill(mib: float) -> None:
    np.ones(round(mib) << 20, np.uint8)


def test_readers_keep_what_the_fuzzing_asks_of_them(capsys):
    for content in (*dicom_seeds.make_files(), b"", b"DICM", bytes(200)):
        fuzz_targets.try_dicom(content)
        fuzz_targets.try_picture(content)
    for kind, (_, stream) in enumerate(dicom_seeds.make_streams()):
        fuzz_targets.try_stream(bytes([kind]) + stream)
    with pytest.raises(AssertionError):  # a refusal that quotes the patient
        fuzz_targets._check_refusal(DataError("a.dcm: Doe^Jane"), Path("a.dcm"))


def test_every_codec_has_a_seed_that_is_an_image():
    image = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    for syntax, stream in dicom_seeds.make_streams():
        pixels = decode_stream(stream, syntax, (16, 16, 1), 8)[..., 0]
        error = np.abs(pixels.astype(int) - image).max()
        # Baseline JPEG alone is lossy.
        assert error == 0 or (syntax.endswith(".50") and error < 64), syntax
