"""A slice of experiments/faults, of which `make faults` runs all."""

import json
import subprocess
import sys

from experiments.faults import __main__ as faults
from experiments.faults import kills, refusals


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
