"""The segmentation as pydicom alone reads it back, bit by bit."""

import sys
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from covjax.errors import DataError, UsageError
from covjax.predict.dicom_seg import write_seg
from covjax.predict.postprocess import Origin
from dicom_files import DX, change, make_image, save

ROWS, COLUMNS = 9, 13  # a frame of 117 bits ends within a byte
LUNGS = (np.random.default_rng(0).random((ROWS, COLUMNS)) < 0.6).astype(np.uint8)
INFECTION = LUNGS * (np.random.default_rng(1).random((ROWS, COLUMNS)) < 0.3)
ORIGIN = Origin({"lungs": "0a1b2c3d", "infection": "4e5f6a7b"}, phantom=False)
UIDS = {
    "StudyInstanceUID": "1.2.3.1",
    "SeriesInstanceUID": "1.2.3.2",
    "SOPInstanceUID": "1.2.3.3",
}
PATIENT = {
    "PatientID": "17",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "StudyDate": "20200401",
    "StudyTime": "101112",
    "StudyID": "S5",
    "AccessionNumber": "A6",
}


def source(
    path: Path, syntax: str = ExplicitVRLittleEndian, **elements: object
) -> Path:
    radiograph = make_image(np.zeros((ROWS, COLUMNS), np.uint16), **UIDS, **PATIENT)
    change(radiograph, **elements)
    return save(radiograph, path / "image.dcm", syntax)


def written(
    path: Path,
    radiograph: Path,
    infection: np.ndarray | None = INFECTION,
    origin: Origin = ORIGIN,
    **given: str,
) -> pydicom.FileDataset:
    given = {"name": "covjax", "version": "0.1.0"} | given
    write_seg(path / "seg.dcm", radiograph, LUNGS, infection, origin, **given)
    return pydicom.dcmread(path / "seg.dcm")


def unpacked(seg: pydicom.Dataset) -> np.ndarray:
    """Bits of all frames in a row, the lowest of a byte first (PS3.5 8.1.1)."""
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    count = int(seg.NumberOfFrames) * seg.Rows * seg.Columns
    assert 0 <= bits.size - count < 16 and not bits[count:].any()
    return bits[:count].reshape(-1, seg.Rows, seg.Columns)


def test_bits_are_the_masks(tmp_path):
    seg = written(tmp_path, source(tmp_path))
    assert (seg.BitsAllocated, seg.BitsStored, seg.HighBit) == (1, 1, 0)
    assert seg.SegmentationType == "BINARY" and seg.SegmentsOverlap == "YES"
    np.testing.assert_array_equal(unpacked(seg), [LUNGS, INFECTION])
    numbers = [
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    assert numbers == [1, 2]


def test_values_are_as_the_standard_has_them(tmp_path, monkeypatch):
    radiograph = source(tmp_path)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    for infection in (INFECTION, 0 * INFECTION, None):
        assert list(written(tmp_path, radiograph, infection).iterall())
        hd.seg.segread(tmp_path / "seg.dcm")  # raises where it is no segmentation


@pytest.mark.parametrize(
    "told",
    [
        {"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.2, 0.1]},
        {"FrameOfReferenceUID": "1.2.3.9", "PositionReferenceIndicator": ""},
    ],
)
def test_projection_has_no_geometry_in_space(tmp_path, told):
    # PS3.3, table A.51-2: pixel measures only within a frame of reference; A.51.5.1:
    # a frame of reference only with position and orientation.
    seg = written(tmp_path, source(tmp_path, **told))
    groups = [
        *seg.SharedFunctionalGroupsSequence,
        *seg.PerFrameFunctionalGroupsSequence,
    ]
    assert not any("PixelMeasuresSequence" in group for group in groups)
    assert "FrameOfReferenceUID" not in seg
    read = hd.seg.segread(tmp_path / "seg.dcm")
    masks = read.get_pixels_by_source_instance(["1.2.3.3"])
    np.testing.assert_array_equal(masks[0], np.stack([LUNGS, INFECTION], axis=-1))


@pytest.mark.parametrize("told", [["R", "F"], "", None])
def test_orientation_is_the_images(tmp_path, told):
    # PS3.3, C.7.6.1: of type 2C, required where there is no orientation in space.
    radiograph = source(
        tmp_path, **({} if told is None else {"PatientOrientation": told})
    )
    assert written(tmp_path, radiograph)["PatientOrientation"].value == (told or "")


def test_file_says_what_it_is(tmp_path):
    seg = written(tmp_path, source(tmp_path))
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert seg.file_meta.MediaStorageSOPClassUID == seg.SOPClassUID
    assert seg.file_meta.MediaStorageSOPInstanceUID == seg.SOPInstanceUID
    assert seg.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert seg.Modality == "SEG"
    assert (seg.ManufacturerModelName, seg.SoftwareVersions) == ("covjax", "0.1.0")


def test_segments_are_coded(tmp_path):
    lungs, infection = written(tmp_path, source(tmp_path)).SegmentSequence

    def codes(segment: pydicom.Dataset) -> list[tuple[str, str]]:
        return [
            (code.CodingSchemeDesignator, code.CodeValue)
            for code in (
                segment.SegmentedPropertyCategoryCodeSequence[0],
                segment.SegmentedPropertyTypeCodeSequence[0],
            )
        ]

    assert lungs.SegmentLabel == "Lungs"
    assert codes(lungs) == [("SCT", "91723000"), ("SCT", "39607008")]
    assert infection.SegmentLabel == "COVID-19 infection"
    assert codes(infection) == [("SCT", "49755003"), ("SCT", "409774005")]
    assert infection.AnatomicRegionSequence[0].CodeValue == "39607008"
    for segment in (lungs, infection):
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "covjax"


def test_image_is_referred_to_in_its_study(tmp_path):
    seg = written(tmp_path, source(tmp_path))
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.2"
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == "1.2.3.3"
    assert instance.ReferencedSOPClassUID == DX
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == "1.2.3.3"
    assert seg.StudyInstanceUID == "1.2.3.1"
    assert seg.SeriesInstanceUID != "1.2.3.2"
    assert {name: seg[name].value for name in PATIENT} == PATIENT


@pytest.mark.parametrize(
    ("told", "name"),
    [
        # PS3.5, H.3.1 and I.2: the examples of the standard.
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("ISO_IR 100", "Buc^Jérôme"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    ],
)
def test_name_in_any_script(tmp_path, told, name):
    radiograph = source(
        tmp_path, SpecificCharacterSet=told, PatientName=name, StudyDescription=name
    )
    seg = written(tmp_path, radiograph)
    assert seg.PatientName == name and seg.StudyDescription == name
    assert name.encode() in (tmp_path / "seg.dcm").read_bytes()
    assert seg.SpecificCharacterSet == "ISO_IR 192"


def test_nothing_found_is_a_blank_frame(tmp_path):
    seg = written(tmp_path, source(tmp_path), 0 * INFECTION)
    np.testing.assert_array_equal(unpacked(seg), [LUNGS, 0 * INFECTION])
    write_seg(
        tmp_path / "seg.dcm", source(tmp_path), 0 * LUNGS, 0 * LUNGS, ORIGIN,
        name="covjax", version="0.1.0",
    )  # fmt: skip
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert unpacked(seg).shape == (2, ROWS, COLUMNS) and not unpacked(seg).any()


def test_networks_are_named_by_each_segment(tmp_path):
    seg = written(tmp_path, source(tmp_path))
    for segment in seg.SegmentSequence:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        told = algorithm.AlgorithmParameters.replace(" ", "")
        assert told == "lungs=0a1b2c3d,infection=4e5f6a7b"


@pytest.mark.parametrize(
    ("phantom", "label", "words"),
    [
        (False, "RESEARCH", "Research use only, not for diagnosis"),
        (True, "PHANTOM", "PHANTOM weights, of no use to a patient"),
    ],
)
def test_what_it_is_for_is_said_where_a_viewer_shows_it(
    tmp_path, phantom, label, words
):
    seg = written(tmp_path, source(tmp_path), origin=Origin({"lungs": "0a"}, phantom))
    assert seg.ContentLabel == label
    assert seg.ContentDescription == seg.SeriesDescription == words


def test_lungs_alone(tmp_path):
    seg = written(tmp_path, source(tmp_path), None)
    np.testing.assert_array_equal(unpacked(seg), [LUNGS])
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["Lungs"]


def test_same_masks_are_the_same_instance(tmp_path):
    radiograph = source(tmp_path)

    def uids(infection: np.ndarray = INFECTION, **given: Any) -> tuple[str, str]:
        seg = written(tmp_path, radiograph, infection, **given)
        return seg.SeriesInstanceUID, seg.SOPInstanceUID

    first = uids()
    assert uids() == first
    assert first[0] != first[1]
    retrained = Origin({"lungs": "0a1b2c3d", "infection": "00000000"}, phantom=False)
    for other in (uids(version="0.2.0"), uids(name="mine"), uids(origin=retrained)):
        assert not set(first) & set(other)
    # Other masks of the same network: another instance of the same series.
    series, instance = uids(0 * INFECTION)
    assert series == first[0] and instance != first[1]
    radiograph = source(tmp_path, SOPInstanceUID="1.2.3.4")
    assert not set(first) & set(uids())


def test_the_same_masks_again_differ_in_dates_alone(tmp_path):
    def told() -> list[str]:
        seg = written(tmp_path, source(tmp_path))
        elements = (str(element) for element in seg.iterall())
        return [one for one in elements if " Date" not in one and "Time" not in one]

    first = told()
    assert len(first) > 100
    assert told() == first


def test_source_of_little_and_of_another_order(tmp_path):
    nothing: dict[str, Any] = dict.fromkeys(PATIENT)
    bare = source(tmp_path, **nothing)
    seg = written(tmp_path, bare)
    assert seg.PatientID == "" and seg.PatientName == ""
    turned = source(tmp_path, ExplicitVRBigEndian)
    assert written(tmp_path, turned).PatientName == "Doe^Jane"


@pytest.mark.parametrize("name", [*UIDS, "SOPClassUID", "Rows"])
def test_source_that_cannot_be_referred_to(tmp_path, name):
    radiograph = make_image(np.zeros((ROWS, COLUMNS), np.uint16), **UIDS, **PATIENT)
    change(radiograph, **{name: None})
    radiograph.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.3")
    path = save(radiograph, tmp_path / "image.dcm")
    with pytest.raises(DataError, match=f"image.dcm: without {name}, ") as caught:
        written(tmp_path, path)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "seg.dcm").exists()


def test_source_that_highdicom_refuses_is_not_quoted(tmp_path, caplog, capfd):
    radiograph = source(tmp_path, PatientSex="DOE")
    with pytest.raises(
        DataError, match="image.dcm: none can refer to what it holds"
    ) as caught:
        written(tmp_path, radiograph)
    assert "DOE" not in str(caught.value) and str(radiograph) in str(caught.value)
    written(tmp_path, source(tmp_path, PatientName="doe"))
    assert not caplog.records and capfd.readouterr() == ("", "")
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(DataError, match="no DICOM file"):
        written(tmp_path, tmp_path / "text.dcm")


@pytest.mark.parametrize("lungs", [LUNGS[:8], LUNGS.T, 255 * LUNGS])
def test_masks_that_do_not_fit(tmp_path, lungs):
    with pytest.raises(ValueError, match=r"masks \[9, 13\] of 0 and 1"):
        write_seg(
            tmp_path / "seg.dcm", source(tmp_path), lungs, None, ORIGIN,
            name="a", version="1",
        )  # fmt: skip


def test_file_that_cannot_be_written(tmp_path):
    radiograph = source(tmp_path)
    with pytest.raises(OSError, match="exists: .*image.dcm"):
        write_seg(
            radiograph / "seg.dcm",
            radiograph,
            LUNGS,
            None,
            ORIGIN,
            name="a",
            version="1",
        )
    out = tmp_path / "seg.dcm"
    out.write_text("before")
    write_seg(out, radiograph, LUNGS, None, ORIGIN, name="a", version="1")
    assert pydicom.dcmread(out).Modality == "SEG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.dcm", "seg.dcm"]


def test_highdicom_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UsageError, match="needs highdicom: pip install 'covjax.dicom]"):
        written(tmp_path, source(tmp_path))
