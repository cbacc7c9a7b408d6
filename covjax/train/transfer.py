"""Which leaves of one run's tree start the next, and a table that says so."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from covjax.config import compile_patterns
from covjax.errors import UsageError

# The leaves that see the image itself, [3, 3, C, width] and [C, width]. They may come
# from a run of fewer channels; those that it lacks start at 0: they change nothing yet.
FIRST = ("params/encoder_0/conv_0/kernel", "params/encoder_0/shortcut/kernel")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What `transfer` did.

    Attributes:
      variables: {"params": …, "batch_stats": …}, to start with.
      taken: names of the leaves that come from the source.
      fresh: names of the leaves that start anew.
      widened: those of `taken` that got input channels of weight 0 beside the source's.
    """

    variables: dict[str, Any]
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    widened: tuple[str, ...] = ()


def transfer(
    source: dict[str, Any],
    target: dict[str, Any],
    *,
    fresh: Sequence[str],
    name: str,
) -> Transfer:
    """Takes every leaf of `target` from `source`, but for those that start anew.

    Nothing is left unexplained: each leaf of either tree is taken or matches a
    pattern, and each pattern matches a leaf. Shapes are the same, except that leaves of
    `FIRST` may have more input channels here (an image, and the lungs beside it).

    Args:
      source: {"params": …, "batch_stats": …} of another run.
      target: the same of this run, just initialised.
      fresh: regular expressions, searched in names like "params/head/kernel".
      name: of the source, for messages.

    Returns:
      The tree to start with and the lists of names.

    Raises:
      UsageError: naming the first leaf that is missing, surplus or of another shape,
        or the pattern that matches nothing.
    """
    old: dict[str, Any] = traverse_util.flatten_dict(source, sep="/")
    new: dict[str, Any] = traverse_util.flatten_dict(target, sep="/")
    patterns = compile_patterns(fresh, "transfer.fresh")
    for pattern in patterns:
        if not any(pattern.search(leaf) for leaf in old.keys() | new.keys()):
            raise UsageError(
                f"config.transfer.fresh: {pattern.pattern!r} matches no leaf; leaves"
                f" are named like {next(iter(sorted(new)))}"
            )
    started = {leaf for leaf in new if any(p.search(leaf) for p in patterns)}
    widened = tuple(
        leaf
        for leaf in FIRST
        if leaf not in started and _has_more_inputs(old.get(leaf), new.get(leaf))
    )
    for leaf in widened:
        old[leaf] = _widen(old[leaf], new[leaf].shape[-2])
    for leaf in sorted((old.keys() | new.keys()) - started):
        if any(p.search(leaf) for p in patterns):
            continue  # surplus in the source, and explained
        if leaf not in old or leaf not in new:
            where = f"is not in {name}" if leaf in new else f"of {name} is not in here"
            raise UsageError(
                f"{leaf} {where}: set config.model as it was there, or name the leaf"
                " in config.transfer.fresh"
            )
        if old[leaf].shape != new[leaf].shape:
            raise UsageError(
                f"{leaf} is {tuple(old[leaf].shape)} in {name} and"
                f" {tuple(new[leaf].shape)} here: set config.model (width, depth)"
                " and config.data.roi_as as they were there, or name the leaf in"
                " config.transfer.fresh"
            )
    merged = {leaf: new[leaf] if leaf in started else old[leaf] for leaf in new}
    return Transfer(
        variables=dict.fromkeys(target, {})
        | traverse_util.unflatten_dict(merged, sep="/"),
        taken=tuple(sorted(new.keys() - started)),
        fresh=tuple(sorted(started)),
        widened=widened,
    )


def _has_more_inputs(old: Any, new: Any) -> bool:
    """Tells whether two kernels [..., C, F] differ in that `new` has more inputs."""
    if old is None or new is None or old.ndim != new.ndim:
        return False
    same = old.shape[:-2] == new.shape[:-2] and old.shape[-1] == new.shape[-1]
    return same and old.shape[-2] < new.shape[-2]


def _widen(kernel: Any, channels: int) -> np.ndarray:
    """Returns a kernel [..., C, F] with inputs of weight 0 after its own."""
    kernel = np.asarray(kernel)
    missing = (*kernel.shape[:-2], channels - kernel.shape[-2], kernel.shape[-1])
    return np.concatenate([kernel, np.zeros(missing, kernel.dtype)], axis=-2)


def format_transfer(result: Transfer, name: str) -> str:
    """Returns a table: a line a module, with the leaves taken and started anew."""
    rows: dict[str, list[int]] = {}
    for column, leaves in enumerate((result.taken, result.fresh)):
        for leaf in leaves:
            collection, module, *_ = leaf.split("/")
            rows.setdefault(f"{collection}/{module}", [0, 0])[column] += 1
    width = max(map(len, rows))
    lines = [
        f"{len(result.taken)} leaves from {name}, {len(result.fresh)} start anew",
        *(
            f"{leaf} is widened: input channels that were not there start at 0"
            for leaf in result.widened
        ),
        f"  {'module':{width}}  taken  anew",
    ]
    lines += [f"  {row:{width}}  {a:5}  {b:4}" for row, (a, b) in sorted(rows.items())]
    return "\n".join(lines)
