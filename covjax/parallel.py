"""How many devices and hosts there are: the one file that knows.

A batch of the whole run is cut twice: one share for each process (the pipeline reads
only its own) and one for each of its devices. Steps see the batch of one device and
meet the others through the axis `AXIS`.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import jax_utils
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from covjax.errors import UsageError
from covjax.runtime import watchdog
from covjax.runtime.signals import shield_workers
from covjax.types import AXIS

# An error two batches ahead is known to all processes before they need that batch.
_AHEAD = 3
_COMPUTING = "computing a step, or waiting for another process"


def process() -> tuple[int, int]:
    """Returns (rank of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def is_accelerated() -> bool:
    """Tells whether the devices are something else than the host's own cores."""
    return jax.default_backend() != "cpu"


def keep_to_the_host() -> None:
    """Leaves the accelerators to others; before anything asks for devices."""
    jax.config.update("jax_platforms", "cpu")


def local_devices() -> int:
    """Returns how many devices this process has."""
    return jax.local_device_count()


def is_main() -> bool:
    """Tells whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


def check_batch_size(batch_size: int) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
      UsageError: naming the field and the number of devices.
    """
    if batch_size % jax.device_count():
        raise UsageError(
            f"config.train.batch_size = {batch_size}: must be divisible by the"
            f" {jax.device_count()} devices"
        )


def shareable(batch_size: int) -> int:
    """Returns the next larger batch, if need be, that the devices share evenly."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def compile_train_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `step(state, batch, rng)`, one call for all devices.

    The state and the batch have a leading axis [D]; the key is the same everywhere.
    The old state's memory is given to the new one.
    """
    return jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=(0,))


def compile_eval_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `step(state, batch)`, both with a leading axis [D]."""
    return jax.pmap(step, axis_name=AXIS)


def jit_local(function: Callable[..., Any]) -> Any:
    """Jits `function(state, images)`; this process's devices share the images.

    They do not meet each other, and no other process takes part: each keeps its pace.
    The state is one that `put_on_local` returned; images are [B, ...], B divisible by
    the devices of this process, and so is what is returned.
    """
    split = NamedSharding(_local_mesh(), PartitionSpec(AXIS))
    whole = NamedSharding(_local_mesh(), PartitionSpec())
    return jax.jit(function, in_shardings=(whole, split), out_shardings=split)


def put_on_local(tree: Any) -> Any:
    """Copies a tree to every device of this process, for `jit_local`."""
    return jax.device_put(tree, NamedSharding(_local_mesh(), PartitionSpec()))


def _local_mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def compile_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles, without devices in mind, what runs once: quickly rather than well.

    XLA's CPU backend would take half a minute to optimise the random numbers of a
    U-Net's first parameters, which take milliseconds to compute.
    """
    fast = {"xla_backend_optimization_level": 0}
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=fast if on_cpu else None)


def replicate(tree: Any) -> Any:
    """Copies a tree to every device of this process, with a leading axis [D].

    Along the axis of the steps: laid out along another, the first state would differ
    from those that a step returns, and the second step be compiled again.
    """
    return jax_utils.replicate(tree, axis_name=AXIS)


def unreplicate(tree: Any) -> Any:
    """Returns the first device's copy, on the host, as numpy."""
    return jax.device_get(jax_utils.unreplicate(tree))


class Prefetched:
    """Batches on the devices, some ahead of the step that takes them.

    An error of the batches is raised once those before it were taken: the processes of
    a run have a few steps to stop together, with a checkpoint.

    Attributes:
      error: what will be raised; None as long as all is well.
    """

    def __init__(self, batches: Iterable[dict[str, np.ndarray]]):
        """Takes this process's shares, arrays [D * B, ...]."""
        self._batches = batches
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yields the same, [D, B, ...], on the devices."""
        shards = map(_shard, shield_workers(self._batches))
        queue = collections.deque[Any]()
        layout = replicate(np.uint8(0)).sharding
        while True:
            while self.error is None and len(queue) < _AHEAD:
                watchdog.beat("loading images")
                try:
                    queue.append(jax.device_put(next(shards), layout))
                except StopIteration:
                    break
                except Exception as error:
                    self.error = error
            if not queue:
                if self.error is not None:
                    raise self.error
                return
            watchdog.beat(_COMPUTING)
            yield queue.popleft()


def prefetch(batches: Iterable[dict[str, np.ndarray]]) -> Prefetched:
    """Moves batches onto the devices, ahead of the step that takes them.

    Args:
      batches: this process's shares, arrays [D * B, ...].
    """
    return Prefetched(batches)


def has_room(need: int) -> bool:
    """Tells whether every device says that it has at least twice as many bytes free.

    The other half is left to what the steps compute. All processes get the same answer.

    Args:
      need: bytes.
    """
    room = all(2 * need <= _free(device) for device in jax.local_devices())
    if jax.process_count() > 1:
        return bool(multihost_utils.process_allgather(np.array(room)).all())
    return room


def put_on_all(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Copies arrays to every device of this process, with a leading axis [D].

    As `replicate` does, but without D copies of them on the host.

    Args:
      arrays: names → arrays of any shape and dtype.

    Returns:
      The same, [D, ...].
    """
    layout = replicate(np.uint8(0)).sharding
    shares = jax.local_device_count()
    return {
        name: jax.make_array_from_callback(
            (shares, *array.shape), layout, lambda _, array=array: array[None]
        )
        for name, array in arrays.items()
    }


def gather(tree: Any) -> Any:
    """Collects what every device of every process computed.

    Args:
      tree: arrays [D, B, ...].

    Returns:
      numpy arrays [processes * D * B, ...], on every process.
    """
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.device_get(tree))
    if jax.process_count() > 1:
        flat = multihost_utils.process_allgather(flat, tiled=True)
    return flat


def from_main(values: np.ndarray) -> np.ndarray:
    """Returns the array of the main process, on every process."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.broadcast_one_to_all(values))
    return values


def wait_for_all() -> None:
    """Returns once every process has come here: what one wrote, all can read."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("covjax")


def compile_agreement() -> Callable[[int, bool], bool]:
    """Returns `agree_to_stop(step, wants)`, which a loop asks before every step.

    Every process gets the same answer for the same step: yes, if any of them wants to
    stop or the cluster has told any of them that it will be taken away. So all of them
    stop after the same step, and write one checkpoint. Among several processes the
    wish counts at the next call: the devices have exchanged it by then, beside the step
    in between, and nobody had to wait for it.
    """
    pending = None
    exchange = jax.pmap(lambda wants: jax.lax.pmax(wants, AXIS), axis_name=AXIS)

    def agree_to_stop(step: int, wants: bool) -> bool:
        nonlocal pending
        noticed = _is_preempted(step)
        if jax.process_count() == 1:
            return wants or noticed
        before = pending
        pending = exchange(np.full(jax.local_device_count(), wants))
        return noticed or (before is not None and bool(unreplicate(before)))

    return agree_to_stop


def _is_preempted(step: int) -> bool:
    """Tells whether a cluster's notice stops all processes at this step."""
    try:
        return multihost_utils.reached_preemption_sync_point(step)
    except RuntimeError:  # JAX was told not to listen for one
        return False


def _free(device: Any) -> int:
    """Returns the bytes that a device has free; 0 where it does not say (a CPU)."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)


def _shard(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cuts [D * B, ...] into [D, B, ...]."""
    devices = jax.local_device_count()
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}
