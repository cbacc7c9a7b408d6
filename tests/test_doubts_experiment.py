"""The counts of images that are doubted, of a few phantoms."""

import json

import numpy as np
from PIL import Image

from covjax.data.phantom.dataset import write_phantoms
from experiments import doubts
from plain_network import make_weights


def test_a_quarter_and_a_half_turn_move_each_pixel_where_it_belongs():
    radiograph = np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8)
    for degrees, quarters in ((90, 1), (180, 2), (-90, 3)):  # to the left
        assert np.array_equal(
            doubts.turn(radiograph, degrees), np.rot90(radiograph, quarters)
        )


def test_every_image_is_counted_under_each_change(tmp_path, monkeypatch, capsys):
    root = tmp_path / "images"
    write_phantoms(root, samples={"Train": 5, "Val": 12}, size=32, seed=0)
    monkeypatch.setattr(doubts, "shipped_network", make_weights)
    monkeypatch.setattr(doubts, "_AT_ONCE", 1)  # of eight devices
    # In place of what is doubted: images that are darker above than below.
    monkeypatch.setattr(
        doubts,
        "doubt",
        lambda radiograph, _: radiograph[:8].mean() < radiograph[8:].mean(),
    )

    def dark_above(split: str) -> float:
        radiographs = root.glob(f"Infection*/**/{split}/*/images/*")
        means = [
            np.asarray(Image.open(path)).reshape(2, -1).mean(axis=1)
            for path in radiographs
        ]
        return float(np.mean([above < below for above, below in means]))

    assert doubts.main(["--images=99", f"--root={root}"]) == 0
    out = capsys.readouterr().out
    shares = json.loads(out.splitlines()[-1])
    assert shares.pop("Train, published lungs") == dark_above("Train")
    assert list(shares) == [f"Val, {name}" for name in doubts.CHANGES]
    upright = dark_above("Val")
    assert shares["Val, as they are"] == upright
    assert shares["Val, black and white exchanged"] == 1 - upright
    assert shares["Val, upside down"] == 1 - upright
    assert out.count("     12\n") == len(doubts.CHANGES)


def test_a_set_that_is_not_there_is_a_line(tmp_path, capsys):
    assert doubts.main([f"--root={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("no 'Infection Segmentation Data/")
