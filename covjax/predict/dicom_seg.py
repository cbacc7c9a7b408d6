"""Masks as a DICOM segmentation, which a viewer shows over the image they belong to.

Codes are SNOMED CT's, from the context groups that the standard names for segments
(PS3.16, CID 7150, 7159): the lungs are an anatomical structure, Lung; the infection is
a morphologically abnormal structure, Inflammation, of the lung. A mask shows where, and
not of what: which disease it was trained on says the label alone.
"""

import hashlib
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covjax.data.image_io import shown
from covjax.errors import DataError, UsageError
from covjax.predict.dicom.quiet import without_warnings
from covjax.predict.dicom.reader import read_header
from covjax.predict.postprocess import Origin
from covjax.predict.radiograph import CHANGED, digest_file
from covjax.runtime.files import write_whole

if TYPE_CHECKING:
    from pydicom import Dataset

# Content label and description of up to 64 characters, by whether of phantom weights.
LABELS = {
    False: ("RESEARCH", "Research use only, not for diagnosis"),
    True: ("PHANTOM", "PHANTOM weights, of no use to a patient"),
}
_SERIES = 9000  # number of the series, well above those of a device
# A source has to have these; the others, which may be empty, may be missing as well.
_NEEDED = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
_EMPTY = [
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "PatientOrientation",
    "AccessionNumber",
] + ["StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"]
# What highdicom would make a geometry in space of. A projection has none: pixels of the
# segmentation are the source's (PS3.3, A.51.5.1), and pixel measures have no place
# beside that (table A.51-2), nor does highdicom read them without a thickness.
_GEOMETRY = ["FrameOfReferenceUID", "PixelSpacing"]
# Segment's label → category and type of what it shows, and whether in the lung.
_LUNG = ("39607008", "Lung")
_SEGMENTS = {
    "Lungs": (("91723000", "Anatomical Structure"), _LUNG),
    "COVID-19 infection": (
        ("49755003", "Morphologically Abnormal Structure"),
        ("409774005", "Inflammation"),
    ),
}

# What highdicom remarks on quotes the patient's name.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)


def write_seg(
    out: Path,
    source: Path,
    lungs: np.ndarray,
    infection: np.ndarray | None,
    origin: Origin,
    *,
    name: str,
    version: str,
    sha256: str = "",
) -> None:
    """Writes masks as a DICOM segmentation (BINARY) that refers to an image.

    A frame for each segment, "Lungs" and "COVID-19 infection", a blank one too: that
    nothing was found is a result. Patient and study are the source's. The UIDs follow
    from the source's, from the networks, name and version, and the instance's from the
    masks besides: the same masks again are the same instance.

    Args:
      out: the file; one that is there is replaced.
      source: the image, a DICOM file.
      lungs: uint8 [H, W] in {0, 1}, of the rows and columns of the source.
      infection: likewise; None: not looked for, so without a segment.
      origin: the networks, which each segment names as its algorithm's parameters.
      name: of the algorithm, up to 64 characters.
      version: of it, likewise.
      sha256: of the source when its pixels were read; "": not known.

    Raises:
      DataError: in a line that names the source, if it cannot be read, has changed
        since its pixels were read or lacks what a segmentation refers to.
      UsageError: if highdicom or pydicom is not installed.
      OSError: if `out` cannot be written.
      ValueError: if a mask is not of the source's size, or not of 0 and 1.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{shown(out)}: a DICOM SEG needs {error.name}: pip install 'covjax[dicom]'"
        ) from None
    radiograph = read_header(source)
    if sha256 and digest_file(source) != sha256:
        raise DataError(f"{shown(source)}: {CHANGED}")
    lacking = [key for key in (*_NEEDED, "Rows", "Columns") if not radiograph.get(key)]
    if lacking:
        raise DataError(
            f"{shown(source)}: without {lacking[0]}, which a DICOM SEG refers to; store"
            " the masks as PNG"
        )
    masks = [lungs] if infection is None else [lungs, infection]
    for mask in masks:
        if (
            mask.shape != (radiograph.Rows, radiograph.Columns)
            or not np.isin(mask, (0, 1)).all()
        ):
            raise ValueError(
                f"masks [{radiograph.Rows}, {radiograph.Columns}] of 0 and 1, not"
                f" {mask.shape}"
            )
    stacked = np.stack(masks, axis=-1)
    try:
        with without_warnings():
            content = _encode(_make_seg(radiograph, stacked, origin, name, version))
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # whose text may quote the patient's data
        raise DataError(
            f"{shown(source)}: none can refer to what it holds ({type(error).__name__})"
        ) from None
    write_whole(out, content)


def _make_seg(
    radiograph: "Dataset", masks: np.ndarray, origin: Origin, name: str, version: str
) -> Any:
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    for key in _EMPTY:
        if key not in radiograph:
            setattr(radiograph, key, "")
    for key in _GEOMETRY:
        radiograph.pop(key, None)
    label, description = LABELS[origin.phantom]
    sources = [
        str(radiograph.SOPInstanceUID),
        name,
        version,
        *origin.fingerprints.values(),
    ]
    described = [
        _describe(number, segment, origin, name, version)
        for number, segment in enumerate(list(_SEGMENTS)[: masks.shape[-1]], start=1)
    ]
    seg = hd.seg.Segmentation(
        source_images=[radiograph],
        pixel_array=masks.astype(np.uint8)[None],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(entropy_srcs=[*sources, "series"]),
        series_number=_SERIES,
        sop_instance_uid=generate_uid(
            entropy_srcs=[*sources, hashlib.sha256(masks.tobytes()).hexdigest()]
        ),
        instance_number=1,
        manufacturer="covjax",
        manufacturer_model_name=name,
        software_versions=version,
        device_serial_number="0",
        content_label=label,
        content_description=description,
        series_description=description,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        # Whatever the source's: highdicom knows no default that a second one extends,
        # as names of three scripts have it (PS3.5, H.3).
        specific_character_set="ISO_IR 192",
        omit_empty_frames=False,
    )
    organization = generate_uid(entropy_srcs=[*sources, "dimensions"])
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization  # highdicom draws one at random
    # Required of an image without a plane in space, and empty if unknown (C.7.6.1).
    seg.add(radiograph["PatientOrientation"])
    if masks.size % 16 in range(1, 9):  # an odd number of bytes is filled up, with "0"
        seg.PixelData = seg.PixelData[:-1] + bytes(1)
    return seg


def _describe(number: int, label: str, origin: Origin, name: str, version: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    def coded(code: tuple[str, str]) -> Any:
        return hd.sr.CodedConcept(code[0], "SCT", code[1])

    category, kind = _SEGMENTS[label]
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=coded(category),
        segmented_property_type=coded(kind),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=name,
            version=version,
            family=codes.DCM.ArtificialIntelligence,
            parameters=origin.fingerprints,
        ),
        anatomic_regions=None if kind == _LUNG else [coded(_LUNG)],
    )


def _encode(seg: "Dataset") -> bytes:
    file = io.BytesIO()
    seg.save_as(file, enforce_file_format=True)
    return file.getvalue()
