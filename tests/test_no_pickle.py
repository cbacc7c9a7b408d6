"""Nothing that covjax reads can run code: no pickle, in whichever disguise."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "covjax"
# Through pipes between covjax and the processes that it started; it reads no file.
OWN_PIPES = {"runtime/worker_process.py": ["pickle"]}
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def find_pickles(source: str) -> list[str]:
    """Names of modules, keywords and calls that would unpickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in FORBIDDEN:
                found.append(node.module or "")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append("allow_pickle")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("eval", "exec"):
                found.append(node.func.id)
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["pickle"]),
        ("def f():\n    from joblib import load", ["joblib"]),
        ("np.load(p, allow_pickle=True)", ["allow_pickle"]),
        ("np.load(p, allow_pickle=flag)", ["allow_pickle"]),
        ("exec(text)", ["exec"]),
        ("np.load(p, allow_pickle=False)\nmodel.eval()\nimport json", []),
    ],
)
def test_a_pickle_is_found_in_whichever_form(source, found):
    assert find_pickles(source) == found


def test_the_package_reads_none():
    found = {
        str(path.relative_to(PACKAGE)): find_pickles(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
    }
    assert len(found) > 60
    assert {name: what for name, what in found.items() if what} == OWN_PIPES
