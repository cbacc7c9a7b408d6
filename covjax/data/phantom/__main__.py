"""Runs `dataset.main`."""

import sys

from covjax.data.phantom.dataset import main

if __name__ == "__main__":
    sys.exit(main())
