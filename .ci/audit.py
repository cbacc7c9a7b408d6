"""Looks up known vulnerabilities of the locked packages: audit.py requirements/dev.txt.

Exit status 1 if there is one; 0 if there is none, or if no database can be reached: a
machine without a network must not fail for that.
"""

import json
import subprocess
import sys


def main(requirements: str) -> int:
    """Audits a list of exact versions; returns the exit status."""
    audit = subprocess.run(
        [
            sys.executable, "-m", "pip_audit", "--requirement", requirements,
            "--disable-pip", "--require-hashes", "--format=json",
            "--progress-spinner=off", "--timeout=15",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    try:
        packages = json.loads(audit.stdout)["dependencies"]
    except (ValueError, KeyError):  # it ended before it had asked for all
        packages = []
    known = [package for package in packages if "vulns" in package]
    if not known:
        last = audit.stderr.strip().rpartition("\n")[2][:200]
        print(f"audit: no vulnerability database can be reached, nothing done. {last}")
        return 0
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in"
        f" {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for package in known
        for vulnerability in package["vulns"]
    ]
    print(*found, sep="\n", end="\n" * bool(found))
    unknown = len(packages) - len(known)
    print(f"audit: {len(known)} packages, {unknown} unknown, {len(found)} vulnerable")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
