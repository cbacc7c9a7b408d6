"""Kills `covjax.predict` at random moments; see killed.py.

  python -m experiments.faults.kill_predict [--kills=8] [--seed=0]

The inputs are PNG and DICOM images, and one file that is none: its line in the table
has to be the same, too. Digests of outputs in the table are compared with the outputs;
dates are left out of the DICOM SEG.
"""

import csv
import functools
import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from covjax.data.phantom.drawing import make_phantom
from covjax.predict.table import TABLE
from experiments.faults.killed import OUT, Command, main
from experiments.faults.small_weights import write_weights

PICTURES, DICOMS = 12, 6
_DX = UID("1.2.840.10008.5.1.4.1.1.1.1")
_DATES = [
    f"{of}{what}"
    for of in ("Content", "InstanceCreation", "Series")
    for what in ("Date", "Time")
]


@functools.cache
def _inputs() -> dict[str, bytes]:
    rng, files = np.random.default_rng(0), {"broken.png": b"no image"}
    for k in range(PICTURES + DICOMS):
        image = make_phantom("COVID-19", rng, 400)["image"]
        file = io.BytesIO()
        if k < PICTURES:
            Image.fromarray(image).save(file, "PNG")
        else:
            _make_dicom(image, k).save_as(file, enforce_file_format=True)
        files[f"{k}.{'png' if k < PICTURES else 'dcm'}"] = file.getvalue()
    return files


def _make_dicom(image: np.ndarray, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, _DX
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number}")
    found = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    found.SOPClassUID, found.SOPInstanceUID = _DX, f"1.2.3.{number}"
    found.StudyInstanceUID, found.SeriesInstanceUID = "1.2.3", f"1.2.4.{number}"
    found.Modality, found.PhotometricInterpretation = "DX", "MONOCHROME2"
    found.SamplesPerPixel, found.PixelRepresentation = 1, 0
    found.Rows, found.Columns = image.shape
    found.BitsAllocated = found.BitsStored = 8
    found.HighBit, found.PatientOrientation = 7, ["L", "F"]
    found.PixelData = image.tobytes()
    found["PixelData"].VR = "OB"
    return found


def prepare(cwd: Path) -> None:
    """Writes weights and images."""
    write_weights(cwd)
    (cwd / "images").mkdir()
    for name, content in _inputs().items():
        (cwd / "images" / name).write_bytes(content)


def read(path: Path) -> bytes:
    """Returns an output without dates; of the table, whether its digests are right."""
    if path.suffix == ".dcm":
        seg, file = pydicom.dcmread(path), io.BytesIO()
        for name in _DATES:
            seg.pop(name, None)
        for equipment in seg.get("ContributingEquipmentSequence", []):
            equipment.pop("ContributionDateTime", None)
        seg.save_as(file)
        return file.getvalue()
    if path.name != TABLE:
        return path.read_bytes()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if not row["error"]:
            wanted = _digest(path.parent, row["name"])
            row["outputs_sha256"] = str(row["outputs_sha256"] == wanted)
    return repr(rows).encode()


def _digest(out: Path, name: str) -> str:
    paths = [
        out / f"{kind}/{name}.{ending}"
        for kind, ending in (
            ("lungs", "png"), ("infection", "png"), ("overlays", "jpg"), ("seg", "dcm"),
        )
    ]  # fmt: skip
    content = b"".join(path.read_bytes() for path in paths if path.exists())
    return hashlib.sha256(content).hexdigest()


WORDS = (
    "covjax.predict", "images", f"--out={OUT}",
    "--lung=lung.safetensors", "--infection=infection.safetensors",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main("kill_predict", [Command("predict", WORDS, prepare, read, 2)], 8))
