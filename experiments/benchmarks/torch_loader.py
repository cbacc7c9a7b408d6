"""The peer of pipeline.py: the same images through PyTorch's DataLoader.

Its own process, which may run in an environment of its own: it needs torch, numpy,
OpenCV and Albumentations, and nothing of covjax. It is spoken to in JSON, a line each
way: first it is told the images and settings and says what it is; then each line asks
for one turn, and until that comes it sleeps. No line is left: it ends.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from answers import answer

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network

try:
    import albumentations as A  # noqa: N812
    import cv2
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset
except (ImportError, OSError) as error:  # a library of torch's own may be missing
    answer(missing=str(error))
    sys.exit()

# One picture a core: what OpenCV and torch would share out is smaller than the cost of
# sharing, and workers stand side by side already.
cv2.setNumThreads(0)
torch.set_num_threads(1)


def make_transform(augment: dict[str, float]) -> A.Compose:
    """Returns the study's three transforms, as the config has them."""
    shift, scale, rotate = (augment[k] for k in ("shift", "scale", "rotate"))
    return A.Compose(
        [
            A.HorizontalFlip(p=augment["flip_prob"]),
            A.Affine(
                translate_percent=(-shift, shift),
                scale=(1 - scale, 1 + scale),
                keep_ratio=True,
                rotate=(-rotate, rotate),
                fill=0,
                fill_mask=0,
                p=augment["affine_prob"],
            ),
            A.RandomBrightnessContrast(
                brightness_limit=augment["brightness"],
                contrast_limit=augment["contrast"],
                p=augment["brightness_contrast_prob"],
            ),
        ],
        additional_targets={"infection": "mask"},
    )


class Samples(Dataset):
    """Images and their target masks, decoded, augmented and cut to the lungs.

    Attributes:
      samples: paths: "image", "lung" and, where the target is infection, "infection".
      cut: whether all but the lungs is blackened.
      transform: of Albumentations.
    """

    def __init__(
        self,
        samples: list[dict[str, str]],
        cut: bool,
        transform: Callable[..., dict[str, np.ndarray]],
    ):
        """Sets the attributes."""
        self.samples, self.cut, self.transform = samples, cut, transform

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.samples)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Returns an image, uint8 [H, W], and its masks in {0, 1}."""
        record = {
            name: cv2.imread(path, cv2.IMREAD_GRAYSCALE)
            for name, path in self.samples[index].items()
        }
        image = record.pop("image")
        return {"image": image} | {k: (m > 0).view(np.uint8) for k, m in record.items()}

    def augment(self, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the record, augmented."""
        named = {"mask" if k == "lung" else k: v for k, v in record.items()}
        return self.transform(**named)

    def finish(self, record: dict[str, np.ndarray], index: int) -> dict[str, Any]:
        """Cuts an image and picks its target: tensors [1, H, W], uint8."""
        image, lung = record["image"], record["mask"]
        target = record.get("infection", lung)
        image = image * lung if self.cut else image
        return {
            "image": torch.from_numpy(image)[None],
            "mask": torch.from_numpy(np.ascontiguousarray(target))[None],
            "index": index,
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one image's share of a batch."""
        return self.finish(self.augment(self.read(index)), index)


def take_turn(
    samples: Samples, batch_size: int, device: str, workers: int, batches: int
) -> dict[str, float]:
    """Starts a loader, waits for its first batch and times those that follow.

    Returns:
      "first_s": seconds from nothing to the first batch on the device; "rate": images
      a second from there on.
    """
    start = time.perf_counter()
    loader = DataLoader(
        samples,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
    )
    batches_there = iter(loader)

    def take() -> None:
        batch = next(batches_there)
        for name in ("image", "mask", "index"):
            batch[name].to(device, non_blocking=True)
        if device == "cuda":
            torch.cuda.synchronize()

    take()
    first = time.perf_counter()
    for _ in range(batches):
        take()
    seconds = time.perf_counter() - first
    return {"first_s": first - start, "rate": batches * batch_size / seconds}


def time_stages(
    samples: Samples, batch_size: int, device: str, n: int
) -> dict[str, float]:
    """Returns the seconds that each stage takes for one image, one after another."""
    clock, spent = time.perf_counter, dict.fromkeys(
        ("decode", "augment", "cut and batch", "transfer"), 0.0
    )  # fmt: skip
    for first in range(0, n, batch_size):
        indices = range(first, first + batch_size)
        times = [clock()]
        records = [samples.read(i) for i in indices]
        times.append(clock())
        records = [samples.augment(record) for record in records]
        times.append(clock())
        batch = torch.utils.data.default_collate(
            [samples.finish(*pair) for pair in zip(records, indices, strict=True)]
        )
        times.append(clock())
        for value in batch.values():
            value.to(device)
        times.append(clock())
        for name, a, b in zip(spent, times[:-1], times[1:], strict=True):
            spent[name] += (b - a) / (n // batch_size * batch_size)
    return spent


def main() -> None:
    """Answers line by line."""
    told = json.loads(sys.stdin.readline())
    samples = Samples(told["samples"], told["cut"], make_transform(told["augment"]))
    device = "cuda" if told["gpu"] and torch.cuda.is_available() else "cpu"
    answer(
        torch=torch.__version__,
        python=sys.version.split()[0],
        opencv=cv2.__version__,
        albumentations=A.__version__,
        device=device,
    )
    for line in sys.stdin:
        asked = json.loads(line)
        if "stages" in asked:
            answer(**time_stages(samples, told["batch"], device, asked["stages"]))
        else:
            answer(**take_turn(samples, told["batch"], device, **asked))


if __name__ == "__main__":
    main()
