"""How a peer's script speaks: a line of JSON for each that it was sent.

The scripts import this from their own folder: they know nothing of covjax, and need no
more than the standard library and what they measure.
"""

import json
import os
import sys
from typing import Any

# Whatever a library prints goes to standard error: the lines are for the answers.
_ANSWERS = os.fdopen(os.dup(sys.stdout.fileno()), "w")
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def answer(**values: Any) -> None:
    """Writes one line."""
    _ANSWERS.write(json.dumps(values) + "\n")
    _ANSWERS.flush()
