"""Coverage-guided fuzzing of what reads films and masks.

  pip install -e '.[faults]'
  python -m experiments.faults.fuzz [--seconds=600] [--out=fuzz]

atheris (libFuzzer) turns the bytes of pictures, good ones and broken ones, into others
and keeps those that reach new lines of covjax's and Pillow's code. Whatever comes must
be refused by a ValueError of one line, or give a picture of uint8 or uint16 whose sides
are those that are allowed; read once more, the same; as a film, 8 bits; as a mask, 0
and 1, or a DataError of one line that names the file. Else, and where an input takes
more than its time or memory, it is saved under OUT and named. The last line is a JSON
object; exit status 1 after a crash.
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

from experiments.faults.corpus import make_seeds, make_whole

SECONDS = 10  # for one input
MEMORY = 2048  # MiB, of the whole process
LONGEST = 1 << 16  # bytes of an input


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes for a while, in child processes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="for crashes")
    flags = parser.parse_args(argv)
    if not importlib.util.find_spec("atheris"):
        print("no atheris here: pip install -e '.[faults]'", file=sys.stderr)
        return 2
    flags.out.mkdir(parents=True, exist_ok=True)
    before = set(flags.out.iterdir())
    ends = time.monotonic() + flags.seconds
    executions = coverage = features = 0
    with tempfile.TemporaryDirectory() as work:
        seeds = Path(work) / "seeds"
        write_seeds(seeds)
        crashes: list[str] = []
        while (left := ends - time.monotonic()) > 1:
            said = _fuzz(seeds, flags.out, int(left))
            numbers = re.findall(r"#(\d+)\t\w+\s+cov: (\d+) ft: (\d+)", said)
            if numbers:
                executions += int(numbers[-1][0])
                coverage = max(coverage, int(numbers[-1][1]))
                features = max(features, int(numbers[-1][2]))
            found = sorted(set(flags.out.iterdir()) - before)
            if len(found) == len(crashes):  # it came to its end
                if not numbers:
                    print(said[-2000:], file=sys.stderr)
                    return 1
                continue
            crashes = [str(path) for path in found]
            reason = re.search(r"(?<=exception: ===\n).*|ERROR: libFuzzer.*", said)
            print(f"{crashes[-1]}: {reason[0] if reason else said[-300:]}", flush=True)
    told = {"seconds": flags.seconds, "executions": executions, "coverage": coverage}
    print(json.dumps(told | {"features": features, "crashes": crashes}))
    return 1 if crashes else 0


def _fuzz(seeds: Path, out: Path, seconds: int) -> str:
    """Runs libFuzzer until its time is over or an input fails; returns its words."""
    child = subprocess.run(
        [
            sys.executable, "-m", "experiments.faults.fuzz_one", str(seeds),
            f"-max_total_time={seconds}", f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEMORY}", f"-malloc_limit_mb={MEMORY // 2}",
            f"-max_len={LONGEST}", f"-artifact_prefix={out}/", "-print_final_stats=1",
        ],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    return child.stdout + child.stderr


def write_seeds(folder: Path) -> None:
    """Writes the pictures that the fuzzing starts from: those of the corpus."""
    folder.mkdir()
    whole = make_whole(folder.with_name("whole"))
    for k, content in enumerate(make_seeds(whole)):
        if len(content) <= LONGEST:
            (folder / f"{k:04}").write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
