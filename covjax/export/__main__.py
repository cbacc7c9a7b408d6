"""Runs `export.main`."""

import sys

from covjax.export.export import main

if __name__ == "__main__":
    sys.exit(main())
