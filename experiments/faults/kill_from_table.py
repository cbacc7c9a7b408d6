"""Kills `covjax.data.from_table` at random moments; see killed.py.

python -m experiments.faults.kill_from_table [--kills=10] [--seed=0]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.faults.killed import OUT, Command, main

IMAGES = 36
WORDS = ("covjax.data.from_table", "table.csv", OUT)


def prepare(cwd: Path) -> None:
    """Writes images, masks and a table of them."""
    rng = np.random.default_rng(0)
    lines = ["image,lung_mask,infection_mask,class,split"]
    for k in range(IMAGES):
        label = ("COVID-19", "Non-COVID", "Normal")[k % 3]
        split = ("Train", "Train", "Val", "Test")[k // 3 % 4]
        names = [f"{k}-{kind}.png" for kind in ("image", "lung", "infection")]
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(cwd / names[0])
        for name, filled in ((names[1], True), (names[2], label == "COVID-19")):
            mask = np.zeros((32, 32), np.uint8)
            mask[8:24, 8:24] = 255 * filled
            Image.fromarray(mask).save(cwd / name)
        lines.append(",".join([*names, label, split]))
    (cwd / "table.csv").write_text("\n".join(lines) + "\n")


COMMANDS = [
    Command("links", WORDS, prepare),
    Command("copies", (*WORDS, "--copy"), prepare),
]

if __name__ == "__main__":
    sys.exit(main("kill_from_table", COMMANDS, 10))
