"""The benchmark of the pipeline: runs on a few phantoms, and divides the right way."""

import json
import sys
from types import SimpleNamespace

import pytest

from configs import infection
from experiments.benchmarks import pipeline

# Answers as torch_loader.py does; what it was told first comes back in its "about".
SCRIPT = """
import json, sys
told = json.loads(sys.stdin.readline())
print(json.dumps({"images": len(told["samples"]), "cut": told["cut"]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"rate": 2.0 ** -asked["workers"], "first_s": 1.0}
    if "stages" in asked:
        names = ("decode", "augment", "cut and batch", "transfer")
        answer = dict.fromkeys(names, 0.001)
    print(json.dumps(answer), flush=True)
""".replace('asked["workers"]', 'asked.get("workers", 0)')


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Settings of a benchmark of two turns a round on a few images of 32 px."""
    monkeypatch.chdir(tmp_path)
    config = infection.get_config("phantom")
    config.data.phantom_images, config.data.image_size = (17, 1, 1), 32
    config.train.batch_size = 8  # one for each device
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(pipeline, "PEER_SCRIPT", script)
    values = {"config": config, "threads": ["1"], "workers": ["0"], "batches": 1}
    values |= {"rounds": 2, "peer": "torch", "peer_python": sys.executable}
    for name, value in values.items():
        flag = SimpleNamespace(value=value)
        monkeypatch.setattr(pipeline, f"_{name.upper()}", flag, raising=False)
    return monkeypatch


def last_line(capsys) -> dict:
    pipeline._main([])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_last_line_holds_the_ratios(flags, capsys):
    found = last_line(capsys)
    assert found["peer"] == {"images": 17, "cut": True}
    assert found["torch_images_per_s"] == 1.0
    for side in ("png", "packed"):
        assert found[f"ratio_{side}"] == found[f"{side}_images_per_s"] > 0
        assert len(found[f"ratios_{side}"]) == 2
        assert found[f"{side}_best"] == {"threads": 1, "workers": 0}
        assert all(us > 0 for us in found["stages_us"][side].values())
    assert found["ratio"] == found["ratio_png"]
    assert found["stages_us"]["torch"]["decode"] == 1000.0


def test_works_without_a_peer_and_says_how_to_get_one(flags, tmp_path, capsys):
    (tmp_path / "script.py").write_text(
        """import sys; sys.stdin.readline(); print('{"missing": "no torch"}')"""
    )
    pipeline._main([])
    out = capsys.readouterr().out
    assert f"no peer ({sys.executable}: no torch): pip install -e '.[bench]'" in out
    found = json.loads(out.splitlines()[-1])
    assert found["png_images_per_s"] > 0 and found["ratio"] is None


def test_best_is_by_the_median_and_ratios_by_round(flags):
    turns = {
        pipeline.Setting("png", 1, 0): [pipeline.Turn(r, 0.0) for r in (4, 4, 400)],
        pipeline.Setting("png", 1, 2): [pipeline.Turn(r, 0.0) for r in (6, 8, 9)],
        pipeline.Setting("torch", 0, 1): [pipeline.Turn(r, 0.0) for r in (2, 2, 6)],
        pipeline.Setting("torch", 0, 2): [pipeline.Turn(r, 0.0) for r in (1, 1, 99)],
    }
    assert pipeline._ratios(turns, "png") == [3.0, 4.0, 1.5]


def test_sides_take_turns(flags):
    flags.setattr(pipeline, "_WORKERS", SimpleNamespace(value=["0", "2"]))
    sides = [setting.side for setting in pipeline._settings(with_peer=True)]
    assert sides == ["png", "packed", "torch"] * 2
