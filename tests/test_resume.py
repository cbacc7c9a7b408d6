"""Whether an image is done: by what its files hold, never by their times."""

import os
from pathlib import Path

import pytest

from covjax.predict import writer
from covjax.predict.inputs import Input
from covjax.predict.resume import KINDS, digest_outputs, is_done, remove_outputs
from covjax.predict.table import Row

# printf %s image | sha256sum; printf %s lungsinfectionoverlays | sha256sum
IMAGE = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"
OUTPUTS = "69fd870c5ef82034e50c737be11c0cb9c1df4ff06a9b2cb91ff6059c5b428981"


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "a.png").write_bytes(b"image")
    for kind in ("lungs", "infection", "overlays"):
        path = tmp_path / "out" / kind / f"a.{KINDS[kind]}"
        path.parent.mkdir(parents=True)
        path.write_text(kind)
    return tmp_path / "out"


def ask(out: Path) -> Input:
    return Input(out.parent / "a.png", "a")


def row(out: Path, **told: str) -> Row:
    digests = {"file_sha256": IMAGE, "outputs_sha256": OUTPUTS}
    return writer.make_row(ask(out), **digests | told)


def test_what_is_as_it_was_is_done_whatever_its_times(out):
    assert digest_outputs(out, ask(out)) == OUTPUTS
    assert is_done(ask(out), out, row(out))
    for path, time in [(out.parent / "a.png", 4e9), (out / "lungs" / "a.png", 0)]:
        os.utime(path, (time, time))
        assert is_done(ask(out), out, row(out))
    assert not is_done(ask(out), out, None)
    assert not is_done(ask(out), out, row(out, error="broken"))


def test_an_image_that_an_older_one_replaced_is_not_done(out):
    other = out.parent / "b.png"
    other.write_bytes(b"egami")  # of the same length
    os.utime(other, (0, 0))
    other.replace(out.parent / "a.png")
    assert not is_done(ask(out), out, row(out))
    (out.parent / "a.png").unlink()
    assert not is_done(ask(out), out, row(out))


@pytest.mark.parametrize("kind", ["lungs", "infection", "overlays"])
@pytest.mark.parametrize("content", [None, "", "?"])
def test_outputs_that_were_changed_are_not_done(out, kind, content):
    path = out / kind / f"a.{KINDS[kind]}"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
        os.utime(path, (4e9, 4e9))
    assert not is_done(ask(out), out, row(out))


def test_the_outputs_of_an_image_alone_are_removed(out):
    folder = out / "seg" / "a.dcm"  # of another image, "a.dcm/b"
    folder.mkdir(parents=True)
    (out / "lungs" / "b.png").write_text("of another image")
    remove_outputs(out, ask(out))
    remove_outputs(out, ask(out))
    left = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert left == {"seg/a.dcm", "lungs/b.png"}
