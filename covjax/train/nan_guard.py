"""What each step's numbers say: steps that went wrong, and losses that jump."""

import collections
import statistics
from collections.abc import Iterable, Mapping

from covjax.errors import Diverged

IN_A_ROW = 10  # updates dropped one after another, until a run stops
_REMEMBERED, _NEEDED = 100, 20  # losses
_JUMP = 10  # robust standard deviations
_MAD = 1.4826  # times the median deviation: the standard deviation of a normal law


class Watch:
    """Looks at the numbers of one step after another, and tells what is odd."""

    def __init__(self, *, skip: bool, dropped: Iterable[int] = ()):
        """Begins.

        Args:
          skip: whether updates that are not finite were dropped, and training goes on.
          dropped: steps whose updates were dropped before.
        """
        self._skip = skip
        self._dropped = set(dropped)
        self._losses = collections.deque[float](maxlen=_REMEMBERED)

    def look(self, step: int, numbers: Mapping[str, float]) -> str | None:
        """Looks at the numbers of a step.

        Args:
          step: after which they hold.
          numbers: from `steps.train_step`: "loss", "grad_norm" and "finite".

        Returns:
          What is odd, in a line; None if nothing is.

        Raises:
          Diverged: if the step went wrong and its update was not dropped, or
            `IN_A_ROW` were dropped without one between them that was not.
        """
        loss = numbers["loss"]
        if not numbers["finite"]:
            return self._drop(step, loss, numbers["grad_norm"])
        jump = self._jump(loss)
        self._losses.append(loss)
        return f"step {step}: the loss jumps to {loss:.4g} ({jump})" if jump else None

    def _drop(self, step: int, loss: float, norm: float) -> str:
        what = f"loss {loss:.4g}, norm of the gradients {norm:.4g}"
        if not self._skip:
            raise Diverged(
                f"step {step} is not finite: {what}. The checkpoints before it are"
                " whole: go on with --config.train.on_nan=skip, or try a lower"
                " config.optim.lr or a config.optim.clip_norm in another --workdir"
            )
        self._dropped.add(step)
        if all(step - k in self._dropped for k in range(IN_A_ROW)):
            raise Diverged(
                f"step {step} is not finite ({what}), nor were the {IN_A_ROW - 1}"
                " before it, all of which were dropped. The checkpoints before them are"
                " whole; try a lower config.optim.lr in another --workdir"
            )
        return (
            f"step {step} is not finite: {what}; its update is dropped,"
            f" {len(self._dropped):,} so far"
        )

    def _jump(self, loss: float) -> str | None:
        """Tells how far a loss is above those before it, if that is far."""
        if len(self._losses) < _NEEDED:
            return None
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(other - median) for other in self._losses)
        if loss - median <= _JUMP * _MAD * deviation or not deviation:
            return None
        return f"the median of the {len(self._losses)} before is {median:.4g}"
