"""Whether all processes of a run were started alike: command, config, code, packages.

Processes that differ would wait for each other without end, or train on a mixture.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from covjax import multihost
from covjax.config import flatten
from covjax.errors import UsageError
from covjax.train.run_folder import PACKAGES, about

# Of a host: no batch depends on them.
_OWN = {"data.root", "data.threads", "data.workers", "data.prefetch"}
_MOST = 5  # differences that are named


def check_same_start(flags: Mapping[str, Any], config: Any) -> None:
    """Refuses to go on, in every process, unless all were started alike.

    Before anything else that the processes do together.

    Args:
      flags: names → values of the command line.
      config: what they train, or None.

    Raises:
      UsageError: naming what differs, and each process's value of it.
    """
    if jax.process_count() == 1:
        return
    told = [
        json.loads(words)
        for words in multihost.gather_words(json.dumps(_describe(flags, config)))
    ]
    names = dict.fromkeys(name for one in told for name in one)
    differing = [
        f"{name} ({_list_values(told, name)})"
        for name in names
        if name != "process" and any(one.get(name) != told[0].get(name) for one in told)
    ]
    if differing:
        more = f" and {len(differing) - _MOST} more" if len(differing) > _MOST else ""
        raise UsageError(
            f"the processes differ in {', '.join(differing[:_MOST])}{more}: start all"
            " of them with the same command, code and packages"
        )


def _describe(flags: Mapping[str, Any], config: Any) -> dict[str, Any]:
    fields = {} if config is None else flatten(config)
    known = about([])
    return (
        {"process": multihost.name_process(), "devices": jax.local_device_count()}
        | {f"--{name}": value for name, value in flags.items()}
        | {f"config.{name}": v for name, v in fields.items() if name not in _OWN}
        | {"Python": known["python"], "commit": known["commit"]}
        | {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"code": _digest_code()}
    )


def _digest_code() -> str:
    """Returns eight digits that tell this code of covjax from any other."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _list_values(told: list[dict[str, Any]], name: str) -> str:
    """Returns each value once, with the first process that has it."""
    first: dict[str, str] = {}
    for one in told:
        first.setdefault(json.dumps(one.get(name)), one["process"])
    return ", ".join(f"{value} on {process}" for value, process in first.items())
