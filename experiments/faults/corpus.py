"""Hundreds of broken data sets: a small set of phantoms, and one fault in each."""

import dataclasses
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from covjax.data.covidqu import SPLITS, TREES
from covjax.data.phantom.dataset import write_phantoms
from experiments.faults import pictures
from experiments.faults.pictures import chunk, png, rows, saved

SIDE = 32
COUNTS = {"Train": 6, "Val": 4, "Test": 4}
FOLDERS = {"image": "images", "lung": "lung masks", "infection": "infection masks"}
LABEL = "COVID-19"  # of the image that a fault is put into

Record = dict[str, np.ndarray | None]  # parts; None: any pixels of the right shape
Samples = dict[str, Record]  # "Train/COVID-19/covid_1.png" → what was meant


@dataclasses.dataclass(frozen=True)
class Case:
    """A broken set.

    Attributes:
      name: of the fault.
      make: puts it into a copy of the whole set.
      must: "read": as it was meant; "refuse"; or "either" of them.
      named: what the refusal has to name.
      meant: images that are not as in the whole set; None: not there.
      near: levels by which an image may differ, where a decoder rounds.
      content: of the one file that is another; None where it is another fault.
    """

    name: str
    make: Callable[[Path], object]
    must: str
    named: str
    meant: Mapping[str, Record | None] = dataclasses.field(default_factory=dict)
    near: int = 0
    content: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Whole:
    """The set that nothing is wrong with.

    Attributes:
      root: where it lies.
      samples: what it holds, read with OpenCV.
    """

    root: Path
    samples: Samples


def make_whole(root: Path) -> Whole:
    """Writes the whole set, of the infection tree alone."""
    write_phantoms(root, samples=COUNTS, size=SIDE, seed=0)
    shutil.rmtree(root / TREES["lung"])
    samples: Samples = {}
    for split in SPLITS:
        for path in sorted(tree(root).glob(f"{split}/*/images/*.png")):
            label = path.parent.parent.name
            samples[f"{split}/{label}/{path.name}"] = {
                part: pixels(path.parent.parent / folder / path.name)
                // (1 if part == "image" else 255)
                for part, folder in FOLDERS.items()
            }
    return Whole(root, samples)


def pixels(path: Path) -> np.ndarray:
    """Returns a picture of the whole set, read with another decoder than covjax's."""
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read is not None
    return read


def tree(root: Path) -> Path:
    """Returns the folder of the splits."""
    return root / TREES["infection"] / TREES["infection"]


def make_cases(whole: Whole) -> list[Case]:
    """Returns all broken sets; the splits take turns."""
    cases: list[Case] = []
    for make in (
        _cuts, _strangers, _kinds, _mask_kinds, _pages, _sizes, _masks, _missing,
        _names, _links, _flips, _formats, _folders,
    ):  # fmt: skip
        for k, split in enumerate(SPLITS):
            some = list(make(_Spot(whole, split)))
            cases += some[k :: len(SPLITS)]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two faults of one name"
    return cases


def make_seeds(whole: Whole) -> list[bytes]:
    """Returns every picture that a case puts in the place of another, each once."""
    contents = {case.content for case in make_cases(whole) if case.content is not None}
    return sorted(contents, key=len)


class _Spot:
    """One image of one split, which faults are put into."""

    def __init__(self, whole: Whole, split: str):
        self.split = split
        self.key = next(k for k in whole.samples if k.startswith(f"{split}/{LABEL}/"))
        self.name = self.key.rpartition("/")[2]
        record = whole.samples[self.key]
        self.image, self.lung, self.infection = (
            np.asarray(record[part]) for part in FOLDERS
        )
        self.whole = whole

    def stored(self, part: str) -> np.ndarray:
        """Returns the pixels as the whole set stores them."""
        scale = 1 if part == "image" else 255
        return getattr(self, part) * np.uint8(scale)

    def path(self, root: Path, part: str) -> Path:
        return tree(root) / self.split / LABEL / FOLDERS[part] / self.name

    def file(
        self, name: str, part: str, content: bytes, must: str, *, near: int = 0,
        meant: np.ndarray | None = None, any_pixels: bool = False,
    ) -> Case:  # fmt: skip
        """Returns the case of other bytes in the place of a file."""

        def make(root: Path) -> None:
            self.path(root, part).unlink()
            self.path(root, part).write_bytes(content)

        changed: dict[str, Record | None] = {}
        if meant is not None or any_pixels:
            record = dict(self.whole.samples[self.key])
            changed[self.key] = record | {part: meant}
        # With pixels for another size, the masks are what does not fit.
        named = (
            self.name
            if any_pixels or must == "either"
            else f"{FOLDERS[part]}/{self.name}"
        )
        return Case(f"{name}-{part}", make, must, named, changed, near, content)

    def change(
        self, name: str, make: Callable[[Path], object], must: str, named: str,
        meant: Mapping[str, Record | None] | None = None,
    ) -> Case:  # fmt: skip
        return Case(name, make, must, named, meant or {})


def _cuts(spot: _Spot) -> Iterator[Case]:
    """Files cut short at every tenth of their length, the first of which holds none."""
    for part in FOLDERS:
        content = spot.path(spot.whole.root, part).read_bytes()
        for tenth in range(10):
            cut = content[: len(content) * tenth // 10]
            yield spot.file(f"cut-{tenth}0%", part, cut, "refuse")
        yield spot.file("cut-last-byte", part, content[:-1], "either")
    colour = np.stack([spot.image] * 3, axis=-1)
    for name, content in {
        "colour": saved(colour),
        "16-bit": saved(spot.image.astype(np.uint16) * 257),
        "palette": saved(Image.fromarray(spot.image).convert("P")),
        "TIFF": saved(spot.image, "TIFF"),
        "TIFF-deflate": saved(spot.image, "TIFF", compression="tiff_deflate"),
        "BMP": saved(spot.image, "BMP"),
        "WEBP": saved(colour, "WEBP", lossless=True),
    }.items():
        for tenth in range(10):
            cut = content[: len(content) * tenth // 10]
            # Some have all of their pixels before the last tenth.
            yield spot.file(f"cut-{name}-{tenth}0%", "image", cut, "either")
    content = saved(spot.image, "JPEG", quality=95)
    for tenth in range(10):
        cut = content[: len(content) * tenth // 10]
        yield spot.file(f"cut-JPEG-{tenth}0%", "image", cut, "refuse")


def _strangers(spot: _Spot) -> Iterator[Case]:
    """What is no picture under the name of one."""
    for name, content in {
        "text": b"This is no picture.\n" * 20,
        "zero-bytes": bytes(4096),
        "page-of-html": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer-of-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "program": b"\x7fELF\x02\x01\x01" + bytes(500),
        "archive": b"PK\x03\x04" + bytes(range(256)),
        "GIF": saved(spot.image, "GIF"),
        "EPS": saved(np.stack([spot.image] * 3, axis=-1), "EPS"),
        "PDF": b"%PDF-1.7\n" + bytes(100),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "DICOM": bytes(128) + b"DICM" + bytes(100),
        "PPM": b"P5\n32 32\n255\n" + spot.image.tobytes(),
        "array": b"\x93NUMPY\x01\x00" + spot.image.tobytes(),
        "pickle": b"\x80\x04\x95" + bytes(40),
    }.items():
        for part in FOLDERS:
            yield spot.file(f"{name}-for", part, content, "refuse")


def _luma(colour: np.ndarray) -> np.ndarray:
    return np.rint(colour.astype(float) @ [0.299, 0.587, 0.114]).astype(np.uint8)


def _kinds(spot: _Spot) -> Iterator[Case]:
    """Images of other kinds than grey of 8 bits."""
    grey, height, width = spot.image, *spot.image.shape
    picture = Image.fromarray(grey)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    clear = np.dstack([noise, np.zeros_like(grey)])
    ink = np.dstack([np.zeros((height, width, 3), np.uint8), 255 - grey])
    turned = Image.fromarray(255 - grey, "P")
    turned.putpalette(bytes(v for k in range(255, -1, -1) for v in (k, k, k)))
    wide = np.random.default_rng(1).integers(0, 65536, (height, width), np.uint16)
    narrow = np.rint(wide / 257).astype(np.uint8)
    deep = np.stack([wide] * 3, axis=-1)
    big = Image.frombytes("I;16B", (width, height), wide.astype(">u2").tobytes())

    def of(head: tuple[int, ...], samples: np.ndarray, **more: bytes) -> bytes:
        return png(width, height, zlib.compress(rows(samples)), head=head, **more)

    right = {
        "colour": (saved(noise), _luma(noise), 1),
        "alpha": (saved(clear), _luma(noise), 1),
        "grey-alpha": (saved(picture.convert("LA")), grey, 0),
        "palette": (saved(picture.convert("P")), grey, 1),
        "palette-turned": (saved(turned), grey, 0),
        "1-bit": (saved(grey > 127), 255 * (grey > 127).astype(np.uint8), 0),
        "16-bit": (saved(wide), narrow, 0),
        "16-bit-colour": (of((16, 2, 0, 0, 0), deep), narrow, 1),
        "16-bit-grey-alpha": (of((16, 4, 0, 0, 0), deep[..., :2]), narrow, 1),
        "gamma": (
            of((8, 0, 0, 0, 0), grey, before=chunk(b"gAMA", (9).to_bytes(4, "big"))),
            grey,
            0,
        ),
        "clear-level": (
            of((8, 0, 0, 0, 0), grey, before=chunk(b"tRNS", bytes([0, grey[9, 9]]))),
            grey,
            0,
        ),
        "TIFF": (saved(grey, "TIFF"), grey, 0),
        "TIFF-LZW": (saved(grey, "TIFF", compression="tiff_lzw"), grey, 0),
        "TIFF-packbits": (saved(grey, "TIFF", compression="packbits"), grey, 0),
        "TIFF-16": (saved(wide, "TIFF"), narrow, 0),
        "TIFF-16-big": (saved(big, "TIFF"), narrow, 0),
        "TIFF-32": (saved(wide.astype(np.int32), "TIFF"), narrow, 0),
        "TIFF-white-is-0": (saved(grey, "TIFF", tiffinfo={262: 0}), grey, 0),
        "TIFF-CMYK": (saved(Image.fromarray(ink, "CMYK"), "TIFF"), grey, 1),
        "TIFF-alpha": (saved(clear, "TIFF"), _luma(noise), 1),
        "BMP": (saved(grey, "BMP"), grey, 0),
        "BMP-colour": (saved(noise, "BMP"), _luma(noise), 1),
        "WEBP": (saved(np.stack([grey] * 3, -1), "WEBP", lossless=True), grey, 1),
    }  # fmt: skip
    for name, (content, meant, near) in right.items():
        yield spot.file(name, "image", content, "read", meant=meant, near=near)
    for name, content in {
        "JPEG": saved(grey, "JPEG", quality=95),
        "JPEG-colour": saved(np.stack([grey] * 3, -1), "JPEG", quality=95),
        "JPEG-progressive": saved(grey, "JPEG", quality=95, progressive=True),
        "JPEG-CMYK": saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=95),
        "TIFF-JPEG": saved(grey, "TIFF", compression="jpeg", quality=95),
    }.items():
        yield spot.file(name, "image", content, "read", meant=grey, near=24)
    for name, array in {
        "float": grey / np.float32(255),
        "float-NaN": np.full_like(grey, np.nan, np.float32),
        "float-infinite": np.full_like(grey, np.inf, np.float32),
        "negative": wide.astype(np.int32) - 40_000,
        "beyond-16-bits": wide.astype(np.int32) * 3,
    }.items():
        yield spot.file(f"TIFF-{name}", "image", saved(array, "TIFF"), "refuse")
    wide_white = saved(wide, "TIFF", tiffinfo={262: 0})
    yield spot.file("TIFF-16-white-is-0", "image", wide_white, "refuse")
    lab = Image.fromarray(noise).convert("RGB")
    lab = Image.frombytes("LAB", lab.size, lab.tobytes())
    yield spot.file("TIFF-LAB", "image", saved(lab, "TIFF"), "refuse")
    for turn in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind in ("PNG", "JPEG"):
            content = saved(grey, kind, exif=exif)
            yield spot.file(f"EXIF-{turn}-{kind}", "image", content, "refuse")


def _mask_kinds(spot: _Spot) -> Iterator[Case]:
    """Masks of other kinds than grey of 8 bits with 0 and 255."""
    for part in ("lung", "infection"):
        mask = getattr(spot, part)
        white = 255 * mask
        index = Image.fromarray(1 - mask, "P")
        index.putpalette([255, 255, 255, 0, 0, 0])
        colours = Image.fromarray(mask, "P")
        colours.putpalette([0, 0, 0, 128, 0, 0])  # as PASCAL VOC has it
        right = {
            "mask-of-0-and-1": saved(mask),
            "mask-of-0-and-38": saved(38 * mask),
            "mask-of-colour": saved(np.stack([white] * 3, -1)),
            "mask-with-alpha": saved(Image.fromarray(white).convert("RGBA")),
            "mask-of-1-bit": saved(mask > 0),
            "mask-of-a-palette": saved(index),
            "mask-of-colours": saved(colours),
            "mask-of-16-bits": saved(mask.astype(np.uint16) * 65535),
            "mask-of-16-bits-0-and-1": saved(mask.astype(np.uint16)),
            "mask-TIFF": saved(white, "TIFF"),
            "mask-BMP": saved(white, "BMP"),
        }
        for name, content in right.items():
            yield spot.file(name, part, content, "read", meant=mask)


def _pages(spot: _Spot) -> Iterator[Case]:
    for part in FOLDERS:
        page = Image.fromarray(spot.stored(part))
        more = [Image.fromarray(255 - spot.stored(part)) for _ in range(2)]
        for kind in ("PNG", "TIFF", "WEBP", "MPO"):
            content = saved(page, kind, save_all=True, append_images=more)
            yield spot.file(f"pages-{kind}", part, content, "refuse")
    page = Image.fromarray(spot.image)
    content = saved(page, "TIFF", save_all=True, append_images=[page] * 300)
    yield spot.file("pages-300", "image", content, "refuse")


def _sizes(spot: _Spot) -> Iterator[Case]:
    for width, height in ((1, 1), (2, 2), (3, 300), (300, 3)):
        content = saved(np.zeros((height, width), np.uint8))
        for part in FOLDERS:
            yield spot.file(f"of-{width}x{height}", part, content, "refuse")
    for name, content in pictures.bombs().items():
        yield spot.file(f"bomb-{name}", "image", content, "refuse")
    large = pictures.bombs()["grey"]
    for part in ("lung", "infection"):
        yield spot.file("bomb-grey", part, large, "refuse")
    for width, height in ((31, 32), (32, 33), (16, 16), (64, 64), (16, 64)):
        content = saved(np.zeros((height, width), np.uint8))
        for part in ("lung", "infection"):
            yield spot.file(f"mask-of-{width}x{height}", part, content, "refuse")

    def sparse(root: Path) -> None:
        with spot.path(root, "image").open("r+b") as file:
            file.truncate(3 * 2**30)

    name = f"images/{spot.name}"
    yield spot.change("file-of-3-GiB", sparse, "refuse", name)


def _masks(spot: _Spot) -> Iterator[Case]:
    for part in ("lung", "infection"):
        mask = getattr(spot, part)
        half = np.where(np.arange(SIDE) < SIDE // 2, 1, 2) * mask
        refused = {
            "inverted": 255 * (1 - mask),
            "inverted-0-and-1": 1 - mask,
            "all-white": np.full_like(mask, 255),
            "all-1": np.ones_like(mask),
            "labels-1-and-2": half.astype(np.uint8),
        }
        for name, stored in refused.items():
            yield spot.file(name, part, saved(stored), "refuse")
        for grey in (64, 127, 128, 200):
            stored = np.choose(half, (0, 255, grey)).astype(np.uint8)
            # An area of a few pixels is not told from an edge.
            must = "refuse" if part == "lung" else "either"
            meant = (stored > 127).astype(np.uint8)
            yield spot.file(
                f"third-level-{grey}", part, saved(stored), must, meant=meant
            )
        blank = np.zeros_like(mask)
        yield spot.file("blank", part, saved(blank), "read", meant=blank)
        levels = np.asarray(cv2.GaussianBlur(255 * mask, (3, 3), 0.4))
        meant = (levels > 127).astype(np.uint8)
        yield spot.file("soft-edges", part, saved(levels), "read", meant=meant)


def _missing(spot: _Spot) -> Iterator[Case]:
    folder, name = f"{spot.split}/{LABEL}", spot.name
    of_class = {k: None for k in spot.whole.samples if k.startswith(f"{folder}/")}
    for part in FOLDERS:

        def remove(root: Path, part: str = part) -> None:
            spot.path(root, part).unlink()

        gone = {spot.key: None}
        named = f"{FOLDERS[part]}/{name}"
        if part == "image":
            yield spot.change("image-missing", remove, "read", named, gone)
        else:
            yield spot.change(f"{part}-missing", remove, "refuse", named)

        def add(root: Path, part: str = part) -> None:
            path = spot.path(root, part)
            shutil.copy(path, path.with_name("more.png"))

        if part == "image":
            yield spot.change("image-surplus", add, "refuse", "masks/more.png")
        else:
            yield spot.change(f"{part}-surplus", add, "read", "")

        def folder_gone(root: Path, part: str = part) -> None:
            shutil.rmtree(spot.path(root, part).parent)

        if part == "image":
            yield spot.change("images-missing", folder_gone, "read", "", of_class)
        else:
            yield spot.change(f"{part}-all-missing", folder_gone, "refuse", "masks/")

    def class_gone(root: Path) -> None:
        shutil.rmtree(tree(root) / folder)

    def class_empty(root: Path) -> None:
        for part in FOLDERS:
            for path in spot.path(root, part).parent.iterdir():
                path.unlink()

    yield spot.change("class-missing", class_gone, "read", "", of_class)
    yield spot.change("class-empty", class_empty, "read", "", of_class)


def _folders(spot: _Spot) -> Iterator[Case]:
    of_split = lambda root: tree(root) / spot.split  # noqa: E731

    def empty(path: Path) -> None:
        shutil.rmtree(path)
        path.mkdir()

    def replace(path: Path) -> None:
        shutil.rmtree(path)
        path.write_text("")

    faults = {
        "split-missing": (lambda r: shutil.rmtree(of_split(r)), spot.split),
        "split-empty": (lambda r: empty(of_split(r)), spot.split),
        "split-is-a-file": (lambda r: replace(of_split(r)), spot.split),
        "class-is-a-file": (lambda r: replace(of_split(r) / LABEL), LABEL),
        "tree-missing": (lambda r: shutil.rmtree(r / TREES["infection"]), "SET"),
        "tree-empty": (lambda r: empty(r / TREES["infection"]), "SET"),
        "root-missing": (shutil.rmtree, "SET"),
        "root-empty": (empty, "SET"),
        "root-is-a-file": (replace, "SET"),
    }
    for name, (make, named) in faults.items():
        yield spot.change(name, make, "refuse", named)
    for part, folder in FOLDERS.items():

        def is_file(root: Path, part: str = part) -> None:
            replace(spot.path(root, part).parent)

        yield spot.change(f"folder-is-a-file-{part}", is_file, "refuse", folder)

        def forbidden(root: Path, part: str = part) -> None:
            path = spot.path(root, part)
            if os.geteuid():
                path.chmod(0)
            else:  # who may read everything
                path.unlink()
                path.mkdir()

        named = f"{folder}/{spot.name}"
        yield spot.change(f"forbidden-{part}", forbidden, "refuse", named)

    def versions(root: Path) -> None:
        (root / "versions" / "3").mkdir(parents=True)
        (root / TREES["infection"]).rename(root / "versions" / "3" / TREES["infection"])
        (root / "versions" / "²").mkdir()

    yield spot.change("versions", versions, "read", "")


def _rename(spot: _Spot, name: bytes) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for part in FOLDERS:
            path = os.fsencode(spot.path(root, part))
            os.rename(path, os.path.join(os.path.dirname(path), name))

    return make


def _names(spot: _Spot) -> Iterator[Case]:
    record = spot.whole.samples[spot.key]
    for name in (
        "with spaces.png", "肺 (1).png", "лёгкие.png", "رئة.png", "फेफड़े.png",
        "ä.png", "a\u0308.png", "-dash.png", "a,b;c.png", "'\"quoted\".png", "50%.png",
        "UPPER.PNG", "two.dots.png", "$(id).png", "<b>.png", "*.png",
        "n" * 250 + ".png", "🫁.png", "a\u00a0b.png", "{braces}.png", "=1+1.png",
        "back\\slash.png",
    ):  # fmt: skip
        meant = {spot.key: None, f"{spot.split}/{LABEL}/{name}": record}
        make = _rename(spot, os.fsencode(name))
        yield spot.change(f"name-{name[:20]}", make, "read", "", meant)
    for name in (
        b"new\nline.png", b"tab\t.png", b"\x1b[31m.png", b"latin-\xe4.png", b"\xff.png",
        b"nul-\xc0\x80.png", "line\u2028end.png".encode(), b"return\r.png",
    ):  # fmt: skip
        make = _rename(spot, name)
        shown = repr(name)[2:-1]
        named = "images/" if name[:1] in b"\xff\x1b" else f"images/{shown[:3]}"
        yield spot.change(f"name-{shown}", make, "refuse", named)
    for name in (
        ".hidden.png",
        "no-ending",
        "image.dcm",
        "image.png.part",
        "._image.png",
    ):
        make = _rename(spot, name.encode())
        yield spot.change(f"ignored-{name}", make, "read", "", {spot.key: None})
    stem = spot.name.removesuffix(".png")
    for part in FOLDERS:
        for other in (f"{stem}.jpg", f"{stem}.PNG"):

            def twin(root: Path, part: str = part, other: str = other) -> None:
                path = spot.path(root, part)
                shutil.copy(path, path.with_name(other))

            yield spot.change(f"twin-{part}-{other[-3:]}", twin, "refuse", stem)

    def cases(root: Path) -> None:
        for part in FOLDERS:
            path = spot.path(root, part)
            shutil.copy(path, path.with_name(spot.name.upper()))

    upper = {f"{spot.split}/{LABEL}/{spot.name.upper()}": record}
    yield spot.change("twin-in-capitals", cases, "read", "", upper)

    def masks_in_capitals(root: Path) -> None:
        path = spot.path(root, "lung")
        path.rename(path.with_name(spot.name.upper()))

    named = f"lung masks/{spot.name}"
    yield spot.change("mask-in-capitals", masks_in_capitals, "refuse", named)


def _links(spot: _Spot) -> Iterator[Case]:
    for part, folder in FOLDERS.items():
        named = f"{folder}/{spot.name}"

        def link(to: str, part: str = part) -> Callable[[Path], None]:
            def make(root: Path) -> None:
                spot.path(root, part).unlink()
                spot.path(root, part).symlink_to(to)

            return make

        for name, to in {
            "circle": spot.name,
            "nowhere": "nowhere.png",
            "folder": ".",
            "zero": "/dev/zero",
            "null": "/dev/null",
            "random": "/dev/urandom",
            "messages": "/proc/kmsg",
            "memory": "/proc/self/mem",
            "terminal": "/dev/tty",
        }.items():
            yield spot.change(f"link-{name}-{part}", link(to), "refuse", named)

        def pipe(root: Path, part: str = part) -> None:
            spot.path(root, part).unlink()
            os.mkfifo(spot.path(root, part))

        yield spot.change(f"pipe-{part}", pipe, "refuse", named)

        def elsewhere(root: Path, part: str = part) -> None:
            path = spot.path(root, part)
            shutil.move(path, root / "elsewhere")
            path.symlink_to(root / "elsewhere")

        yield spot.change(f"link-right-{part}", elsewhere, "read", "")
        for name, to in (("circle", folder), ("nowhere", "nowhere")):

            def whole_folder(root: Path, part: str = part, to: str = to) -> None:
                shutil.rmtree(spot.path(root, part).parent)
                spot.path(root, part).parent.symlink_to(to)

            yield spot.change(f"link-{name}-of-{part}s", whole_folder, "refuse", folder)

    def bound(root: Path) -> None:
        path = spot.path(root, "image")
        path.unlink()
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        finally:
            os.chdir(here)

    yield spot.change("socket", bound, "refuse", f"images/{spot.name}")
    for name, to in (("circle", LABEL), ("nowhere", "nowhere")):

        def of_class(root: Path, to: str = to) -> None:
            shutil.rmtree(tree(root) / spot.split / LABEL)
            (tree(root) / spot.split / LABEL).symlink_to(to)

        yield spot.change(f"link-{name}-class", of_class, "refuse", LABEL)

        def of_split(root: Path, to: str = to) -> None:
            shutil.rmtree(tree(root) / spot.split)
            target = spot.split if to == LABEL else to
            (tree(root) / spot.split).symlink_to(target)

        yield spot.change(f"link-{name}-split", of_split, "refuse", spot.split)

        def of_root(root: Path, to: str = to) -> None:
            shutil.rmtree(root)
            root.symlink_to(root.name if to == LABEL else to)

        yield spot.change(f"link-{name}-root", of_root, "refuse", "SET")


def _flips(spot: _Spot) -> Iterator[Case]:
    """Bits turned at random. A PNG has check values; the others have none."""
    colour = np.stack([spot.image] * 3, -1)
    for part in FOLDERS:
        content = spot.path(spot.whole.root, part).read_bytes()
        for seed in range(30):
            yield spot.file(f"flip-{seed}", part, _flip(content, seed), "either")
    for seed in range(30):
        content = _flip(saved(colour), seed)
        yield spot.file(f"flip-colour-{seed}", "image", content, "either", near=1)
    for kind in ("JPEG", "TIFF", "BMP", "WEBP"):
        for seed in range(9):
            content = _flip(saved(spot.image, kind), seed)
            yield spot.file(
                f"flip-{kind}-{seed}", "image", content, "either", any_pixels=True
            )


def _flip(content: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    broken = bytearray(content)
    for at in rng.integers(0, len(content), 1 + seed % 5):
        broken[at] ^= 1 << rng.integers(8)
    return bytes(broken)


def _formats(spot: _Spot) -> Iterator[Case]:
    """Files that break their format's rules, or use its freedom."""
    for name, content in pictures.damaged_pngs(spot.image).items():
        yield spot.file(f"PNG-{name}", "image", content, "refuse")
        if "length" in name or "check" in name:
            mask = pictures.damaged_pngs(255 * spot.lung)[name]
            yield spot.file(f"PNG-{name}", "lung", mask, "refuse")
    for name, content in pictures.damaged_tiffs(spot.image).items():
        yield spot.file(f"TIFF-{name}", "image", content, "either", any_pixels=True)
    jpeg = saved(spot.image, "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    many = jpeg[:-2] + 2000 * scan + jpeg[-2:]
    yield spot.file("JPEG-2000-scans", "image", many, "refuse")
    data = zlib.compress(rows(spot.image), 0)
    whole = png(SIDE, SIDE, data)
    at = whole.index(b"IDAT") - 4
    pieces = b"".join(chunk(b"IDAT", data[k : k + 7]) for k in range(0, len(data), 7))
    in_pieces = whole[:at] + pieces + chunk(b"IEND", b"")
    yield spot.file("PNG-in-pieces", "image", in_pieces, "read")
    yield spot.file("PNG-and-more", "image", whole + b"more" * 99, "read")
    unknown = png(SIDE, SIDE, data, before=chunk(b"abCd", bytes(99)))
    yield spot.file("PNG-unknown-chunk", "image", unknown, "read")
    tail = png(SIDE, SIDE, data + pictures.zeros(2**30))
    yield spot.file("PNG-tail-of-a-gigabyte", "image", tail, "either")
    endless = zlib.compress(rows(spot.image))[:-6] + pictures.zeros(2**30)[2:]
    endless = png(SIDE, SIDE, endless)
    yield spot.file("PNG-goes-on", "image", endless, "either", any_pixels=True)
    # Harmless: all pixels are there, and right.
    size = SIDE.to_bytes(4, "big") * 2
    head = chunk(b"IHDR", size + b"\x08\0\0\0\0")
    twice = png(SIDE, SIDE, data, before=head)
    yield spot.file("PNG-header-twice", "image", twice, "either")
    odd = png(SIDE, SIDE, data, head=(8, 0, 1, 0, 0))
    yield spot.file("PNG-compression-1", "image", odd, "either")
    odd = png(SIDE, SIDE, data[:-4] + bytes(4))
    yield spot.file("PNG-checksum", "image", odd, "either")
    lower = png(SIDE, SIDE - 1, data)
    yield spot.file("PNG-header-lower", "image", lower, "either")
