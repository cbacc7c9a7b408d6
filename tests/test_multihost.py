"""Two processes, of which one fails: both learn why, and none waits for the other."""

import json
import re

import numpy as np
import pytest

from covjax import multihost
from covjax.errors import StorageError, UsageError
from test_distributed import _JOIN, two

_BOTH = """
import json
from covjax import multihost
from covjax.errors import StorageError

def told(action):
    try:
        return action()
    except Exception as error:
        return [type(error).__name__, error.exit_status, str(error)]

def fail(error):
    raise error

def main_fails():
    return multihost.on_main(lambda: fail(UsageError("no run")))

def other_fails():
    full = StorageError("the disk is full")
    return multihost.in_all(lambda: fail(full) if rank else "fine")

def disk_fails():
    gone = OSError(116, os.strerror(116), "a.png")
    return multihost.in_all(lambda: fail(gone) if rank else "fine")

def sent():
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": [None, True, "s", (1, 2.5)]}
    found = multihost.on_main(lambda: tree if rank == 0 else fail(UsageError("asked")))
    return [found["a"].tolist(), found["b"][:3], list(found["b"][3])]

multihost._AT_ONCE = 64  # bytes: in several parts
results = {
    "words": multihost.gather_words("ä" * (1 + 3 * rank)),
    "sent": told(sent),
    "main fails": told(main_fails),
    "other fails": told(other_fails),
    "goes on": told(lambda: multihost.in_all(lambda: rank)),
    "main only": told(lambda: multihost.on_main_only(lambda: "open")),
}
try:
    disk_fails()
except Exception as error:
    results["disk"] = str(error)
print("TOLD", json.dumps(results), flush=True)
"""


def test_all_processes_learn_what_one_of_them_met(tmp_path):
    with two(tmp_path, "together", _JOIN, _BOTH) as group:
        group.finish(0, 0)
        said = [re.findall("TOLD (.*)", group.said(rank))[0] for rank in (0, 1)]
    main, other = map(json.loads, said)
    for found in (main, other):
        assert found["words"] == ["ä", "ää" * 2]
        assert found["sent"] == [
            [[0, 1, 2], [3, 4, 5]], [None, True, "s"], [1, 2.5],
        ]  # fmt: skip
    assert main["main fails"] == ["UsageError", 2, "no run"]
    kind, status, text = other["main fails"]
    assert (kind, status) == ("UsageError", 2)
    assert re.fullmatch(r"process 0 \(.+\): no run", text)
    assert other["other fails"] == ["StorageError", 1, "the disk is full"]
    assert main["other fails"][1] == 1
    assert re.fullmatch(r"process 1 \(.+\): the disk is full", main["other fails"][2])
    assert (main["goes on"], other["goes on"]) == (0, 1)
    assert (main["main only"], other["main only"]) == ("open", None)
    assert re.match(r"process 1 \(.+\): a.png: Stale file handle", main["disk"])


def test_a_process_that_is_alone_sees_its_own_result_and_error():
    tree = (1, np.arange(3))
    assert multihost.on_main(lambda: tree) is tree
    assert multihost.in_all(lambda: tree) is tree
    assert multihost.on_main_only(lambda: tree) is tree

    def fail():
        raise StorageError("full")

    for run in (multihost.on_main, multihost.in_all, multihost.on_main_only):
        with pytest.raises(StorageError, match="^full$"):
            run(fail)
    assert not issubclass(StorageError, UsageError)
