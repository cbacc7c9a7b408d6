"""What the page's server says when something unforeseen happens: where, and no more.

The text of an error may hold the name of a file or what a file contains.
"""

import sys
import traceback
from pathlib import Path


def tell_place(error: BaseException) -> None:
    """Prints the kind of an error, and the lines of code that led to it."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in frames)
    print(f"covjax: unforeseen: {type(error).__name__} ({places})", file=sys.stderr)
