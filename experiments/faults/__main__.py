"""All faults, one after another.

  python -m experiments.faults [NAME …]

Each name is a file beside this one and can be run by itself. Ends with one line of JSON
that holds the counts of all; status 1 if one of them failed.
"""

import json
import subprocess
import sys
import time

NAMES = (
    "refusals", "inputs", "full_disk", "hosts", "kills", "kill_predict",
    "kill_from_table", "kill_export", "kill_app", "long_run", "fuzz",
)  # fmt: skip


def run(name: str) -> tuple[int, dict]:
    """Runs one; returns its exit status and the line of JSON that it ended with."""
    print(f"== {name}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.faults.{name}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    last = ""
    for line in process.stdout or ():
        print(line, end="", flush=True)
        last = line.strip() or last
    try:
        told = dict(json.loads(last))
    except (ValueError, TypeError):
        told = {name: None}
    return process.wait(), told


def main(names: list[str]) -> int:
    """Runs those that are named, or all; returns the exit status."""
    for name in names:
        if name not in NAMES:
            print(f"no {name!r}: there are {', '.join(NAMES)}", file=sys.stderr)
            return 2
    counts, failed, begun = {}, [], time.monotonic()
    for name in names or NAMES:
        status, told = run(name)
        counts[name] = told.get(name, told)
        if status:
            failed.append(name)
    minutes = round((time.monotonic() - begun) / 60, 1)
    print(json.dumps(counts | {"failed": failed, "minutes": minutes}))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
