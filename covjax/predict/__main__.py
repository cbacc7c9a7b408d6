"""Runs `predict.main`."""

from covjax.predict.predict import main
from covjax.runtime import distributed

if __name__ == "__main__":
    distributed.leave(main())
