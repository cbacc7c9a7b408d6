"""Runs `from_table.main`."""

import sys

from covjax.data.from_table.from_table import main

if __name__ == "__main__":
    sys.exit(main())
