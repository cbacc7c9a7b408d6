"""Who may import whom: the floors of CONTRIBUTING.md, read from the source.

Nothing is imported here: the files are parsed, so an import inside a function counts,
and a module that cannot be loaded on this machine is checked like any other.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[1]

# Lowest floor first; within a floor too, a file imports only what stands before it.
# A package's own `__init__.py` comes after its files. The empty name is covjax itself.
# As the order is total, a cycle of imports is always a breach.
FLOORS = [
    ["", "errors", "types"]
    + [
        "runtime.files",
        "runtime.csv_text",
        "runtime.strict_json",
        "runtime.private",
        "runtime.checksums",
        "runtime.folder_lock",
        "runtime.signals",
        "runtime.folder_owner",
    ]
    + ["runtime.flags", "runtime.compilation_cache", "runtime.distributed"]
    + ["runtime.watchdog"]
    + ["runtime.exit_messages", "runtime.worker_process", "system", "config"],
    ["train.losses", "train.optimizer", "train.ema", "parallel", "multihost"]
    + ["models.conv3x3", "models.intensity"]
    + ["models.unet", "models"]
    + ["metrics.levels", "metrics.counts", "metrics.bootstrap", "metrics.segmentation"]
    + ["metrics.surface", "metrics.detection", "metrics.calibration"]
    + ["metrics.severity", "metrics.pixels", "metrics.subgroups", "metrics"]
    + [
        "runtime.cores",
        "data.decode_limits",
        "data.png",
        "data.containers",
        "data.image_io",
        "predict.dicom.lut",
        "predict.dicom.borders",
        "predict.dicom.codecs",
        "predict.dicom.quiet",
        "predict.dicom.reader",
        "data.covidqu",
        "predict.inputs",
        "predict.radiograph",
        "data.phantom.drawing",
        "data.phantom.dataset",
        "data.source",
        "data.mask_ops",
        "predict.laterality",
        "runtime.progress",
        "data.integrity",
        "data.image_cache",
        "data.sampler",
        "data.augment_params",
        "data.augment",
        "data.pipeline",
        "train.readable_check",
    ]
    + [
        "data.audit.leakage",
        "data.audit.near_duplicates",
        "data.audit.checks",
        "data.audit.audit",
        "data.download",
    ]
    + [
        "data.from_table.table",
        "data.from_table.assign_splits",
        "data.from_table.link_tree",
        "data.from_table.from_table",
        "data",
    ]
    + ["train.device_augment"],
    [
        "train.train_state",
        "train.train_step",
        "train.checkpoint",
        "train.transfer",
        "train.run_folder",
    ]
    + ["process_consistency"]
    + ["train.sample_manifest", "train.restore"]
    + ["metrics.operating_point", "export.safetensors"],
    ["train.eval_pass", "evaluation.results", "evaluation.lung_masks", "compare"]
    + [
        "train.tensorboard",
        "train.metric_writer",
        "report.tables",
        "report.colours",
        "report.canvas",
        "report.figures",
    ]
    + ["report.reliability", "report.severity", "report.sheets"]
    + ["report.split_figures"]
    + ["report.run_files", "report.checklist", "report.page_parts"]
    + ["report.page_scores", "report.page_pictures", "report.page_sources"]
    + ["report.page", "report"]
    + ["evaluation.evaluate", "ensemble"],
    ["export.load_model"]
    + ["export.inference", "export.stablehlo", "export.onnx"]
    + ["export.parity", "formats", "export.export", "unpack"]
    + [
        "predict.postprocess",
        "predict.segmenter",
        "predict.overlay",
        "predict.quality_checks",
    ]
    + ["predict.dicom.seg", "predict.table", "predict.resume"]
    + ["predict.writer"]
    + ["predict.worker_tasks", "films", "predict.predict"]
    + ["app.access", "app.upload_folder", "app.uploads", "app.decoding", "app.gate"]
    + ["app.log", "app.server", "app.images", "app.sessions", "app.markup"]
    + ["app.viewer", "app.page", "app.__main__", "app"],
    [
        "train.device_input",
        "train.validation",
        "train.nan_guard",
        "train.loop",
        "train.train",
    ],
    ["main"],
]

# Libraries that only these files import; a package stands for all its files.
ONLY_IN = {
    "albumentations": ["data.augment"],
    "flax.linen": ["models"],
    "gradio": ["app.page"],
    "highdicom": ["predict.dicom.seg"],
    "imagecodecs": ["predict.dicom.codecs"],
    "kornia_rs": ["data.png"],
    "onnx": ["export.onnx"],
    "onnxruntime": ["export.onnx"],
    "optax": [
        "train.losses",
        "train.optimizer",
        "train.train_state",
        "train.train_step",
        "train.loop",
    ],
    "orbax": ["train.checkpoint"],
    "pydicom": ["predict.dicom.reader", "predict.dicom.seg"],
    "safetensors": ["export.safetensors"],
}

# data/ runs in worker processes, which must never start these.
NOT_IN_DATA = ["jax", "jaxlib", "flax", "optax", "orbax"]

# Names that say nothing about what stands in a file.
BANNED_NAMES = {"common", "util", "utils"}


def _full(name: str) -> str:
    """Returns "covjax.data" for "data", and "covjax" for ""."""
    return f"covjax.{name}".rstrip(".")


FLOOR = {_full(name): k for k, names in enumerate(FLOORS) for name in names}
ORDER = list(FLOOR)


class Import(NamedTuple):
    """One imported name, "flax.linen.Dense", and the line that asks for it."""

    line: int
    name: str


def read_sources(project: Path) -> dict[str, str]:
    """Returns the source of every file under covjax/, by module name."""
    sources = {}
    for path in sorted((project / "covjax").rglob("*.py")):
        parts = path.relative_to(project).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def find_imports(module: str, source: str, is_package: bool) -> list[Import]:
    """Lists what a file imports, wherever in it, with relative names made full."""
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - (node.level - 1)]
                base = ".".join([*above, base] if base else above)
            found += [
                Import(node.lineno, f"{base}.{alias.name}") for alias in node.names
            ]
    return sorted(found)


def is_within(name: str, *packages: str) -> bool:
    """Tells whether a dotted name is one of `packages`, or lies in one."""
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def find_breaches(sources: Mapping[str, str]) -> list[str]:
    """Returns one line for every import, name or file that the house forbids.

    Args:
      sources: module name, "covjax.data.covidqu", to source.
    """
    known = set(FLOOR) | set(sources)
    packages = {name.rpartition(".")[0] for name in known}
    imports = {
        module: find_imports(module, source, module in packages)
        for module, source in sources.items()
    }

    def module_of(name: str) -> str:
        """Returns the longest part of a covjax name that is a module."""
        while name not in known:
            name = name.rpartition(".")[0]
        return name

    def path_of(module: str) -> str:
        path = module.replace(".", "/")
        return f"{path}/__init__.py" if module in packages else f"{path}.py"

    def where(module: str, line: int | None = None) -> str:
        floor = FLOOR.get(module, "none")
        at = "" if line is None else f":{line}"
        return f"{path_of(module)}{at} (floor {floor})"

    def targets(module: str) -> Iterator[str]:
        """What is loaded when `module` is: its imports, the packages around it."""
        for _, name in imports.get(module, ()):
            if is_within(name, "covjax"):
                yield module_of(name)
        if "." in module:
            yield module.rpartition(".")[0]

    def chains(start: str) -> dict[str, str]:
        """Maps every module that `start` leads to, itself too, to the way there."""
        way = {start: start}
        queue = [start]
        for module in queue:
            for target in targets(module):
                if target not in way:
                    way[target] = f"{way[module]} -> {target}"
                    queue.append(target)
        return way

    breaches = []
    for module in sources:
        if BANNED_NAMES & set(module.split(".")):
            breaches.append(
                f"{path_of(module)}: name a file for its job, not "
                f"'{module.rpartition('.')[2]}'"
            )
        if module not in FLOOR:
            breaches.append(
                f"{path_of(module)} stands on no floor: give it a place in FLOORS"
                " (tests/test_layering.py) and in the table of CONTRIBUTING.md"
            )
        for line, name in imports[module]:
            if is_within(name, "covjax"):
                target = module_of(name)
                if (
                    target != module
                    and {module, target} <= set(FLOOR)
                    and ORDER.index(target) > ORDER.index(module)
                ):
                    breaches.append(
                        f"{where(module, line)} imports {target} (floor"
                        f" {FLOOR[target]}), which FLOORS puts above it: move what"
                        " both need to a lower file"
                    )
            for library, owners in ONLY_IN.items():
                owners = [_full(owner) for owner in owners]
                if is_within(name, library) and not is_within(module, *owners):
                    breaches.append(
                        f"{where(module, line)} imports {name}: only"
                        f" {', '.join(owners)} may"
                    )
        if is_within(module, "covjax.data"):
            for reached, way in chains(module).items():
                for line, name in imports.get(reached, ()):
                    if is_within(name, *NOT_IN_DATA):
                        breaches.append(
                            f"{where(module)} leads to {name} (line {line} of"
                            f" {path_of(reached)}; {way}): data/ runs in worker"
                            " processes, which never load it"
                        )
    return breaches


def test_imports_go_down_the_floors():
    sources = read_sources(PROJECT)
    assert "covjax.errors" in sources  # the right folder was read
    breaches = find_breaches(sources)
    assert not breaches, "\n".join(["the house is breached:", *breaches])


def test_contributing_shows_the_same_floors():
    # The first cell of a row is the floor, the second its files and packages.
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", text, flags=re.MULTILINE)
    shown = {int(floor): re.findall(r"`(\w+)(?:\.py|/)`", cell) for floor, cell in rows}
    expected = {
        floor: list(dict.fromkeys(n.partition(".")[0] for n in names if n))
        for floor, names in enumerate(FLOORS)
    }
    assert shown == expected


LEGAL = {
    "covjax": "",
    "covjax.errors": "",
    "covjax.types": "import jax",
    "covjax.train.losses": "import optax\nfrom covjax import errors, types",
    "covjax.models": "from . import unet",
    "covjax.models.unet": "from flax import linen as nn",
    "covjax.data": "",
    "covjax.data.covidqu": "from covjax.errors import DataError",
    "covjax.data.augment": "import albumentations as A",
    "covjax.data.pipeline": "from .augment import make\nfrom ..errors import X",
    "covjax.train.checkpoint": "import orbax.checkpoint as ocp\nimport jax.numpy as jnp",
    "covjax.train": "def f():\n  from covjax import checkpoint, models",
}


def test_a_legal_house_has_no_breach():
    assert find_breaches(LEGAL) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        # Up a floor: at the top, in a function, by every form of import.
        (
            "losses",
            "import covjax.train",
            "train/losses.py:1 (floor 1) imports covjax.train",
        ),
        (
            "steps",
            "def f():\n  from covjax.train import x",
            "train/train_step.py:2 (floor 2)",
        ),
        ("steps", "from covjax import train as t", "imports covjax.train (floor 5)"),
        ("data.covidqu", "from ..train import x", "imports covjax.train (floor 5)"),
        ("data", "from .. import train", "data/__init__.py:1 (floor 1) imports"),
        ("", "from .train import x", "covjax/__init__.py:1 (floor 0) imports"),
        # Against the order of one floor; `unet` may not use its package's own file.
        (
            "losses",
            "from covjax import optim",
            "imports covjax.train.optimizer (floor 1)",
        ),
        ("data.augment", "from . import pipeline", "imports covjax.data.pipeline"),
        ("models.unet", "from covjax.models import x", "imports covjax.models"),
        # Libraries that have one owner.
        ("data.pipeline", "import albumentations", "only covjax.data.augment may"),
        (
            "steps",
            "from flax import linen",
            "imports flax.linen: only covjax.models may",
        ),
        (
            "evaluate",
            "import optax",
            "only covjax.train.losses, covjax.train.optimizer, covjax.train",
        ),
        (
            "transfer",
            "from orbax import checkpoint",
            "only covjax.train.checkpoint may",
        ),
        # jax in data/: straight, through a file, through the package around it.
        ("data.covidqu", "def f():\n  import jax.numpy", "covidqu.py (floor 1) leads"),
        ("data.covidqu", "from covjax.types import B", "covidqu -> covjax.types)"),
        ("errors", "import jax", "covjax.data.pipeline -> covjax.errors)"),
        ("", "import jax", "covjax.data.augment -> covjax.data -> covjax)"),
        # Files without a place, or without a name.
        ("extra", "", "covjax/extra.py stands on no floor: give it a place in FLOORS"),
        ("data.utils", "", "name a file for its job, not 'utils'"),
    ],
)
def test_a_breach_is_found(module: str, source: str, said: str):
    breaches = find_breaches(LEGAL | {_full(module): source})
    assert any(said in breach for breach in breaches), breaches


def test_a_library_of_a_longer_name_is_no_breach():
    # `optax_extra` is not optax, and `flax` without `linen` is open to all but data/.
    sources = {"covjax.train.train_step": "import optax_extra\nfrom flax import struct"}
    assert find_breaches(LEGAL | sources) == []


def test_a_cycle_is_a_breach():
    cycle = {
        "covjax.train.losses": "from covjax import optim",
        "covjax.train.optimizer": "from covjax import losses",
    }
    assert len(find_breaches(LEGAL | cycle)) == 1  # the upward half
