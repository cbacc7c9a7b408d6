"""A table of images: what is read of it, and each fault, with its line and column."""

from pathlib import Path

import pytest

from covjax.data.from_table.table import Faults, Row, read_table
from covjax.errors import DataError, UsageError

HEADER = "image,lung_mask,infection_mask,class,split,patient"


def write_table(folder: Path, *lines: str, names: str = "abcd") -> Path:
    """A table beside images a, b, … and their masks, whose pixels nobody reads here."""
    for name in names:
        for kind in ("", "_lung", "_sick"):
            (folder / f"{name}{kind}.png").write_bytes(b"")
    path = folder / "images.csv"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def faults(path: Path, **names: str) -> list[str]:
    """What is wrong with a table, each as "line: column: …"."""
    with pytest.raises(Faults) as caught:
        read_table(path, names)
    return [f"{fault.line}: {fault.said}" for fault in caught.value.faults]


def test_a_row_is_what_its_cells_say(tmp_path):
    path = write_table(
        tmp_path,
        HEADER,
        "a.png,a_lung.png,a_sick.png,COVID-19,Train,p1",
        f"{tmp_path}/b.png,./b_lung.png,None,non-covid,VAL,p2",
        "c.png,c_lung.png,,normal,test,p2b",
    )
    a, b, c = (tmp_path / f"{name}.png" for name in "abc")
    lung = [tmp_path / f"{name}_lung.png" for name in "abc"]
    sick = tmp_path / "a_sick.png"
    assert read_table(path).rows == [
        Row(2, a, lung[0], sick, False, "COVID-19", "Train", "p1"),
        Row(3, b, lung[1], None, True, "Non-COVID", "Val", "p2"),
        Row(4, c, lung[2], None, False, "Normal", "Test", "p2b"),
    ]
    assert [row.has_infection_mask for row in read_table(path).rows] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("parts", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_any_usual_csv_is_read(tmp_path, start, parts, end):
    # The other marks stand in the cells, quoted or not.
    sample = tmp_path / "é, a;b.png"
    sample.write_bytes(b"")
    path = write_table(tmp_path)
    rows = [
        ["Class", "IMAGE", "age; years" if parts != ";" else "age", "Lung_mask"],
        ["Normal", f'"{sample.name}"', "70", " a_lung.png "],
    ]
    text = start + end + end.join(parts.join(row) for row in rows) + end + parts + end
    path.write_bytes(text.encode("utf-8"))
    table = read_table(path)
    assert [row.image for row in table.rows] == [sample]
    assert (table.rows[0].line, table.rows[0].lung_mask.name) == (3, "a_lung.png")
    assert (table.rows[0].split, table.rows[0].patient) == ("", "")
    assert table.left_aside == [rows[0][2]]


def test_paths_begin_at_the_table_not_at_the_shell(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    write_table(tmp_path / "in", "image,lung_mask,class", "a.png,a_lung.png,Normal")
    monkeypatch.chdir(tmp_path)
    (row,) = read_table(Path("in/images.csv")).rows
    assert row.image == tmp_path / "in" / "a.png"  # absolute: links need it


def test_classes_have_other_names(tmp_path):
    path = write_table(
        tmp_path,
        "image,lung_mask,class",
        "a.png,a_lung.png,Bacterial",
        "b.png,b_lung.png,no finding",
        "c.png,c_lung.png,Covid-19",
    )
    names = {"bacterial": "Non-COVID", "No Finding": "normal"}
    labels = [row.label for row in read_table(path, names).rows]
    assert labels == ["Non-COVID", "Normal", "COVID-19"]
    with pytest.raises(UsageError, match="'x': 'healthy' is none of COVID-19"):
        read_table(path, {"x": "healthy"})


def test_unknown_names_are_told_once_at_their_first_line(tmp_path):
    path = write_table(
        tmp_path,
        HEADER,
        "a.png,a_lung.png,,viral,Train,1",
        "b.png,b_lung.png,,viral,dev,2",
        "c.png,c_lung.png,,,,3",
    )
    assert faults(path) == [
        "2: class: viral is none of COVID-19, Non-COVID or Normal: map it"
        ' (--class "viral=Non-COVID", or another)',
        "3: split: dev is none of Train, Val or Test: write one in each row, or leave"
        " the column out",
        "4: class: empty, where each image has COVID-19, Non-COVID or Normal",
        "4: split: empty, where each image has Train, Val or Test",
    ]


def test_a_column_that_is_empty_throughout_is_as_good_as_none(tmp_path):
    path = write_table(tmp_path, HEADER, "a.png,a_lung.png,,Normal,,")
    (row,) = read_table(path).rows
    assert (row.infection_mask, row.split, row.patient) == (None, "", "")


def test_a_column_that_any_row_fills_is_there_for_all(tmp_path):
    path = write_table(
        tmp_path,
        HEADER,
        "a.png,a_lung.png,,Normal,,",
        "b.png,b_lung.png,,Normal,Train,1",
    )
    assert [said.partition(",")[0] for said in faults(path)] == [
        "2: patient: empty", "2: split: empty",
    ]  # fmt: skip


def test_a_patient_in_two_splits_is_refused_without_the_name(tmp_path):
    path = write_table(
        tmp_path,
        HEADER,
        "a.png,a_lung.png,,Normal,Train,Smith",
        "b.png,b_lung.png,,Normal,Train,Smith",
        "c.png,c_lung.png,,Normal,Test,Smith",
        "d.png,d_lung.png,,Normal,Test,",
    )
    third, fourth = faults(path)
    assert third.startswith("4: patient: in Test here and in Train in line 2")
    assert fourth.startswith("5: patient: empty")
    assert "Smith" not in third


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("e.png", "e.png: no such file"),
        ("x\\\\e.png", "no such file (folders are parted by /)"),
        ("", "empty, where each image needs one"),
        (".a.png", "begins with a dot"),
        ("a.dcm", "has to end in .bmp, .jpeg, .jpg, .png, .tif, .tiff or .webp"),
        ("folder.png", "no regular file"),
        ("none", "has to end in"),
        ("a\x07.png", "a\\x07.png: a name with control characters"),
        ("a.png/b.png", "Not a directory"),
    ],
)
@pytest.mark.parametrize("column", ["image", "lung_mask"])
def test_a_file_that_cannot_be_laid_out_is_named(tmp_path, column, cell, said):
    (tmp_path / "folder.png").mkdir()
    for name in (".a.png", "a.dcm", "a\x07.png"):
        (tmp_path / name).write_bytes(b"")
    cells = {"image": "b.png", "lung_mask": "b_lung.png"} | {column: cell}
    row = f"{cells['image']},{cells['lung_mask']},Normal"
    path = write_table(tmp_path, "image,lung_mask,class", row)
    (fault,) = faults(path)
    assert fault.startswith(f"2: {column}: ") and said in fault


def test_a_file_that_stands_twice_is_refused_under_any_name(tmp_path):
    (tmp_path / "alias.png").symlink_to(tmp_path / "a.png")
    path = write_table(
        tmp_path,
        HEADER,
        "a.png,a_lung.png,a_sick.png,COVID-19,Train,1",
        "alias.png,b_lung.png,a_sick.png,COVID-19,Train,1",
        "c.png,../" + tmp_path.name + "/a_lung.png,none,Normal,Train,1",
        "d.png,d.png,none,Normal,Train,1",
    )
    assert faults(path) == [
        "3: image: alias.png: the same file as image in line 2",
        "3: infection_mask: a_sick.png: the same file as infection_mask in line 2"
        " (where there is no infection, write none)",
        f"4: lung_mask: ../{tmp_path.name}/a_lung.png: the same file as lung_mask in"
        " line 2",
        "5: lung_mask: d.png: the same file as image in line 5",
    ]


def test_rows_of_another_length_are_refused_with_the_others(tmp_path):
    path = write_table(
        tmp_path,
        "image,lung_mask,class",
        "a.png,a_lung.png",
        '"b.png","b_lung.png",Normal',
        "c,1.png,c_lung.png,Normal",
        "d.png,e.png,Normal",
    )
    assert faults(path) == [
        "2: 2 cells, where the first line has 3",
        "4: 4 cells, where the first line has 3",
        "5: lung_mask: e.png: no such file",
    ]


def test_a_message_shows_a_few_faults_and_counts_the_rest(tmp_path):
    path = write_table(
        tmp_path,
        "image,lung_mask,class",
        *(f"n{k}.png,a_lung.png,Normal" for k in range(1)),
        *(f"n{k}.png,{k}.png,Normal" for k in range(1, 5)),
    )
    with pytest.raises(Faults) as caught:
        read_table(path)
    assert len(caught.value.faults) == 9
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[0] == f"{path}: line 2, image: n0.png: no such file"
    assert lines[5] == f"{path}: and 4 more of such (--show=N)"
    assert len(caught.value.tell(9).splitlines()) == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: no column image nor lung_mask nor class"),
        (b"image,lung_mask\na.png,b.png\n", "line 1: no column class;"),
        (b"image,lung_mask,class\n", "no images"),
        (b"image,lung_mask,class,image\n", "line 1: two columns image"),
        (b"image,lung_mask,class\na.png,\xff,Normal\n", "not UTF-8 (byte 28)"),
        (b'image,lung_mask,class\na.png,"b,Normal\n', "line 2: unexpected end"),
        # A column whose loss nobody would see.
        (b"image,lung_mask,class,infection_masks\n", "if infection_mask is meant"),
        (b"image,lung_mask,class,patient_id\n", "column patient_id: if patient is"),
        (b"image,lung_mask,class,splits\n", "if split is meant"),
    ],
)
def test_what_is_no_table_of_images_is_refused_in_a_line(tmp_path, content, said):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="none.csv: No such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="Is a directory"):
        read_table(tmp_path)
