"""Runs `audit.main`."""

import sys

from covjax.data.audit.audit import main

if __name__ == "__main__":
    sys.exit(main())
