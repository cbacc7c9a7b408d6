"""Fills the disk under a run, and takes its folder's rights: nothing whole is lost.

  python -m experiments.faults.full_disk

In a mount namespace of its own (`unshare` of util-linux, as root or with user
namespaces), a run is given a tmpfs that is too small in several ways: it has to end
with status 1 and a line, and every file has to be whole. Then the disk grows, and the
same command has to end in the bits of a run that never met it. A read-only folder has
to be refused with status 2 and stay as it is. Ends with a line of JSON; status 1 if
anything else happens.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from covjax.errors import UsageError
from covjax.runtime.checksums import check_digests
from experiments.faults.kills import finish, make_project, run_undisturbed, start
from experiments.faults.same_run import compare_runs, find_torn

SIZES = ("60k", "200k", "400k", "700k", "1000k", "1500k")  # a run takes 2 MB
STAGE = "runs/lung"
_WAYS = (["--mount"], ["--user", "--map-root-user", "--mount"])


def main(argv: list[str] | None = None) -> int:
    """Runs it in a namespace of its own; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.full_disk")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    inside = parser.parse_args(argv).inside
    if inside is not None:
        return _fill(inside)
    for way in _WAYS:
        if not subprocess.run(
            ["unshare", *way, "true"], capture_output=True
        ).returncode:
            break
    else:
        print(json.dumps({"full_disk": {"refused": "no mount namespace to be had"}}))
        return 1
    with tempfile.TemporaryDirectory(prefix="covjax-disk-") as folder:
        words = ("-m", "experiments.faults.full_disk", "--inside", folder)
        return subprocess.run(["unshare", *way, sys.executable, *words]).returncode


def _fill(folder: Path) -> int:
    calm = folder / "calm"
    run_undisturbed(calm, (STAGE,))
    faults = []
    for size in SIZES:
        faults += _fill_one(folder / size, size, calm / STAGE)
        print(f"a disk of {size}: {len(faults)} faults so far", flush=True)
    faults += _read_only(folder / "read-only", calm)
    for fault in faults:
        print(fault)
    counts = {"full": len(SIZES), "read_only": 1, "faults": len(faults)}
    print(json.dumps({"full_disk": counts}))
    return int(bool(faults))


def _fill_one(cwd: Path, size: str, calm: Path) -> list[str]:
    make_project(cwd)
    disk = cwd / "runs"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk))
    run, faults = cwd / STAGE, []
    status = finish(start(cwd, STAGE))
    said = (cwd / "log").read_text()
    last = said.strip().splitlines()[-1]
    if status != 1 or not last.startswith("covjax: ") or "Traceback" in said:
        faults.append(f"{size}: status {status}: {said[-1500:]}")
    faults += [f"{size}: {fault}" for fault in _find_broken(run)]
    _mount("-o", "remount,size=64m", str(disk))
    status = finish(start(cwd, STAGE))
    if status:
        return [*faults, f"{size}: did not go on: {(cwd / 'log').read_text()[-1500:]}"]
    return faults + compare_runs(calm, run) + find_torn(run)


def _find_broken(run: Path) -> list[str]:
    """Returns files of a run that broke off which bear the name of whole ones."""
    faults = []
    for path in run.rglob("*.json"):
        if ".orbax-checkpoint-tmp" not in str(path):
            try:
                json.loads(path.read_text())
            except ValueError:
                faults.append(f"{path} is torn")
    for folder in (run / "checkpoints").glob("*"):
        if folder.name.isdecimal():
            try:
                check_digests(folder)
            except UsageError as error:
                faults.append(str(error))
    return faults


def _read_only(cwd: Path, calm: Path) -> list[str]:
    shutil.copytree(calm, cwd, symlinks=True)
    run = cwd / STAGE
    _mount("--bind", str(run), str(run))
    _mount("-o", "remount,bind,ro", str(run))
    before = _listing(run)
    (cwd / "log").write_text("")
    status = finish(start(cwd, STAGE))
    said = (cwd / "log").read_text()
    if status != 2 or "Read-only file system" not in said or "Traceback" in said:
        return [f"read-only: status {status}: {said[-1500:]}"]
    return [] if _listing(run) == before else ["read-only: the folder has changed"]


def _listing(folder: Path) -> dict[str, int]:
    return {str(path): os.stat(path).st_mtime_ns for path in folder.rglob("*")}


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
