"""Grain pipelines: images on disk → batches on the host.

What stands at a position of a run is a function of (seed, position) alone: batch s of
a run holds positions s·B to (s+1)·B, whatever the number of processes, workers and
threads. A run that was stopped goes on at the step it had reached; no iterator has to
be saved.
"""

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any

import cv2
import grain
import numpy as np

from covjax.data import mask_ops
from covjax.data.augment import Augment
from covjax.data.augment_params import strengths_of
from covjax.data.covidqu import POSITIVE, Sample, read_sample
from covjax.data.image_cache import FOLDER, hide_earlier, pack_with_bar
from covjax.data.sampler import BalancedBatches, Key, ShuffledEpochs
from covjax.errors import DataError, UsageError
from covjax.runtime.cores import AUTO
from covjax.runtime.files import cache_folder

Record = dict[str, np.ndarray]  # as `read_sample` returns it
Reader = Callable[[int], Record]  # index of an image in its split → the image
Example = dict[str, np.ndarray | np.generic]  # one image's share of a batch

_SHARED = 65_536  # bytes from which on a worker's array comes through shared memory


def record_seed(seed: int, epoch: int, index: int) -> int:
    """Returns the 32-bit seed of an image's augmentation in one epoch."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Region:
    """What the network is shown of an image.

    Attributes:
      roi: "none": all of it; "truth": the inside of the true lungs; "predicted": of
        the lungs that a model found; "outside": all but the true lungs.
      dilate: pixels by which the lungs are widened.
      roi_as: how those lungs are told: "cut": the image is black elsewhere; "channel":
        the image is whole (with "outside": black inside of the true lungs), and they
        stand beside it.
    """

    roi: str = "none"
    dilate: int = 0
    roi_as: str = "cut"

    @property
    def channels(self) -> int:
        """Of what is shown: the image, and perhaps the lungs."""
        return 2 if self.lungs and self.roi_as == "channel" else 1

    @property
    def lungs(self) -> str | None:
        """The mask of a record that it goes by; None if it is the whole image."""
        if self.roi == "none":
            return None
        return "found_lung" if self.roi == "predicted" else "lung"

    def show(self, record: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns what the network is shown, uint8 [H, W, C]; the image comes first."""
        return np.stack(self.planes(record, mask_ops.dilate), axis=-1)

    def planes(
        self, record: Mapping[str, Any], widen: Callable[[Any, int], Any]
    ) -> list[Any]:
        """Returns the channels of what the network is shown.

        Args:
          record: arrays of numpy or of another library.
          widen: adds to a mask all pixels so many pixels away from it.

        Returns:
          The image, uint8 [H, W], 0 where the network is to see nothing; as "channel",
          the lungs as well, widened, uint8 [H, W] in {0, 255}.
        """
        sample = record["image"]
        if self.lungs is None:
            return [sample]
        lungs = widen(record[self.lungs], self.dilate)
        if self.roi == "outside":
            sample = sample * (1 - lungs)
        elif self.roi_as == "cut":
            sample = sample * lungs
        return [sample, 255 * lungs][: self.channels]


@dataclasses.dataclass(frozen=True)
class ReadAugmented:
    """Maps (epoch, index) to an augmented image, as the network is shown it.

    Attributes:
      read: of the split.
      task: whose mask is the target.
      region: what is shown of an image.
      augment: changes a record, given a seed.
      seed: of the run.
    """

    read: Reader
    task: str
    region: Region
    augment: Augment
    seed: int

    def __call__(self, key: Key) -> Example:
        """Reads, augments and shows one image."""
        epoch, index = key
        record = self.read(index)
        record = self.augment(record, record_seed(self.seed, epoch, index))
        return finish(record, self.task, self.region, index)


@dataclasses.dataclass(frozen=True)
class ReadKey:
    """Maps (epoch, index) to what a device that holds the images has to know.

    Attributes:
      seed: of the run.
    """

    seed: int

    def __call__(self, key: Key) -> Example:
        """Returns "index" int32 [], "seed" uint32 [], "weight" 1, float32 []."""
        epoch, index = key
        return {
            "index": np.int32(index),
            "seed": np.uint32(record_seed(self.seed, epoch, index)),
            "weight": np.float32(1),
        }


@dataclasses.dataclass(frozen=True)
class ReadUnaugmented:
    """Maps (epoch, index) to an image that a device is to augment and show.

    Attributes:
      read: of the split.
      parts: of a record that are needed.
      seed: of the run.
    """

    read: Reader
    parts: Sequence[str]
    seed: int

    def __call__(self, key: Key) -> Example:
        """Reads the parts of one image, uint8 [H, W], beside what `ReadKey` returns."""
        record = self.read(key[1])
        return {name: record[name] for name in self.parts} | ReadKey(self.seed)(key)


@dataclasses.dataclass(frozen=True)
class ReadPadded:
    """Maps an index to an image as it is shown; from the split's end on, to padding.

    Attributes:
      read: of the split.
      n: images in the split.
      size: side, pixels.
      task: whose mask is the target.
      region: what is shown of an image.
    """

    read: Reader
    n: int
    size: int
    task: str
    region: Region

    def __call__(self, index: int) -> Example:
        """Reads and shows one image, or returns zeros of weight 0."""
        if index < self.n:
            return finish(self.read(index), self.task, self.region, index)
        return {
            "image": np.zeros((self.size, self.size, self.region.channels), np.uint8),
            "mask": np.zeros((self.size, self.size, 1), np.uint8),
            "index": np.int32(0),
            "weight": np.float32(0),
        }


@dataclasses.dataclass(frozen=True)
class ReadBatch:
    """Maps the keys of a batch's images to the batch.

    Attributes:
      read: makes an image's share of it.
    """

    read: Callable[[Any], Example]

    def __call__(self, keys: Sequence[Any]) -> dict[str, np.ndarray]:
        """Reads the images and stacks them, [B, ...]."""
        batch: dict[str, np.ndarray] = {}
        for k, key in enumerate(keys):
            example = self.read(key)
            for name, value in example.items():
                if not k:
                    batch[name] = np.empty((len(keys), *value.shape), value.dtype)
                # At once: shares that are kept until the last has come would take fresh
                # memory for each batch, and the system time to lay it out.
                batch[name][k] = value
        return batch


def finish(record: Record, task: str, region: Region, index: int) -> Example:
    """Shows an image's region of interest and picks the target.

    That comes after the augmentation: outside of a region that is cut is exactly 0.

    Args:
      record: as `read_sample` returns it.
      task: which mask is the target.
      region: what is shown of the image.
      index: position of the image in its split.

    Returns:
      "image" uint8 [H, W, C], "mask" uint8 [H, W, 1] in {0, 1}, "index" int32 [],
      "weight" 1, float32 [].
    """
    return {
        "image": region.show(record),
        "mask": record[task][..., None],
        "index": np.int32(index),
        "weight": np.float32(1),
    }


@dataclasses.dataclass(frozen=True)
class ReadSamples:
    """Reads images from their files, each time anew.

    Attributes:
      samples: of the split.
      size: side, pixels.
    """

    samples: Sequence[Sample]
    size: int

    def __call__(self, index: int) -> Record:
        """Reads one image and its masks."""
        return read_sample(self.samples[index], self.size)


def make_reader(samples: Sequence[Sample], data: Any) -> Reader:
    """Returns what reads the images: packed copies of them, or their files.

    Args:
      samples: of the split.
      data: `config.data`; `cache` and `image_size` are read.

    Raises:
      DataError: if the packed copies cannot be made or opened.
    """
    if not data.cache:
        return ReadSamples(samples, data.image_size)
    try:
        cache = cache_folder(data.cache)
    except RuntimeError as error:
        raise DataError(
            f"{error}; name a folder in COVJAX_CACHE or config.data.cache"
        ) from None
    reader = pack_with_bar(samples, data.image_size, cache / FOLDER)
    hide_earlier(cache)
    return reader


def make_region(data: Any) -> Region:
    """Returns what `config.data` shows of an image in training."""
    return Region(data.roi, data.roi_dilate, data.roi_as)


def make_order(samples: Sequence[Sample], config: Any) -> Callable[[int], Key]:
    """Returns which image stands at each position of a run.

    Args:
      samples: the training split.
      config: the whole config; `data.positive_share`, `seed` and `train` are read.

    Raises:
      UsageError: if the share asks for images of a kind that the split lacks.
    """
    n, batch = len(samples), config.train.batch_size
    share = config.data.positive_share
    if not share:
        return ShuffledEpochs(n, batch, config.seed)
    return BalancedBatches(
        [sample.label == POSITIVE for sample in samples],
        batch,
        config.seed,
        share=tuple(share),
        total_steps=config.train.epochs * (n // batch),
    )


def make_train_dataset(
    samples: Sequence[Sample],
    *,
    config: Any,
    steps: range,
    rank: int = 0,
    world: int = 1,
    read: Callable[[Key], Example] | None = None,
    workers: int | None = None,
) -> grain.IterDataset:
    """Returns this process's shares of the training batches of some steps.

    Args:
      samples: the training split.
      config: the whole config; `data`, `augment`, `seed`, `train` are read.
      steps: which steps of the run, for example `range(reached, total)`.
      rank: of this process.
      world: number of processes; the batch must be divisible by it.
      read: makes an image's share of a batch; by default it is augmented and shown
        here.
      workers: processes that load; by default those that the config asks for, none
        where it leaves their number open.

    Returns:
      Batches of numpy arrays: "image" uint8 [B, H, W, C], "mask" uint8 [B, H, W, 1],
      "index" int32 [B], "weight" float32 [B], B = batch_size / world; or what `read`
      makes of them.

    Raises:
      UsageError: if a batch is larger than the split, or the share of positive images
        asks for images of a kind that it lacks.
    """
    batch = config.train.batch_size
    if batch > len(samples):
        raise UsageError(
            f"config.train.batch_size = {batch}: there are only {len(samples)} images"
        )
    data = config.data
    read = read or ReadAugmented(
        make_reader(samples, data),
        data.task,
        make_region(data),
        Augment(**strengths_of(config.augment)),
        config.seed,
    )
    positions = grain.MapDataset.range(
        steps.start * batch + rank, steps.stop * batch, world
    )
    order = make_order(samples, config)
    dataset = _batches(positions.map(order), read, batch // world)
    return _iterate(dataset, data, workers)


def make_eval_dataset(
    samples: Sequence[Sample],
    *,
    config: Any,
    rank: int = 0,
    world: int = 1,
    roi: str | None = None,
    batch_size: int | None = None,
    cached: bool = True,
) -> grain.IterDataset:
    """Returns this process's share of a split, every image once, in order.

    The last batch is filled with padding of weight 0, so that all processes have as
    many batches of one shape.

    Args:
      samples: the split.
      config: the whole config; `data` and `train.batch_size` are read.
      rank: of this process.
      world: number of processes; the batch must be divisible by it.
      roi: region of interest; None: `data.roi`.
      batch_size: over all processes; None: `train.batch_size`.
      cached: False reads each image from its files, whatever `data.cache` says.

    Returns:
      Batches as `make_train_dataset` gives them, without augmentation.
    """
    batch, data = batch_size or config.train.batch_size, config.data
    padded = -(-len(samples) // batch) * batch
    size = data.image_size
    read = ReadPadded(
        make_reader(samples, data) if cached else ReadSamples(samples, size),
        len(samples),
        size,
        data.task,
        Region(roi or data.roi, data.roi_dilate, data.roi_as),
    )
    indices = grain.MapDataset.range(rank, padded, world)
    dataset = _batches(indices, read, batch // world)
    # Without augmentation a thread is enough, and workers would start for each pass:
    # they do where the config asks for them.
    return _iterate(dataset, data)


def _batches(
    keys: grain.MapDataset, read: Callable[[Any], Example], size: int
) -> grain.MapDataset:
    """Returns the dataset of batches of what `read` makes of the keys."""
    return keys.batch(size, batch_fn=tuple).map(ReadBatch(read))


def _iterate(
    dataset: grain.MapDataset, data: Any, workers: int | None = None
) -> grain.IterDataset:
    if workers is None:
        workers = 0 if data.workers == AUTO else data.workers
    batches = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    )
    if workers:
        # Started by the first worker, it would lift what `shield_workers` holds back.
        resource_tracker.ensure_running()
        # Small arrays go through the pipe: to share memory costs more than to copy.
        small = grain.experimental.DatasetOptions(min_shm_size=_SHARED)
        batches = grain.experimental.WithOptionsIterDataset(batches, small)
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), _start_worker
        )
    return batches


def _start_worker(_index: int, _count: int) -> None:
    """Gives a worker one core, and an end with the process that started it."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
