"""Every kind of fault is put into a small set by hand, and must be found there."""

import collections
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covjax.data import covidqu
from covjax.data.audit import audit, leakage, near_duplicates
from covjax.errors import DataError

SIDE = 96
LUNGS = np.zeros((SIDE, SIDE), np.uint8)
LUNGS[20:80, 10:40] = LUNGS[20:80, 56:86] = 255
INFECTION = np.zeros_like(LUNGS)
INFECTION[50:70, 15:35] = 255
EMPTY = np.zeros_like(LUNGS)


def make_image(seed: int, texture_share: float = 0.3) -> np.ndarray:
    """One body for all images (dark lungs), and a texture of each one's own."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8))
    texture = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (40 + texture_share * texture + 80 * (LUNGS == 0)).astype(np.uint8)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@dataclasses.dataclass
class Set:
    """A data set under a folder, one image after another."""

    root: Path

    def path(self, place: str, kind: str) -> Path:
        """Path of one file of "infection/Test/COVID-19/a.png"."""
        task, split, label, name = place.split("/")
        return self.root / covidqu.TREES[task] / split / label / kind / name

    def add(
        self,
        place: str,
        sample: np.ndarray,
        lungs: np.ndarray = LUNGS,
        infection: np.ndarray | None = None,
    ) -> None:
        if infection is None:
            infection = INFECTION if "COVID-19" in place else EMPTY
        write(self.path(place, "images"), sample)
        write(self.path(place, "lung masks"), lungs)
        if place.startswith("infection"):
            write(self.path(place, "infection masks"), infection)

    def below(self, place: str, kind: str) -> str:
        return self.path(place, kind).relative_to(self.root).as_posix()


@pytest.fixture
def samples(tmp_path) -> Set:
    """A clean set: 9 images that differ, one for every split and class."""
    data = Set(tmp_path / "set")
    for k, split in enumerate(covidqu.SPLITS):
        for n, label in enumerate(covidqu.CLASSES):
            data.add(f"infection/{split}/{label}/image.png", make_image(3 * k + n))
    return data


def faults(findings: dict) -> dict:
    return {kind: found for kind, found in findings["files"].items() if found}


def pairs(twins: dict) -> dict:
    return {tuple(row["parts"]): (row["pairs"], row["leak"]) for row in twins["pairs"]}


A = "infection/Train/COVID-19/a.png"
B = "infection/Test/Normal/b.png"


def test_clean_set_has_no_findings(samples):
    findings = audit.audit(samples.root)
    assert faults(findings) == {}
    assert findings["identical"] == {"pairs": [], "across_splits": []}
    assert findings["near"] == {"pairs": [], "across_splits": []}
    assert findings["seen_before"] == {}
    assert not findings["phantom"]
    assert list(findings["trees"]) == ["infection"]
    tree = findings["trees"]["infection"]
    assert tree["images"]["Test"] == {"COVID-19": 1, "Non-COVID": 1, "Normal": 1}
    assert tree["published"]["Test"] == {
        "COVID-19": 583,
        "Non-COVID": 292,
        "Normal": 291,
    }


def test_published_counts_are_the_study_s():
    totals = {
        task: [sum(splits[split]) for split in covidqu.SPLITS]
        for task, splits in audit.PUBLISHED.items()
    }
    assert totals == {"lung": [21715, 5417, 6788], "infection": [3728, 932, 1166]}
    by_class = {
        task: [sum(counts) for counts in zip(*splits.values(), strict=True)]
        for task, splits in audit.PUBLISHED.items()
    }
    assert by_class == {"lung": [11956, 11263, 10701], "infection": [2913, 1457, 1456]}


def test_broken_files_are_found_and_do_not_stop_it(samples):
    samples.add(A, make_image(50))
    samples.add(B, make_image(51))
    broken = samples.path(A, "images"), samples.path(B, "lung masks")
    broken[0].write_bytes(broken[0].read_bytes()[:200])
    broken[1].write_bytes(b"")
    found = faults(audit.audit(samples.root))
    assert list(found) == ["unreadable"]
    paths = [what["path"] for what in found["unreadable"]]
    assert paths == [samples.below(A, "images"), samples.below(B, "lung masks")]
    assert all("cannot be read" in what["reason"] for what in found["unreadable"])


def test_missing_surplus_and_doubled_files_are_found(samples):
    samples.add(A, make_image(50))
    samples.add(B, make_image(51))
    samples.path(A, "infection masks").unlink()
    samples.path(B, "images").unlink()
    twice = samples.path(A, "images").with_suffix(".jpg")
    write(twice, make_image(52))
    findings = audit.audit(samples.root)
    # a.jpg comes before a.png: the image is a.jpg, and a.png is the one too much.
    assert faults(findings) == {
        "same_name": [{"path": samples.below(A, "images"), "other": "a.jpg"}],
        "missing_mask": [
            {
                "path": twice.relative_to(samples.root).as_posix(),
                "mask": "infection masks",
            }
        ],
        "surplus_mask": [
            {"path": samples.below(B, "lung masks")},
            {"path": samples.below(B, "infection masks")},
        ],
    }
    assert findings["trees"]["infection"]["images"]["Train"]["COVID-19"] == 2


def test_masks_of_wrong_size_and_values_are_found(samples):
    grey = LUNGS.copy()
    grey[20, 10:13] = 128, 128, 1
    samples.add(A, make_image(50), lungs=grey)
    samples.add(B, make_image(51), lungs=LUNGS[:50])
    assert faults(audit.audit(samples.root)) == {
        "size_differs": [
            {
                "path": samples.below(B, "lung masks"),
                "size": [96, 50],
                "image": [96, 96],
            }
        ],
        "not_binary": [
            {"path": samples.below(A, "lung masks"), "pixels": 3, "values": [1, 128]}
        ],
    }


def test_infection_where_it_should_not_be_is_found(samples):
    outside = INFECTION.copy()
    outside[0, :7] = 255
    samples.add(A, make_image(50), infection=outside)
    samples.add(B, make_image(51), infection=INFECTION)
    C = "infection/Val/COVID-19/c.png"
    samples.add(C, make_image(52), infection=EMPTY)
    assert faults(audit.audit(samples.root)) == {
        "infection_outside_lungs": [
            {"path": samples.below(A, "infection masks"), "pixels": 7}
        ],
        "covid_without_infection": [{"path": samples.below(C, "infection masks")}],
        "infection_in_others": [
            {"path": samples.below(B, "infection masks"), "pixels": 400}
        ],
    }


def test_identical_images_are_counted_by_where_they_stand(samples):
    sample = make_image(0)  # also infection/Train/COVID-19/image.png
    samples.add("infection/Test/COVID-19/b.png", sample)
    samples.add("infection/Train/COVID-19/c.png", sample)
    samples.add("lung/Val/COVID-19/d.png", sample)
    # The same pixels in another kind of file.
    Image.fromarray(sample).convert("RGB").save(
        samples.path("lung/Val/COVID-19/d.png", "images")
    )
    findings = audit.audit(samples.root)
    assert pairs(findings["identical"]) == {
        ("lung/Val", "infection/Train"): (2, False),
        ("lung/Val", "infection/Test"): (1, True),
        ("infection/Train", "infection/Train"): (1, False),
        ("infection/Train", "infection/Test"): (2, True),
    }
    assert findings["identical"]["across_splits"] == [
        {
            "images": [
                "lung/Val/COVID-19/d.png",
                "infection/Train/COVID-19/c.png",
                "infection/Train/COVID-19/image.png",
                "infection/Test/COVID-19/b.png",
            ]
        }
    ]
    # b is one image, whichever of its three twins was seen.
    assert findings["seen_before"] == {"infection/Test": {"identical": 1, "near": 0}}
    assert findings["near"]["pairs"] == []


def test_same_split_of_both_trees_is_only_counted(samples):
    for split in covidqu.SPLITS:
        place = f"{split}/COVID-19/image.png"
        sample = np.asarray(Image.open(samples.path(f"infection/{place}", "images")))
        samples.add(f"lung/{place}", sample)
    findings = audit.audit(samples.root)
    assert pairs(findings["identical"]) == {
        (f"lung/{split}", f"infection/{split}"): (1, False) for split in covidqu.SPLITS
    }
    assert findings["identical"]["across_splits"] == []


def test_what_leaks_into_what():
    parts = [f"{task}/{split}" for task in covidqu.TASKS for split in covidqu.SPLITS]
    seen = collections.defaultdict(set)
    for earlier in parts:
        for later in parts:
            if leakage.is_leak(earlier, later):
                seen[later].add(earlier)
    assert seen == {
        "lung/Val": {"lung/Train"},
        "lung/Test": {"lung/Train", "lung/Val"},
        "infection/Val": {"lung/Train", "infection/Train"},
        "infection/Test": {
            "lung/Train",
            "lung/Val",
            "infection/Train",
            "infection/Val",
        },
    }


def compress(sample: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(sample).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer))


CHANGES = {
    "brighter": lambda sample: sample + 30,
    "contrast": lambda sample: (sample * 0.6 + 20).astype(np.uint8),
    "compressed": compress,
    "one pixel aside": lambda sample: np.roll(sample, 1, axis=1),
    "two pixels down": lambda sample: np.roll(sample, 2, axis=0),
    "doubled in size": lambda sample: np.kron(sample, np.ones((2, 2), np.uint8)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_near_twin_is_found(samples, change):
    twin = "infection/Test/Normal/twin.png"
    sample = change(make_image(2))  # infection/Train/Normal/image.png
    size = sample.shape[0]
    samples.add(twin, sample, EMPTY if size == SIDE else np.zeros_like(sample))
    near = audit.audit(samples.root)["near"]
    assert pairs(near) == {("infection/Train", "infection/Test"): (1, True)}
    (couple,) = near["across_splits"]
    assert couple["first"] == ["infection/Train/Normal/image.png"]
    assert couple["second"] == [twin]
    assert couple["correlation"] >= near_duplicates.MATCH


def test_strangers_with_one_body_are_not_flagged():
    strangers = np.stack([make_image(seed, 0.1) for seed in range(100)])
    bodies = strangers.reshape(100, -1).astype(float)
    assert np.corrcoef(bodies).min() > 0.95  # a plain correlation would flag them
    thumbnails = [near_duplicates.make_thumbnail(sample) for sample in strangers]
    assert near_duplicates.find_near_duplicates(np.stack(thumbnails)) == []


def test_images_alike_only_when_blurred_are_not_flagged():
    noise = np.random.default_rng(0).normal(0, 1, (2, 64, 64))
    sample = near_duplicates.make_thumbnail(make_image(0)).astype(float)
    quiet, loud = (np.clip(sample + amount * noise, 0, 255) for amount in (2, 14))
    found = near_duplicates.find_near_duplicates(quiet.astype(np.uint8))
    assert [pair[:2] for pair in found] == [(0, 1)]
    assert near_duplicates.find_near_duplicates(loud.astype(np.uint8)) == []


def test_pairs_are_named_in_order_of_stage_and_split():
    def place(part: str, name: str) -> leakage.Place:
        task, split = part.split("/")
        return leakage.Place(task, split, "Normal", name)

    pictures = [
        [place("lung/Train", "a"), place("infection/Test", "b")],
        [place("lung/Val", "c")],
        [place("infection/Test", "d")],
    ]
    found = leakage.find_leaks(pictures, [(0, 1, 0.85), (0, 2, 0.951)])
    assert pairs(found["near"]) == {
        ("lung/Train", "lung/Val"): (1, True),
        ("lung/Train", "infection/Test"): (1, True),
        ("lung/Val", "infection/Test"): (1, True),  # b stands before c in the lists
        ("infection/Test", "infection/Test"): (1, False),
    }
    assert [c["correlation"] for c in found["near"]["across_splits"]] == [0.951, 0.85]
    assert found["seen_before"] == {
        "lung/Val": {"identical": 0, "near": 1},
        "infection/Test": {"identical": 1, "near": 2},
    }


def test_noise_and_blank_images_are_not_flagged():
    side = near_duplicates.SIDE
    noise = np.random.default_rng(0).integers(0, 256, (50, side, side), np.uint8)
    blank = np.stack([np.full((side, side), grey, np.uint8) for grey in (0, 9, 255)])
    found = near_duplicates.find_near_duplicates(np.concatenate([noise, blank]))
    assert found == []
    assert near_duplicates.find_near_duplicates(noise[:0]) == []


def test_twins_are_found_across_blocks_of_rows(monkeypatch):
    samples = np.stack(
        [near_duplicates.make_thumbnail(make_image(k)) for k in range(12)]
    )
    samples[11] = samples[1] + 5
    samples[7] = samples[6] + 5
    monkeypatch.setattr(near_duplicates, "_ROWS", 5)
    monkeypatch.setattr(near_duplicates, "_SAMPLES", 5)
    monkeypatch.setattr(near_duplicates, "_PAIRS", 1)
    found = near_duplicates.find_near_duplicates(samples)
    assert [pair[:2] for pair in found] == [(1, 11), (6, 7)]


def test_difference_hash_of_ramps():
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    ones = np.uint64(2**64 - 1)
    assert near_duplicates.difference_hash(ramp).tolist() == [ones, 0]
    assert near_duplicates.difference_hash(ramp.T).tolist() == [0, ones]
    assert near_duplicates.difference_hash(ramp[:, ::-1]).tolist() == [0, 0]


def test_command_prints_the_report_and_writes_json(samples, tmp_path, capsys):
    (samples.root / covidqu.PHANTOM_MARKER).write_text("{}")
    for k in range(audit.LISTED + 3):
        samples.add(
            f"infection/Val/COVID-19/{k:02}.png", make_image(99 + k), infection=EMPTY
        )
    path = tmp_path / "out.json"
    assert audit.main([str(samples.root), "--json", str(path)]) == 0
    findings = audit.audit(samples.root)
    assert json.loads(path.read_text()) == findings
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["out.json"]
    out = capsys.readouterr().out
    assert out == audit.format_report(findings) + "\n"
    assert "phantom set" in out
    assert "Lung Segmentation Data: not there" in out
    assert "16 / 466" in out and "differs" not in out
    assert "15  COVID-19 images with an empty infection mask" in out
    assert "11.png" in out and "12.png" not in out
    assert "and 3 more" in out


def test_report_shows_leaks(samples):
    samples.add("lung/Train/Normal/x.png", make_image(8) + 20)  # Test/Normal/image.png
    samples.add(
        "infection/Test/COVID-19/y.png", make_image(0)
    )  # Train/COVID-19/image.png
    report = audit.format_report(audit.audit(samples.root))
    assert report.count("differs") == 6  # of the splits in two trees: all
    assert "1  lung/Train - infection/Test  leak" in report
    assert "lung/Train/Normal/x.png ~ infection/Test/Normal/image.png" in report
    first = "infection/Train/COVID-19/image.png"
    assert f"{first} = infection/Test/COVID-19/y.png" in report
    assert "infection/Test: 1 identical, 1 near-identical, of 4" in report


def test_progress_counts_images(samples):
    seen = []
    audit.audit(samples.root, lambda done, total: seen.append((done, total)))
    assert seen == [(k, 9) for k in range(1, 10)]


def test_nothing_to_audit_is_a_usage_error(tmp_path, capsys):
    assert audit.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert audit.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "Lung Segmentation Data" in error and "Infection Segmentation Data" in error
    with pytest.raises(DataError):
        audit.audit(tmp_path)


def test_json_goes_nowhere_or_whole(samples, tmp_path, capsys, monkeypatch):
    assert (
        audit.main([str(samples.root), "--json", str(tmp_path / "no" / "f.json")]) == 2
    )
    assert capsys.readouterr().out == ""  # told before the reading
    path = tmp_path / "f.json"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert audit.main([str(samples.root), "--json", str(path)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["f.json"]


@pytest.fixture
def audited(tmp_path, monkeypatch) -> list[Path]:
    """Folders that are audited from here on; the cache is empty."""
    monkeypatch.setenv("COVJAX_CACHE", str(tmp_path / "cache"))
    folders = []
    run = audit.audit_with_bar

    def note(root: Path):
        folders.append(root)
        return run(root)

    monkeypatch.setattr(audit, "audit_with_bar", note)
    return folders


def test_the_same_files_are_audited_once(samples, audited):
    first = audit.audit_once(samples.root)
    assert audit.audit_once(samples.root) == first == audit.audit(samples.root)
    moved = samples.root.rename(samples.root.with_name("moved"))
    assert audit.audit_once(moved) == first | {"root": str(moved)}
    assert len(audited) == 1


@pytest.mark.parametrize("change", ["pixels", "time", "less", "more"])
def test_changed_files_are_audited_again(samples, audited, change):
    before = audit.audit_once(samples.root)
    path = samples.path("infection/Test/COVID-19/c.png", "images")
    again = sorted(samples.root.rglob("*.png"))[0]
    if change == "pixels":
        again.write_bytes(again.read_bytes()[:-30])
    elif change == "time":
        os.utime(again, ns=(1, 1))
    elif change == "less":
        again.unlink()
    else:
        write(path, make_image(99))
    after = audit.audit_once(samples.root)
    assert len(audited) == 2
    assert (after == before) == (change == "time")


def test_a_cached_audit_that_is_not_whole_is_made_again(samples, audited, tmp_path):
    whole = audit.audit_once(samples.root)
    (path,) = (tmp_path / "cache" / "audits").iterdir()
    for content in ("", "{", "[]"):
        path.write_text(content)
        assert audit.audit_once(samples.root) == whole
    assert len(audited) == 4


def test_without_a_cache_the_audit_is_made(samples, audited, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert audit.audit_once(samples.root) == audit.audit_once(samples.root)
    assert len(audited) == 2
