"""Which image stands at a position of a training run.

An order maps a position to an image's key, from the run's seed and the position alone.
Batch s of a run holds positions s * B to (s + 1) * B.
"""

import functools
from collections.abc import Sequence

import numpy as np

from covjax.errors import UsageError

Key = tuple[int, int]  # (epoch, index of the image in its split); none comes twice

_PLACES, _SAMPLES = 0, 1  # streams of random numbers that a seed gives


class ShuffledEpochs:
    """Maps a position in a run to (epoch, index of the image).

    Every epoch has an order of its own. Its last, incomplete batch is left out; which
    images that are changes with the epoch.
    """

    def __init__(self, n: int, batch_size: int, seed: int):
        """Sets the number of images, the batch of the whole run and the run's seed."""
        self._n, self._seed = n, seed
        self._per_epoch = n // batch_size * batch_size

    def __call__(self, position: int) -> Key:
        """Returns (epoch, index) of a position."""
        epoch, k = divmod(int(position), self._per_epoch)
        return epoch, int(_epoch_order(self._seed, epoch, self._n)[k])


@functools.lru_cache(maxsize=2)  # threads may be at the seam of two epochs
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


class BalancedBatches:
    """Maps a position to (pass, index): so many images of each batch are positive.

    With S steps in the run, batch s of B images holds

        k(s) = round(B * (first + (last - first) * s / (S - 1)))

    positive ones. Positive images and others are each walked through by themselves, in
    passes that have an order of their own: of a kind, no image comes twice before each
    has come once. The places of the positive ones in a batch are drawn: in a row, they
    would all go to the first devices.
    """

    def __init__(
        self,
        positive: Sequence[bool] | np.ndarray,
        batch_size: int,
        seed: int,
        share: tuple[float, float],
        total_steps: int,
    ):
        """Counts how many positive images come before each batch.

        Args:
          positive: of every image of the split.
          batch_size: B, over all devices and processes.
          seed: of the run.
          share: (first, last), each from 0 to 1.
          total_steps: S; positions go from 0 to S * B.

        Raises:
          UsageError: if images of a kind are asked for and there are none.
        """
        first, last = share
        steps = np.arange(total_steps)
        shares = first + (last - first) * steps / max(total_steps - 1, 1)
        counts = np.rint(batch_size * shares).astype(np.int64)
        self._batch_size, self._seed = batch_size, seed
        self._before = np.concatenate([[0], np.cumsum(counts)])  # positive images
        positive = np.asarray(positive, bool)
        self._images = np.flatnonzero(~positive), np.flatnonzero(positive)
        asked = batch_size * total_steps - self._before[-1], self._before[-1]
        for samples, wanted, kind in zip(
            self._images, asked, ("other", "positive"), strict=True
        ):
            if wanted and not len(samples):
                raise UsageError(
                    f"config.data.positive_share = {tuple(share)} asks for {kind}"
                    " images, and the training split has none"
                )

    def __call__(self, position: int) -> Key:
        """Returns (pass through the images of its kind, index) of a position."""
        step, place = divmod(int(position), self._batch_size)
        before, after = self._before[step], self._before[step + 1]
        rank = _places(self._seed, step, self._batch_size)[place]
        kind = int(rank < after - before)
        if not kind:  # as many of the others as there were places for them
            before, rank = step * self._batch_size - before, rank - (after - before)
        samples = self._images[kind]
        walk, k = divmod(int(before + rank), len(samples))
        return walk, int(samples[_walk_order(self._seed, kind, walk, len(samples))[k]])


@functools.lru_cache(maxsize=64)  # batches that threads are at
def _places(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Returns the rank of each place of a batch: the lowest are the positive ones."""
    return _stream(seed, _PLACES, step).permutation(batch_size)


@functools.lru_cache(maxsize=8)  # two passes of both kinds, and a few short ones
def _walk_order(seed: int, kind: int, walk: int, n: int) -> np.ndarray:
    return _stream(seed, _SAMPLES, kind, walk).permutation(n)


def _stream(seed: int, *names: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=names))
