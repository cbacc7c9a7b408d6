"""Coverage-guided fuzzing of what reads untrusted images.

  pip install -e '.[faults,dicom]'
  python -m experiments.faults.fuzz [--seconds=600] [--target=NAME ...] [--out=fuzz]

atheris (libFuzzer) changes the bytes of small files, good ones and broken ones, and
keeps those that reach new lines of covjax's, Pillow's and pydicom's code. The targets
share the time: `pictures` (image files, as images and as masks), `dicom` (DICOM files),
`codestreams` (the compressed pixels in them). Whatever comes must be refused by an
error of one line that quotes nothing of the file, or give an image of the right shape
and type; and no input may take more CPU time or memory than `fuzz_targets` allows. An
input that breaks this is saved under OUT and named. The last line is a JSON object with
the counts of each target; exit status 1 after a crash.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.faults.corpus import make_seeds, make_whole

SECONDS = 10  # of wall-clock time for one input
MEMORY = 2048  # MiB, of the whole process
LONGEST = 1 << 16  # bytes of an input
NAMES = ("pictures", "dicom", "codestreams")


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes for a while, in child processes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="(%(default)s)")
    parser.add_argument(
        "--target", action="append", choices=NAMES, help="default: all of them"
    )
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="for crashes")
    flags = parser.parse_args(argv)
    if not importlib.util.find_spec("atheris"):
        print("no atheris here: pip install -e '.[faults,dicom]'", file=sys.stderr)
        return 2
    targets = flags.target or NAMES
    flags.out.mkdir(parents=True, exist_ok=True)
    counts = {
        target: _fuzz_for(target, flags.seconds / len(targets), flags.out)
        for target in targets
    }
    print(json.dumps({"seconds": flags.seconds} | counts))
    broken = any(told["crashes"] or not told["executions"] for told in counts.values())
    return int(broken)


def _fuzz_for(target: str, seconds: float, out: Path) -> dict[str, Any]:
    """Fuzzes one target, again after each crash; returns its counts."""
    ends = time.monotonic() + seconds
    before = set(out.iterdir())
    told: dict[str, Any] = {"executions": 0, "coverage": 0, "features": 0}
    told |= {"most_seconds": 0.0, "most_mib": 0, "crashes": []}
    with tempfile.TemporaryDirectory() as work:
        seeds = Path(work) / "seeds"
        write_seeds(target, seeds)
        while (left := ends - time.monotonic()) > 1:
            said = _fuzz(target, seeds, out, int(left))
            numbers = re.findall(r"#(\d+)\t\w+\s+cov: (\d+) ft: (\d+)", said)
            if numbers:
                told["executions"] += int(numbers[-1][0])
                told["coverage"] = max(told["coverage"], int(numbers[-1][1]))
                told["features"] = max(told["features"], int(numbers[-1][2]))
            for cost in re.findall(r"^\{\"most_seconds\".*\}$", said, re.MULTILINE):
                for name, value in json.loads(cost).items():
                    told[name] = max(told[name], value)
            found = sorted(set(out.iterdir()) - before)
            if len(found) > len(told["crashes"]):
                told["crashes"] = [str(path) for path in found]
                reason = re.search(r"(?<=exception: ===\n).*|ERROR: libFuzzer.*", said)
                why = reason[0] if reason else said[-300:]
                print(f"{target}: {told['crashes'][-1]}: {why}", flush=True)
            elif not numbers:  # it did not start
                print(said[-2000:], file=sys.stderr)
                break
    return told


def _fuzz(target: str, seeds: Path, out: Path, seconds: int) -> str:
    """Runs libFuzzer until its time is over or an input fails; returns its words."""
    child = subprocess.run(
        [
            sys.executable, "-m", "experiments.faults.fuzz_one", target, str(seeds),
            f"-max_total_time={seconds}", f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEMORY}", f"-malloc_limit_mb={MEMORY // 2}",
            f"-max_len={LONGEST}", f"-artifact_prefix={out}/", "-print_final_stats=1",
        ],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    return child.stdout + child.stderr


def write_seeds(target: str, folder: Path) -> None:
    """Writes the files that the fuzzing of a target starts from."""
    folder.mkdir()
    for k, content in enumerate(_make_seeds(target, folder.with_name("whole"))):
        if len(content) <= LONGEST:
            (folder / f"{k:04}").write_bytes(content)


def _make_seeds(target: str, work: Path) -> list[bytes]:
    if target == "pictures":
        return make_seeds(make_whole(work))
    # Needs the extra `dicom`, which the fuzzing of pictures does not.
    from experiments.faults.dicom_seeds import make_files, make_streams

    if target == "dicom":
        return make_files()
    return [bytes([k]) + stream for k, (_, stream) in enumerate(make_streams())]


if __name__ == "__main__":
    sys.exit(main())
