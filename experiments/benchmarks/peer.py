"""A process that another implementation runs in, spoken to in JSON, a line each way."""

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any


class PeerError(Exception):
    """The other process cannot work, or has ended; the text says why."""


class Peer:
    """Runs a script that answers each line, and sleeps until the next one comes.

    Attributes:
      about: what the script answered to its first line.
    """

    def __init__(self, python: str, script: Path, **first: Any):
        """Starts the script and sends it the first line.

        Args:
          python: path of the interpreter, which may be another environment's.
          script: reads standard input; answers {"missing": why} if it cannot work.
          first: values of the first line.

        Raises:
          PeerError: if the script cannot work there, or there is no such Python.
        """
        try:
            self._process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise PeerError(f"{python}: {error.strerror}") from None
        try:
            self.about = self.ask(**first)
        except PeerError:
            self.close()
            raise
        if "missing" in self.about:
            self.close()
            raise PeerError(f"{python}: {self.about['missing']}")

    def ask(self, **line: Any) -> dict[str, Any]:
        """Sends a line and returns the answer.

        Raises:
          PeerError: if there is none, as the script has ended.
        """
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it ended, and may have said why
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise PeerError(f"the peer ended with status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.communicate()
