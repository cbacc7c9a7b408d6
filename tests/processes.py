"""Other processes, of which a test may be told at any moment of their lives."""

import time
from collections.abc import Callable
from pathlib import Path


def is_there(process: int) -> bool:
    """Tells whether a process has not ended, whether or not it was waited for."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # as it goes: opened, then gone
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Waits for what comes at once, but for a machine that others keep busy."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()
