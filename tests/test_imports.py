"""What `import covjax.train.train` loads: training, and nothing else of covjax."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]
OTHERS = tuple(
    f"covjax.{name}" for name in ("report", "evaluation", "predict", "export", "app")
)
MOST = 61


def loaded_by(module: str) -> set[str]:
    """Returns the modules that a fresh process has after an import."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_training_loads_nothing_but_training():
    loaded = loaded_by("covjax.train.train")
    ours = {name for name in loaded if name.partition(".")[0] == "covjax"}
    assert "covjax.train.train_step" in ours
    assert not [name for name in ours if name.startswith(OTHERS)]
    assert not {"matplotlib", "jinja2"} & loaded
    assert len(ours) <= MOST, sorted(ours)
