"""What the train step is fed: batches on the devices, augmented there or on the host.

There are three ways, which `config.augment.where` and the memory decide on:

- "host": the pipeline augments and shows, the device gets what the step takes;
- "device", the images lie there: the pipeline sends their indices and seeds;
- "device", the images do not fit there: the pipeline sends them as they are.

The last two give the same batches.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from covjax import parallel
from covjax.data.augment_params import strengths_of
from covjax.data.covidqu import Sample
from covjax.data.image_cache import CachedSamples
from covjax.data.pipeline import (
    ReadKey,
    ReadUnaugmented,
    Region,
    make_reader,
    make_region,
    make_train_dataset,
)
from covjax.runtime.cores import count_cores, count_workers
from covjax.train.device_augment import DeviceAugment, dilate
from covjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Augments, shows and picks the target on the device, before the step.

    Attributes:
      augment: changes an image and its masks, given a seed.
      region: what is shown of an image.
      task: whose mask is the target.
    """

    augment: DeviceAugment
    region: Region
    task: str

    @property
    def parts(self) -> list[str]:
        """The parts of a record that are needed, each once."""
        parts = ["image", self.task, self.region.lungs]
        return [name for name in dict.fromkeys(parts) if name]

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Makes of one device's share what the step takes.

        Args:
          batch: "index" int32 [B], "seed" uint32 [B], "weight" float32 [B]; and
            either `parts`, uint8 [B, H, W], or "images": the packed parts of the whole
            split, as data/image_cache.py keeps them.
        """
        if "images" in batch:
            records = _unpack(batch["images"], batch["index"])
        else:
            records = {name: batch[name] for name in self.parts}
        # Each stage is compiled for itself. Else a pixel may be computed anew for each
        # of its uses, and a step round otherwise where its images come another way.
        records = jax.lax.optimization_barrier(records)
        records = jax.vmap(self.augment)(records, batch["seed"])
        records = jax.lax.optimization_barrier(records)
        # After the augmentation, so that outside of the region is exactly 0.
        planes = jax.vmap(lambda record: self.region.planes(record, dilate))(records)
        prepared: Batch = {
            "image": jnp.stack(planes, axis=-1),
            "mask": records[self.task][..., None],
            "index": batch["index"],
            "weight": batch["weight"],
        }
        return jax.lax.optimization_barrier(prepared)


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches, and what is to be done to them on the device.

    Attributes:
      batches: this process's, [D, B, ...], on its devices.
      prepare: makes a `Batch` of one device's share; part of the compiled step.
      description: which way they come, for the run's log.
      source: of the batches, which says ahead of time that one will fail.
    """

    batches: Iterable[Any]
    prepare: Callable[[Any], Batch]
    description: str
    source: parallel.Prefetched

    def fails(self) -> bool:
        """Tells whether a batch that is still to come cannot be made."""
        return self.source.error is not None

    def check(self) -> None:
        """Raises the error of a batch that is still to come, if there is one."""
        if self.source.error is not None:
            raise self.source.error


def make_feed(
    samples: Sequence[Sample], *, config: ml_collections.ConfigDict, steps: range
) -> Feed:
    """Returns the training batches of some steps.

    Args:
      samples: the training split.
      config: the whole config; `data`, `augment`, `seed`, `train` are read.
      steps: which steps of the run.

    Raises:
      UsageError: if a batch is larger than the split, or the share of positive images
        asks for images of a kind that it lacks.
      DataError: if an image cannot be read, or its packed copy not written.
    """
    rank, world = parallel.process()
    supply = functools.partial(
        make_train_dataset, samples, config=config, steps=steps, rank=rank, world=world,
        workers=loading_workers(config),
    )  # fmt: skip
    if config.augment.where == "host":
        source = parallel.prefetch(supply())
        told = "images are augmented on the host"
        return Feed(source, lambda batch: batch, told, source)
    data = config.data
    prepare = Prepare(
        DeviceAugment(**strengths_of(config.augment)),
        make_region(data),
        data.task,
    )
    told = "images are augmented on the device"
    read = make_reader(samples, data)
    if isinstance(read, CachedSamples):
        need = read.count_bytes(prepare.parts)
        size = f"{need / 2**30:.2f} GiB"
        if parallel.has_room(need):
            resident = parallel.put_on_all(
                {name: read.read_all(name) for name in prepare.parts}
            )
            # They are there before a worker would have started.
            source = parallel.prefetch(supply(read=ReadKey(config.seed), workers=0))
            batches = ({**batch, "images": resident} for batch in source)
            return Feed(batches, prepare, f"{told}; all lie there ({size})", source)
        told += (
            f", each batch sent there (to stay, they need {2 * need / 1e6:.0f} MB free)"
        )
    else:
        told += ", each batch sent there (to stay, they need config.data.cache)"
    read = ReadUnaugmented(read, prepare.parts, config.seed)
    source = parallel.prefetch(supply(read=read))
    return Feed(source, prepare, told, source)


def loading_workers(config: ml_collections.ConfigDict) -> int:
    """Returns the number of processes that load training images, on this machine."""
    return count_workers(
        config.data.workers,
        cores=count_cores(),
        accelerated=parallel.is_accelerated(),
    )


def _unpack(samples: Mapping[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
    """Returns images and masks, uint8 [B, H, W], from their packed copies.

    Args:
      samples: "image" uint8 [n, H, W], masks as bits, uint8 [n, ceil(H * W / 8)].
      index: of the images of the batch, int32 [B].
    """
    images = samples["image"][index]
    pixels = math.prod(samples["image"].shape[1:])
    return {
        name: images
        if name == "image"
        else jnp.unpackbits(packed[index], axis=-1, count=pixels).reshape(images.shape)
        for name, packed in samples.items()
    }
