"""The report page: what a reader finds in it, from which file, and what not."""

import base64
import html.parser
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from configs import infection, lung
from covjax.config import save_config
from covjax.data.audit.audit import audit
from covjax.data.phantom.dataset import write_phantoms
from covjax.errors import UsageError
from covjax.report.checklist import CLAIM, NO, TRIPOD_AI, YES, Item
from covjax.report.page import write_report
from finished_run import (
    COMMAND,
    figure,
    make_full_results,
    make_results,
    write_finished_run,
    write_json,
    write_regions,
)


class Page(html.parser.HTMLParser):
    """What a browser would find in a page.

    Attributes:
      tags: name and attributes of every element.
      text: all of it, without the head.
      tables: by caption, the cells of every row but the head.
    """

    # Elements that are never closed.
    VOID = {"meta", "img", "link", "br", "hr", "input"}

    def __init__(self, text: str):
        """Parses a page; fails where elements are not nested."""
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tbody":
            assert self._caption not in self.tables
            self.tables[self._caption] = []
        if "tbody" in self.open and tag == "tr":
            self.tables[self._caption].append([])
        if "tbody" in self.open and tag in ("th", "td"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "head" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self._caption += data
        if "tbody" in self.open and {"th", "td"} & set(self.open):
            self.tables[self._caption][-1][-1] += data

    def table(self, start: str) -> dict[str, list[str]]:
        """Returns the rows of the one table whose caption starts so, by first cell."""
        (rows,) = (rows for c, rows in self.tables.items() if c.startswith(start))
        return {row[0]: row[1:] for row in rows}

    def images(self) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def anchors(self) -> list[str]:
        return [a["id"] for tag, a in self.tags if tag == "section"]


def read_page(workdir: Path) -> Page:
    path = write_report(workdir)
    assert path == workdir / "report.html"
    page = Page(path.read_text())
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with every file, and a name that HTML would take for a tag."""
    return write_finished_run(tmp_path_factory.mktemp("run") / "a<b>&c")


@pytest.fixture(scope="module")
def full(finished) -> Page:
    return read_page(finished)


@pytest.fixture
def old(tmp_path) -> Path:
    """A run from before there was an operating point: the first fields alone."""
    save_config(infection.get_config(), tmp_path / "config.json", {})
    write_json(tmp_path / "results" / "test.json", make_results())
    return tmp_path


def test_page_needs_no_other_file_and_no_network(finished, full):
    for tag, attributes in full.tags:
        assert not {"srcset", "data", "action", "style"} & attributes.keys()
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or (
            tag != "img"
        )
        assert attributes.get("href", "#").startswith("#")
    names = {tag for tag, _ in full.tags}
    assert not names & {"script", "link", "iframe", "object", "b"}
    text = (finished / "report.html").read_text()
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text


def test_page_is_built_for_a_screen_reader(full):
    names = [tag for tag, _ in full.tags]
    assert dict(full.tags)["html"]["lang"] == "en"
    assert names.count("h1") == 1 and names.count("main") == names.count("nav") == 1
    assert names.count("table") == names.count("caption") > 10
    scopes = {a.get("scope") for tag, a in full.tags if tag == "th"}
    assert scopes == {"col", "row"}
    assert names.count("figure") == names.count("figcaption") == names.count("img") == 7
    links = [a["href"][1:] for tag, a in full.tags if tag == "a"]
    assert set(links) == set(full.anchors())  # every section is linked, no link is dead
    assert len(full.anchors()) == len(set(full.anchors()))


def test_page_holds_every_figure_as_it_lies_in_the_folder(finished, full):
    names = (
        "qualitative", "best", "median", "worst", "severity", "reliability", "curves",
    )  # fmt: skip
    for image, name in zip(full.images(), names, strict=True):
        content = base64.b64decode(image["src"].split(",")[1], validate=True)
        assert content == (finished / "figures" / f"{name}.png").read_bytes()
        Image.open(io.BytesIO(content)).verify()


def test_alternative_texts_say_the_main_numbers(full):
    texts = [image["alt"] for image in full.images()]
    told = (
        "0.5020 [0.4820, 0.5220]",
        "Dice goes from 0.0000 to 0.7500",
        "Dice goes from 0.0000 to 0.7500",
        "Dice goes from 0.0000 to 1.0000",
        "0.0876 [0.0676, 0.1076], bias -0.0123",
        "0.0321 [0.0121, 0.0521]",
        "is 0.0912 after the first epoch, at best 0.5412",
    )
    for text, number in zip(texts, told, strict=True):
        assert number in text


def test_headline_is_the_region_that_a_clinic_has(full):
    assert "region of interest: lungs found by stage 1. Mean Dice" in full.text
    assert full.table("Test, family “all”") == {
        "covjax, lungs found by stage 1, tuned": [
            "0.3141", "0.5020 [0.4820, 0.5220]", "0.5121 [0.4921, 0.5321]",
        ],
        "covjax, lungs found by stage 1, threshold 0.5, untuned": [
            "–", "0.2020 [0.1820, 0.2220]", "0.2121 [0.1921, 0.2321]",
        ],
        "covjax, true lungs, tuned": [
            "0.3141", "0.6010 [0.5810, 0.6210]", "0.6111 [0.5911, 0.6311]",
        ],
        "covjax, true lungs, threshold 0.5, untuned": [
            "–", "0.3010 [0.2810, 0.3210]", "0.3111 [0.2911, 0.3311]",
        ],
    }  # fmt: skip


def test_families_stand_tuned_beside_untuned(full):
    rows = full.table("Families, Test, region of interest: lungs found by stage 1")
    assert [key.split(":")[0] for key in rows] == ["all", "positive", "pooled"]
    assert list(rows.values())[1] == [
        "0.5222 [0.5022, 0.5422]", "0.5323 [0.5123, 0.5523]",
        "0.2222 [0.2022, 0.2422]", "0.2323 [0.2123, 0.2523]",
    ]  # fmt: skip
    assert full.table("Blank rate: of 583 images") == {
        "all empty images": ["0.5626 [0.5426, 0.5826]", "0.2626 [0.2426, 0.2826]"],
        "Normal": ["0.6120", "0.3120"],
        "Non-COVID": ["0.6220", "0.3220"],
    }
    assert (
        "above a probability of 0.62; areas below 40 pixels (at 256 px) are dropped; an"
        " image stays blank where its presence score (the mean probability of its"
        " surest"
        " pixels, one in 256) is below 0.800. All of it was chosen on Val alone, for"
        " the highest “all dice”."
    ) in full.text


def test_regions_of_interest_stand_side_by_side_and_untuned_below(full):
    rows = full.table("Test by what the network is shown")
    assert list(rows) == [
        name + at
        for name in ("true lungs", "lungs found by stage 1", "whole image")
        for at in ("", ", threshold 0.5, untuned")
    ]
    assert {name: (row[0], row[4]) for name, row in rows.items()} == {
        "true lungs": ("0.6010 [0.5810, 0.6210]", "0.8110 [0.7910, 0.8310]"),
        "true lungs, threshold 0.5, untuned": ("0.3010 [0.2810, 0.3210]", "–"),
        "lungs found by stage 1": (
            "0.5020 [0.4820, 0.5220]", "0.7120 [0.6920, 0.7320]",
        ),
        "lungs found by stage 1, threshold 0.5, untuned": (
            "0.2020 [0.1820, 0.2220]", "–",
        ),
        "whole image": ("0.4030 [0.3830, 0.4230]", "0.6130 [0.5930, 0.6330]"),
        "whole image, threshold 0.5, untuned": ("0.1030 [0.0830, 0.1230]", "–"),
    }  # fmt: skip
    # Dice of all, positive and pooled, then the blank rate: .0202 apart.
    assert [cell.split()[0] for cell in rows["lungs found by stage 1"][:4]] == [
        "0.5020", "0.5222", "0.5424", "0.5626",
    ]  # fmt: skip
    untuned = rows["lungs found by stage 1, threshold 0.5, untuned"]
    assert [cell.split()[0] for cell in untuned[:4]] == [
        "0.2020", "0.2222", "0.2424", "0.2626",
    ]  # fmt: skip
    # Image by image: .75, 0, 1, 0 with found lungs and .9, 0, 1, 1 with true ones.
    assert "Dice (all) changes by -0.2875 [" in full.text


def test_region_that_was_not_tuned_has_one_row(old):
    for roi in ("predicted", "none"):
        write_json(old / "results" / f"test-{roi}.json", make_results(roi=roi))
    rows = read_page(old).table("Test by what the network is shown")
    assert list(rows) == ["true lungs", "lungs found by stage 1", "whole image"]
    assert {row[0] for row in rows.values()} == {"0.6111 [0.5911, 0.6311]"}
    assert {row[4] for row in rows.values()} == {"–"}


@pytest.fixture
def of_regions(tmp_path, finished, request) -> Page:
    """The page of a run that was trained on the region that a test names."""
    own = request.param
    save_config(infection.get_config("phantom"), tmp_path / "config.json", {})
    write_regions(tmp_path / "results", own)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert f"test-{own}.json" not in names and "test-truth.json" in names
    rows = (finished / "results" / "test-predicted.csv").read_text()
    (tmp_path / "results" / "test.csv").write_text(rows)
    return read_page(tmp_path)


@pytest.mark.parametrize("of_regions", ["predicted"], indirect=True)
def test_regions_are_found_if_the_run_was_trained_on_found_lungs(full, of_regions):
    for caption in (
        "Test, family “all”",
        "Families, Test, region of interest: lungs found by stage 1",
        "Test by what the network is shown",
        "Detection of COVID-19 images",
        "Images that failed",
    ):
        assert of_regions.table(caption) == full.table(caption)
    splits = of_regions.table("Splits, region of interest: lungs found by stage 1")
    dice = [row[2].split()[0] for row in splits.values()]
    assert dice == ["0.6660", "0.3330", "0.5020"]
    assert "flatter it" not in of_regions.text


@pytest.mark.parametrize("of_regions", ["none"], indirect=True)
def test_run_that_was_trained_on_whole_images_is_headed_by_them(full, of_regions):
    page = of_regions
    assert "region of interest: whole image. Mean Dice" in page.text
    rows = page.table("Test, family “all”")
    assert [(name, row[1].split()[0]) for name, row in rows.items()] == [
        ("covjax, whole image, tuned", "0.4030"),
        ("covjax, whole image, threshold 0.5, untuned", "0.1030"),
        ("covjax, true lungs, tuned", "0.6010"),
        ("covjax, true lungs, threshold 0.5, untuned", "0.3010"),
    ]
    families = page.table("Families, Test, region of interest: whole image")
    assert list(families.values())[0][0] == "0.4030 [0.3830, 0.4230]"
    for caption in ("Test by what the network is shown", "Images that failed"):
        assert page.table(caption) == full.table(caption)
    assert page.table("Detection of COVID-19 images") == {
        "outside the lungs alone": ["0.6540 [0.6340, 0.6740]"],
        "whole image": ["0.6130 [0.5930, 0.6330]"],
    }
    splits = page.table("Splits, region of interest: whole image")
    dice = [row[2].split()[0] for row in splits.values()]
    assert dice == ["0.6660", "0.3330", "0.4030"]
    assert "flatter it" not in page.text


def test_file_of_another_region_than_its_name_says_is_not_taken_for_it(old):
    results = make_results(roi="truth") | {"all": make_full_results(0.1)["all"]}
    write_json(old / "results" / "test-predicted.json", results)
    page = read_page(old)
    assert "regions" not in page.anchors()
    assert "Mean Dice of family “all”: 0.6111 [0.5911, 0.6311]" in page.text
    assert "0.1000" not in page.text


def test_probe_says_what_its_figure_means(finished, full, tmp_path):
    assert "an AUROC of 0.6540 [0.6340, 0.6740]. That is more than chance" in full.text
    assert full.table("Detection of COVID-19 images") == {
        "outside the lungs alone": ["0.6540 [0.6340, 0.6740]"],
        "lungs found by stage 1": ["0.7120 [0.6920, 0.7320]"],
    }
    results = make_full_results(0.3, roi="outside")
    results["detection"]["auroc"] = figure(0.51, 0.48, 0.54)
    save_config(infection.get_config(), tmp_path / "config.json", {})
    write_json(tmp_path / "results" / "test-outside.json", results)
    text = read_page(tmp_path).text
    assert "0.5100 [0.4800, 0.5400]. The interval does not tell that" in text
    assert "more than chance" not in text


@pytest.mark.parametrize(
    ("roi_as", "said", "unsaid"),
    [
        ("cut", "learned the inside of lungs alone", "saw all of each image"),
        ("channel", "saw all of each image", "learned the inside of lungs alone"),
    ],
)
def test_probe_says_what_the_network_had_seen(tmp_path, roi_as, said, unsaid):
    config = infection.get_config()
    config.data.roi_as = roi_as
    save_config(config, tmp_path / "config.json", {})
    results = make_full_results(0.3, roi="outside")
    write_json(tmp_path / "results" / "test-outside.json", results)
    text = read_page(tmp_path).text
    assert said in text and unsaid not in text


def test_presence_of_a_head_is_not_told_as_a_score_of_pixels(old):
    results = make_full_results(0.3, presence_from="head")
    write_json(old / "results" / "test.json", results)
    text = read_page(old).text
    assert "presence score (the probability that the network's presence head" in text
    assert "surest pixels" not in text


def test_run_that_was_trained_outside_the_lungs_is_its_own_probe(old):
    results = make_full_results(0.3, roi="outside")
    write_json(old / "results" / "test.json", results)
    page = read_page(old)
    assert "an AUROC of 0.5100 [0.4900, 0.5300]. The interval does not" in page.text
    assert page.table("Detection of COVID-19 images") == {
        "outside the lungs alone": ["0.5100 [0.4900, 0.5300]"]
    }
    assert "regions" not in page.anchors()


def test_other_scores_stand_in_their_tables(full):
    pixels = full.table("Pixels and outlines")
    assert pixels["Precision"] == ["0.7171 [0.6971, 0.7371]"]
    assert pixels["Surface Dice at 2 px (577 images)"] == ["0.3737 [0.3537, 0.3937]"]
    assert ["17.2 [15.2, 19.2]"] in pixels.values()
    detection = full.table("Images with infection (583 of 1,166)")
    assert detection["Specificity"] == ["0.7320 [0.7120, 0.7520]"]
    severity = full.table("Infected share of the lungs (0 to 1), 1,159 images; 7")
    assert severity["lower limit of agreement"] == ["-0.2345 [-0.2545, -0.2145]"]
    bins = full.table("Reliability, bin by bin")
    assert bins["0.4 to 0.5"] == ["100,004", "0.4512", "0.4213"]
    assert bins["0.5 to 0.6"] == ["0", "–", "–"]
    lesions = full.table("By extent of the infection")
    assert lesions["10 to 25 %"] == [
        "102", "0.5100 [0.4900, 0.5300]", "0.4100 [0.3900, 0.4300]",
        "0.4600 [0.4400, 0.4800]",
    ]  # fmt: skip
    classes = full.table("By class")
    assert classes["Non-COVID"] == [
        "301", "301", "0.5600 [0.5400, 0.5800]", "–", "0.8585 [0.8385, 0.8785]",
        "124.4 [110.0, 140.0]",
    ]  # fmt: skip
    splits = full.table("Splits, region of interest: true lungs")
    assert [row[2].split()[0] for row in splits.values()] == [
        "0.6660", "0.3330", "0.6010",
    ]  # fmt: skip


def test_failed_images_are_counted_from_the_rows_of_the_headline(full):
    assert full.table("Images that failed") == {
        "COVID-19": ["1 of 2", "0 of 0"],
        "Normal": ["0 of 0", "1 of 2"],
    }


def test_page_says_what_was_run(full):
    rows = full.table("What was trained")
    assert rows["commit"] == ["1f3a"] and rows["jax"] == ["0.10.77"]
    assert rows["seed"] == ["0"] and rows["started from"] == ["runs/<script>"]
    assert COMMAND in full.text
    assert full.table("Every field")["model.width"] == ["8"]


def test_audit_is_shown_without_the_folder_of_the_images(full):
    found = full.table("Images found / published")
    assert found["Infection Segmentation Data, Train"] == [
        "1,861 / 1,864", "931 / 932", "933 / 932",
    ]  # fmt: skip
    faults = full.table("Files and masks at fault")
    assert faults["masks with values besides 0 and 255"] == ["43"]
    assert full.table("Images that stand twice") == {
        "identical": ["infection/Train – infection/Test", "3", "yes"]
    }
    assert full.table("Images with a twin") == {"infection/Test": ["3", "21"]}
    assert "/somewhere" not in full.text


def test_page_reads_what_the_audit_writes(old, tmp_path):
    root = tmp_path / "images"
    write_phantoms(root, samples={"Train": 4, "Val": 4, "Test": 4}, size=32, seed=0)
    write_json(old / "results" / "audit.json", audit(root))
    page = read_page(old)
    assert len(page.table("Images found / published")) == 6
    assert set(page.table("Files and masks at fault")) >= {"images without a mask"}
    assert "audit" in page.anchors()


def test_page_of_phantoms_says_so_first_and_shows_no_study(full):
    assert full.text.index("These images are PHANTOMS") < full.text.index("0.5020")
    assert "the study" not in full.text.split("Checklists")[0]
    assert "0.6167" not in full.text


@pytest.mark.parametrize(
    ("task", "roi", "study"),
    [
        ("infection", "truth", ["0.3656", "0.6167", "0.5642"]),
        ("lung", "none", ["0.0372", "0.9690", "0.9411"]),
    ],
)
def test_real_images_stand_beside_the_study(old, task, roi, study):
    config = (lung if task == "lung" else infection).get_config()
    save_config(config, old / "config.json", {})
    write_json(old / "results" / "test.json", make_results(task=task, roi=roi))
    page = read_page(old)
    rows = page.table("Test, family “all”, beside the study")
    words = {"truth": "true lungs", "none": "whole image"}[roi]
    assert rows == {
        f"covjax, {words}, threshold 0.5": [
            "0.3141", "0.6111 [0.5911, 0.6311]", "0.5611 [0.5411, 0.5811]",
        ],
        f"the study, {words}": study,
    }  # fmt: skip
    assert "PHANTOM" not in page.text


def test_old_run_has_a_whole_page(old):
    page = read_page(old)
    assert "Nothing of it was tuned" in page.text
    assert page.table("Families, Test")[
        "positive: mean over images whose truth is not empty"
    ] == ["0.7222 [0.7022, 0.7422]", "0.6222 [0.6022, 0.6422]"]
    assert "No audit lies in this run's folder" in page.text
    assert "flatter it" in page.text  # the true lungs
    missing = {"regions", "probe", "severity", "reliability", "lesions", "detection"}
    assert not missing & set(page.anchors())
    assert not page.images()


def test_run_of_lungs_has_a_whole_page(tmp_path):
    nothing = figure(None, None, None)
    results = make_full_results(
        0.5,
        task="lung",
        roi="none",
        n_empty=0,
        blank_rate=nothing | {"Normal": None, "Non-COVID": None},
        detection=None,
        severity=None,
        lesions=None,
    )
    save_config(lung.get_config(), tmp_path / "config.json", {})
    write_json(tmp_path / "results" / "test.json", results)
    page = read_page(tmp_path)
    assert "stage 1: a U-Net that outlines the lungs" in page.text
    assert "Blank rate" not in page.text and "flatter it" not in page.text
    assert "None" not in page.text and "nan" not in page.text.split()


def test_page_before_any_results_is_whole(tmp_path):
    save_config(infection.get_config(), tmp_path / "config.json", {})
    page = read_page(tmp_path)
    assert page.anchors() == ["run", "no-audit", "limits", "checklists", "settings"]


def test_val_alone_is_no_headline(old):
    (old / "results" / "test.json").rename(old / "results" / "val.json")
    page = read_page(old)
    assert "headline" not in page.anchors()
    assert page.table("Splits, region")["Val"][1] == "0.3141"


def test_names_from_files_are_text(old):
    nasty = '<img src=x onerror="alert(1)">&amp;'
    results = make_full_results(0.5, phantom=False)
    results["classes"] = {nasty: results["classes"]["Normal"]}
    results["operating_point"]["objective"] = nasty
    write_json(old / "results" / "test.json", results)
    page = read_page(old)
    assert nasty in page.table("By class")
    assert f"“{nasty}”" in page.text
    assert not page.images()


@pytest.mark.parametrize("name", ["config.json", "results/val.json"])
def test_file_that_is_no_json_is_named(old, name):
    (old / name).write_text("{")
    with pytest.raises(UsageError, match=re.escape(name.split("/")[-1])):
        write_report(old)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"data": 3}'),
        ("config.json", "[]"),
        ("results/test.json", "[1]"),
        ("results/test.json", json.dumps(make_full_results(0.5, lesions=3))),
        ("results/test.json", json.dumps(make_full_results(0.5, n="a"))),
        ("results/audit.json", '{"trees": [], "files": 1}'),
        ("results/test.csv", "file,class\na,b\n"),
        ("results/test.csv", "TP,FP,FN,TN,class\n1,2,3,x,Normal\n"),
    ],
)
def test_file_of_another_form_is_a_line(old, name, content):
    before = sorted(old.rglob("*"))
    (old / name).write_text(content)
    with pytest.raises(UsageError, match="not as covjax writes it") as caught:
        write_report(old)
    assert "\n" not in str(caught.value)
    assert not {*old.rglob("*")} - {*before, old / name}  # no page


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        write_report(tmp_path)


def test_checklists_hold_each_item_once():
    assert [item.number for item in CLAIM] == [str(k) for k in range(1, 45)]
    numbers = [item.number for item in TRIPOD_AI]
    assert len(set(numbers)) == len(numbers)
    tops = dict.fromkeys(int(re.sub(r"\D", "", number)) for number in numbers)
    assert list(tops) == list(range(1, 28))


def test_files_that_the_checklists_name_are_there():
    project = Path(__file__).parents[1]
    text = " ".join(item.where for item in (*CLAIM, *TRIPOD_AI))
    named = set(re.findall(r"[\w/]+\.(?:md|py)", text))
    assert named >= {"docs/data.md", "README.md"}
    assert not [name for name in named if not (project / name).exists()]


def test_checklist_answers_nothing_that_the_page_has_not(full, old):
    item = Item("1", "topic", YES, "a table", "severity")
    assert item.on({"severity"}) is item
    assert item.on({"limits"}).state == NO
    whole = full.table("CLAIM")
    assert whole["12"][1:] == [
        "answered", "files that cannot be read, masks without images",
        "Audit of the data",
    ]  # fmt: skip
    assert whole["33"][1] == "NOT answered"
    assert read_page(old).table("CLAIM")["12"][1:] == [
        "NOT answered", "this run's folder holds no file that answers it", "–",
    ]  # fmt: skip


def test_template_is_part_of_the_package():
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert json.dumps("covjax.report") + ' = ["*.j2"]' in pyproject
