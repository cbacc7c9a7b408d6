"""Finds the same image twice, also where its pixels are not the same.

Chest X-rays all look alike, so what they share (dark lungs, a bright middle) must not
count. Three questions are asked of every pair, each dearer than the one before:

1. A difference hash of 128 bits: is a cell of an 8x8 grid darker than the next one, to
   the right and below? Pairs that differ in more than `HASH_BITS` are not alike.
2. The texture, that is the image less its own blur and divided by its local contrast,
   is correlated at 16 and at 32 pixels a side.
3. The same at 64 pixels, over shifts of up to 3 of them (5 % of the side). What remains
   at `MATCH` or more is one exposure: copied, compressed, windowed, shifted, cropped a
   little.

The numbers come from the 5,826 images of COVID-QU-Ex's infection tree, where the last
question was asked of all 17 million pairs and the best ones across splits were looked
at. At 0.80 and above every pair showed one image, down to the writing on it; from 0.70
to 0.76 twins and strangers mix; below lie strangers, in numbers that grow fivefold
with every 0.05. The first two questions cost about a sixth of the 123 pairs above 0.80
(those shifted most) and spare 99.9 % of the work. An image that was turned, mirrored,
inverted or cropped by more than a few percent is not found.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 64  # of a thumbnail, pixels
HASH_BITS = 17  # of 128 that may differ
MATCH = 0.80
# Side, blur radius, largest shift (all in pixels of that side), least correlation.
_STEPS = ((16, 2, 0, 0.77), (32, 2, 1, 0.68), (SIDE, 4, 3, MATCH))
_ROWS = 256  # hashes compared with all others at once: 2 MiB for each 1,000 images
_SAMPLES = 64  # textures made at once: 1 MiB, which a core's cache holds
_PAIRS = 2048  # textures correlated at once: 2 x 32 MiB at 64 pixels


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrinks an image to what `find_near_duplicates` compares.

    Args:
      image: grey image, uint8 [H, W].

    Returns:
      uint8 [SIDE, SIDE], box means; stretched if the image is not square.
    """
    return _shrink(image, SIDE, SIDE)


def difference_hash(thumbnail: np.ndarray) -> np.ndarray:
    """Hashes the signs of the brightness steps between cells of an 8x8 grid.

    Args:
      thumbnail: uint8 [SIDE, SIDE].

    Returns:
      uint64 [2]: 64 bits of steps to the right, 64 of steps down. They do not change
      with brightness or contrast, unless pixels saturate.

    Reference:
      Krawetz, Kind of Like That (dHash), hackerfactor.com, 2013.
    """
    right = np.diff(_shrink(thumbnail, 9, 8).astype(np.int16), axis=1) > 0
    down = np.diff(_shrink(thumbnail, 8, 9).astype(np.int16), axis=0) > 0
    bits = np.packbits(np.stack([right, down]).reshape(2, 64), axis=1)
    return np.ascontiguousarray(bits).view(np.uint64)[:, 0]


def find_near_duplicates(thumbnails: np.ndarray) -> list[tuple[int, int, float]]:
    """Finds the pairs of images that are one exposure, as the module's text tells.

    Memory: about 11 KiB an image, and 0.3 GiB for what is compared at once.

    Args:
      thumbnails: uint8 [N, SIDE, SIDE], of different images.

    Returns:
      (i, j, correlation) with i < j, ordered by i, then j.
    """
    textures = [_textures(thumbnails, side, blur) for side, blur, _, _ in _STEPS]
    found = []
    for pairs in _alike_in_hash(thumbnails):
        score = np.empty(len(pairs), np.float32)
        for texture, (_, _, shift, least) in zip(textures, _STEPS, strict=True):
            score = _correlations(texture, pairs, shift)
            pairs, score = pairs[score >= least], score[score >= least]
        found += [
            (int(i), int(j), float(s)) for (i, j), s in zip(pairs, score, strict=True)
        ]
    return sorted(found)


def _alike_in_hash(thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """Yields int64 [P, 2], i < j: a block of rows of all pairs at a time."""
    hashes = np.array([difference_hash(t) for t in thumbnails]).reshape(-1, 2)
    for start in range(0, len(hashes), _ROWS):
        rows, others = hashes[start : start + _ROWS], hashes[start:]
        differ = np.zeros((len(rows), len(others)), np.uint8)
        for word in range(2):
            differ += np.bitwise_count(rows[:, None, word] ^ others[None, :, word])
        pairs = np.argwhere(differ <= HASH_BITS)
        yield pairs[pairs[:, 0] < pairs[:, 1]] + start


def _textures(thumbnails: np.ndarray, side: int, blur: int) -> np.ndarray:
    """Returns images less their blur, over their local contrast: float16 [N, s, s]."""
    textures = np.empty((len(thumbnails), side, side), np.float16)
    for start in range(0, len(thumbnails), _SAMPLES):
        samples = thumbnails[start : start + _SAMPLES]
        block = np.stack([_shrink(sample, side, side) for sample in samples])
        detail = block.astype(np.float32)
        detail -= _box_mean(detail, blur)
        # Added variance of 2 grey levels squared: noise of rounding and of JPEG in an
        # even background must not grow into texture.
        contrast = np.sqrt(_box_mean(detail**2, blur) + 4)
        textures[start : start + _SAMPLES] = detail / contrast
    return textures


def _box_mean(images: np.ndarray, radius: int) -> np.ndarray:
    """Means over squares of 2 radius + 1 pixels, [N, H, W], edges repeated."""
    width = 2 * radius + 1
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        padded = np.moveaxis(np.pad(images, pad, mode="edge"), axis, 0)
        total = padded[: len(padded) - width + 1].copy()
        for start in range(1, width):
            total += padded[start : start + len(total)]
        images = np.moveaxis(total / width, 0, axis)
    return images


def _correlations(textures: np.ndarray, pairs: np.ndarray, shift: int) -> np.ndarray:
    """Returns the best correlation of every pair over all shifts, float32 [P].

    The middle of the first image is laid over all of the second. An image without any
    texture resembles nothing: 0.
    """
    side = textures.shape[1] - 2 * shift
    best = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIRS):
        some = slice(start, start + _PAIRS)
        first, second = (textures[pairs[some, k]].astype(np.float32) for k in (0, 1))
        middle = _unit(first[:, shift : shift + side, shift : shift + side])
        for y in range(2 * shift + 1):
            for x in range(2 * shift + 1):
                part = _unit(second[:, y : y + side, x : x + side])
                score = np.einsum("pi,pi->p", middle, part)
                best[some] = np.maximum(best[some], score)
    return best


def _unit(images: np.ndarray) -> np.ndarray:
    """Flattens images to vectors of mean 0 and length 1, [N, H W]; even ones to 0."""
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1e-3, flat / np.maximum(length, 1e-3), 0)


def _shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.shape == (height, width):
        return image
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))
