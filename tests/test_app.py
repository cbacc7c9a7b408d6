"""The page without a browser: what it keeps, shows, says and listens to."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from covjax.app import __main__ as app
from covjax.app import decoding, images, markup, viewer
from covjax.app import sessions as sessions_file
from covjax.app.decoding import Decoder
from covjax.app.images import ViewedImage, look_at
from covjax.app.markup import figures_html, picture_html, remarks_of, told
from covjax.app.sessions import Sessions
from covjax.app.uploads import Uploads
from covjax.app.viewer import ALONE, BESIDE, Viewer, short_name
from covjax.errors import UsageError
from covjax.metrics.operating_point import OperatingPoint
from covjax.predict.postprocess import Seen
from covjax.predict.radiograph import Radiograph
from covjax.runtime.worker_process import Limits
from drawn_segmenter import POINT, drawn
from processes import wait_until
from slow_decoders import read_in_time
from tiny_networks import make_image, write_networks


def whole(side: int) -> tuple[slice, slice]:
    return slice(0, side), slice(0, side)


def hand_made(
    *, hung: bool = True, presence: float = 0.123, **others: Any
) -> ViewedImage:
    """On the picture's left a lung of 200 pixels, on its right one of 100."""
    lungs = np.zeros((40, 40), np.uint8)
    lungs[5:25, 5:15], lungs[5:15, 25:35] = 1, 1
    seen = Seen(lungs, lungs, lungs, presence)
    image = np.full((40, 40), 128, np.uint8)
    return ViewedImage("a.png", image, whole(40), seen, lungs, hung, **others)


def rows_of(html: str) -> dict[str, str]:
    return dict(
        re.findall(r'<th scope="row">([^<]*)</th><td class="number">([^<]*)</td>', html)
    )


def pictures_of(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(d)))) for d in found]


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Uploads:
    return Uploads(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def decoder(uploads: Uploads) -> Iterator[Decoder]:
    with contextlib.closing(Decoder(uploads)) as made:
        yield made


def claim(uploads: Uploads, *names: str, content: bytes | None = None) -> list[str]:
    """Uploads images, or something else, and asks for them from the page "me"."""
    png = io.BytesIO()
    Image.fromarray(make_image()).save(png, "PNG")
    content = png.getvalue() if content is None else content
    files = [(name, io.BytesIO(content), len(content)) for name in names]
    keys = uploads.add(files, "browser")
    uploads.claim(keys, "browser", "me")
    return keys


def no_progress(done: int, of: int) -> None:
    pass


def test_a_large_image_is_looked_at_in_full_and_shown_reduced(devices):
    image = np.zeros((1024, 3072), np.uint8)
    radiograph = Radiograph(
        image, (slice(0, 512), slice(768, 3072)), None, False, ("odd",)
    )
    segmenter = drawn()
    found = look_at(segmenter, radiograph, "a.png")
    # One for each device, and what lies in the box alone.
    assert segmenter.looked == [[(512, 2304)] * len(devices)]
    assert found.image.shape == (341, 1024)  # a third of each side
    assert found.box == (slice(0, 170), slice(256, 1024))
    assert found.lungs[:170, 256:].all() and found.lungs.sum() == 170 * 768
    assert not found.patient_left_on_right and found.remarks == ("odd",)
    # Half of the box's rows.
    infection = found.infection(segmenter, OperatingPoint(0.5))
    assert infection[:85, 256:].all() and infection.sum() == 85 * 768


def test_a_small_image_keeps_its_size_and_a_thin_one_its_pixels():
    radiograph = look_at(
        drawn(), Radiograph(np.ones((40, 30), np.uint8), whole(30)), "a"
    )
    assert radiograph.image.shape == (40, 30)
    thin = np.ones((4, 8192), np.uint8)
    radiograph = look_at(drawn(), Radiograph(thin, (slice(3, 4), slice(8, 9))), "a")
    assert radiograph.image.shape == (1, 1024) and radiograph.lungs.any()


@pytest.mark.parametrize("hung", [True, False])
def test_shares_are_of_the_patients_own_sides(hung):
    radiograph = hand_made(hung=hung)
    infection = np.zeros((40, 40), np.uint8)
    infection[5:10, 5:15] = 1  # 50 of 200 on the picture's left
    infection[30:, :] = 1  # outside of the lungs
    html = figures_html(radiograph, drawn(), infection, OperatingPoint(0.5))
    on_left, on_right = ("Right", "Left") if hung else ("Left", "Right")
    assert rows_of(html) == {
        "Both lungs": "16.7 %", f"{on_left} lung": "25.0 %",
        f"{on_right} lung": "0.0 %",
    }  # fmt: skip
    assert "<strong>12.3 %</strong>" in html
    assert f"the right lung is on the {'left' if hung else 'right'} of" in html


def test_little_is_not_none_and_much_not_all():
    assert markup._percent(0.0) == "0.0 %" and markup._percent(1.0) == "100.0 %"
    assert markup._percent(0.0004) == "under 0.1 %"
    assert markup._percent(0.99951) == "over 99.9 %"


def test_an_image_without_lungs_has_no_shares():
    radiograph = dataclasses.replace(hand_made(), lungs=np.zeros((40, 40), np.uint8))
    nothing = np.zeros((40, 40), np.uint8)
    html = figures_html(radiograph, drawn(), nothing, OperatingPoint(0.5))
    assert set(rows_of(html).values()) == {"not found"}
    assert "no lungs found: not a frontal chest X-ray?" in html
    # Nor can there be an infection in them, whatever the network makes of the picture.
    assert "<strong>not judged</strong>" in html and "12.3 %" not in html
    assert "threshold" not in html


def test_names_and_remarks_cannot_become_markup():
    radiograph = hand_made(remarks=("<b>x",))
    radiograph = dataclasses.replace(radiograph, name="<script>.png")
    nothing = np.zeros((40, 40), np.uint8)
    html = figures_html(radiograph, drawn(), nothing, OperatingPoint(0.5))
    html += told([("<i>", "<u>")], 1)
    assert not re.search("<(script|b|i|u)>", html) and "&lt;script&gt;.png" in html


@pytest.mark.parametrize(
    ("limit", "said"), [(0.0405, "Infection is drawn from 4.0 % on."), (0.0, None)]
)
def test_the_limit_stands_beside_the_probability(limit, said):
    point, nothing = OperatingPoint(0.5, presence=limit), np.zeros((40, 40), np.uint8)
    html = figures_html(hand_made(presence=0.5), drawn(), nothing, point)
    assert ("is drawn from" in html) == (said is not None) and (said or "") in html


def test_figures_of_a_synthetic_image_are_said_to_mean_nothing():
    def said(phantom: bool, networks: bool) -> bool:
        radiograph, some = hand_made(phantom=phantom), np.ones((40, 40), np.uint8)
        remarks = remarks_of(radiograph, drawn(phantom=networks), some, POINT)
        return any("a synthetic image" in remark for remark in remarks)

    assert said(True, False)
    assert not said(True, True) and not said(False, False)


def test_remarks_tell_why_nothing_is_drawn():
    nothing = np.zeros((40, 40), np.uint8)
    some = np.ones((40, 40), np.uint8)

    def said(presence: float, infection: np.ndarray) -> list[str]:
        radiograph = hand_made(presence=presence)
        remarks = remarks_of(radiograph, drawn(), infection, POINT)
        assert remarks[:2] == ["40 x 40 pixels", "little contrast"]
        (last,) = (k for k, one in enumerate(remarks) if one.endswith("chest X-ray?"))
        return remarks[last + 1 :]

    assert said(0.25, some) == ["of another run"]  # at the limit it is drawn
    assert "below the run's limit of 25.0 %" in said(0.249, nothing)[1]
    assert "no area above the threshold is large enough" in said(0.5, nothing)[1]
    assert len(said(0.249, nothing)) == len(said(0.5, nothing)) == 2


def test_opacity_is_of_the_infection_and_the_image_stands_beside():
    radiograph, infection = hand_made(), np.zeros((40, 40), np.uint8)
    infection[10:20, 5:15] = 1
    shown = {
        opacity: pictures_of(
            picture_html(radiograph, drawn(), infection, opacity=opacity, beside=True)
        )
        for opacity in (0.0, 1.0)
    }
    for bare, over in shown.values():
        assert np.abs(bare.astype(int) - 128).max() <= 3  # JPEG
        assert np.abs(over[30:, 18:22].astype(int) - 128).max() <= 12
    inside = [shown[opacity][1][13:17, 8:12].mean(axis=(0, 1)) for opacity in (0.0, 1)]
    assert np.abs(inside[0] - 128).max() < 15
    assert inside[1][0] - inside[1][2] > 60  # orange: more red than blue
    alone = picture_html(radiograph, drawn(), infection, opacity=0.5, beside=False)
    assert len(pictures_of(alone)) == 1


def test_phantoms_and_networks_of_phantoms_are_written_on():
    radiograph = ViewedImage("a", *look(200), np.zeros((200, 200), np.uint8))
    nothing = np.zeros((200, 200), np.uint8)

    def whites(radiograph: ViewedImage, segmenter: Any) -> list[bool]:
        html = picture_html(radiograph, segmenter, nothing, opacity=0.3, beside=True)
        return [bool((picture > 200).any()) for picture in pictures_of(html)]

    phantom = dataclasses.replace(radiograph, phantom=True)
    assert whites(radiograph, drawn()) == [False, False]
    assert whites(phantom, drawn()) == [True, True]
    assert whites(radiograph, drawn(phantom=True)) == [False, True]
    assert all(name.startswith("PHANTOM") for name, _ in images.draw_phantoms())


def look(side: int) -> tuple[np.ndarray, Any, Seen]:
    level = np.zeros((4, 4), np.uint8)
    image = np.full((side, side), 60, np.uint8)
    return image, whole(side), Seen(level, level, level, 0.5)


def test_a_drop_shows_what_can_be_read_and_leaves_no_file(uploads, decoder):
    viewing = Viewer(drawn(), uploads, decoder)
    one, two, three = claim(uploads, "one.png", "two.png", "three.png")
    (broken,) = claim(uploads, "<broken>.png", content=b"\x89PNG\r\n\x1a\nxxxx")
    steps = []
    keys = [one, broken, two]
    said = viewing.read(keys, "me", lambda *step: steps.append(step))
    assert steps == [(0, 3), (1, 3), (2, 3)]
    assert not list(uploads._folder.iterdir())
    assert viewing.choices("me") == [("1: one.png", 0), ("2: two.png", 1)]
    assert viewing.choices("you") == []
    assert "2 images are shown." in said and 'role="alert"' in said
    assert "&lt;broken&gt;.png: cannot be read as a picture" in said
    assert str(uploads._folder) not in said and said.count("Not shown") == 1
    # Nobody reads an upload twice, nor one that another page has claimed.
    said = viewing.read([one, three], "you", no_progress)
    assert said.count("the upload is no longer kept") == 2 and "three" not in said
    # The next drop takes their place.
    viewing.read([three], "me", no_progress)
    assert viewing.choices("me") == [("1: three.png", 0)]


def test_an_image_that_takes_too_much_is_ended_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        decoding, "IMAGE_LIMITS", Limits(seconds=60, wall=3, memory=2**31)
    )
    monkeypatch.setattr(decoding, "read_radiograph", read_in_time)
    uploads = Uploads(tmp_path)
    with contextlib.closing(Decoder(uploads)) as decoder:
        viewing = Viewer(drawn(), uploads, decoder)
        keys = claim(uploads, "slow.png", content=b"wait /nowhere")
        said = viewing.read(keys, "me", no_progress)
        assert "slow.png: cannot be decoded: its process took more than 3 s" in said
        keys = claim(uploads, "greedy.png", content=b"greedy ")
        said = viewing.read(keys, "me", no_progress)
    assert "greedy.png: cannot be decoded: it needs too much memory" in said
    assert not list(tmp_path.iterdir())


def test_what_is_being_decoded_does_not_keep_the_server_from_ending(
    tmp_path, monkeypatch
):
    limits = Limits(seconds=60, wall=5, memory=2**31)
    monkeypatch.setattr(decoding, "IMAGE_LIMITS", limits)
    monkeypatch.setattr(decoding, "read_radiograph", read_in_time)
    uploads = Uploads(tmp_path)
    decoder = Decoder(uploads)
    content = f"wait {tmp_path / 'never'}".encode()
    viewing = Viewer(drawn(), uploads, decoder)
    names = claim(uploads, "slow.png", "next.png", content=content)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        asked = thread.submit(viewing.read, names, "me", no_progress)
        assert wait_until(lambda: any(w._process for w in decoder._workers))
        decoder.close()
        # It was killed; it did not come to the end of its time.
        assert "slow.png: cannot be decoded: its process was killed" in asked.result()
        assert "next.png: the server is shutting down" in asked.result()
    assert not [*tmp_path.iterdir()]


def test_images_beyond_the_most_are_deleted_unread(uploads, decoder, monkeypatch):
    monkeypatch.setattr(viewer, "MOST_IMAGES", 2)
    segmenter = drawn()
    keys = claim(uploads, *"abcd")
    files = [uploads._waiting[key].file for key in keys]
    said = Viewer(segmenter, uploads, decoder).read(keys, "me", no_progress)
    assert said.count("more than 2 images at a time") == 2 and "2 images are" in said
    assert len(segmenter.looked) == 2 and all(file.closed for file in files)


def test_an_image_is_deleted_when_something_unforeseen_happens(uploads, decoder):
    segmenter = drawn()
    segmenter.look = None
    keys = claim(uploads, "a.png", "b.png")
    files = [uploads._waiting[key].file for key in keys]
    with pytest.raises(TypeError):
        Viewer(segmenter, uploads, decoder).read(keys, "me", no_progress)
    assert all(file.closed for file in files)
    assert not list(uploads._folder.iterdir())


def test_the_threshold_asks_no_network_and_the_runs_own_is_exact(uploads, decoder):
    segmenter = drawn()
    viewing = Viewer(segmenter, uploads, decoder)
    viewing.read(claim(uploads, "a.png"), "me", no_progress)
    assert viewing.own_threshold == 0.33
    own = viewing.show("me", 0, 0.33, 0.3, BESIDE)
    other = viewing.show("me", 0, 0.75, 0.3, ALONE)
    assert segmenter.asked == [POINT, dataclasses.replace(POINT, threshold=0.75)]
    assert len(segmenter.looked) == 1
    # 128 rows, of which round(128 * .667) = 85 and 32.
    assert rows_of(own[1])["Both lungs"] == "66.4 %"
    assert rows_of(other[1])["Both lungs"] == "25.0 %"
    assert [html[0].count("<img") for html in (own, other)] == [2, 1]


def test_images_that_are_gone_are_asked_for_again(uploads, decoder):
    viewing = Viewer(drawn(), uploads, decoder)
    assert "no longer kept" in viewing.show("me", 0, 0.5, 0.3, BESIDE)[0]
    assert "No image yet" in viewing.show("me", None, 0.5, 0.3, BESIDE)[0]
    with pytest.raises(ValueError, match="lungs alone"):
        Viewer(drawn(infection=None), uploads, decoder)


def test_a_page_in_use_keeps_its_images_whoever_else_comes(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(sessions_file.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sessions_file, "PAGES", 4)
    monkeypatch.setattr(sessions_file, "PAGES_EACH", 2)
    sessions, some = Sessions(), [hand_made()]
    for name in ("anna.1", "anna.2", "bert.1", "carl.1"):
        sessions.start(name)
        sessions.keep(name, some)
    now[0] += 899
    with pytest.raises(UsageError, match="4 pages show images already"):
        sessions.start("dora.1")
    assert sessions.radiographs("anna.1") == some  # which is used now
    # Invented pages of one browser push out that browser's own alone.
    for k in range(9):
        sessions.start(f"anna.x{k}")
    assert [sessions.radiographs(f"anna.x{k}") for k in (7, 8)] == [[], []]
    assert len(sessions._images) == 4 and sessions.radiographs("anna.1") == []
    assert sessions.radiographs("carl.1") == some
    now[0] += 899  # since bert.1 was last used, 1798; since carl.1, 899
    sessions.start("dora.1")
    assert (
        sessions.radiographs("bert.1") == [] and sessions.radiographs("carl.1") == some
    )


def test_a_session_keeps_no_more_than_is_shown():
    sessions, some = Sessions(), [hand_made()]
    sessions.start("a.1")
    sessions.keep("a.1", some)
    sessions.start("a.1")  # and drops another image on the page
    assert sessions.radiographs("a.1") == []
    sessions.drop("a.1")
    sessions.keep("a.1", some)  # its page was closed meanwhile
    assert sessions.radiographs("a.1") == []


def test_names_are_short_and_printable():
    assert short_name("/tmp/x/a.png") == "a.png"
    assert short_name("a\nb.png") == "a?b.png"
    name = short_name("a" * 60 + "b" * 60)
    assert name == "a" * 19 + "…" + "b" * 19


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    lung, infection = write_networks(tmp_path_factory.mktemp("networks"))
    return [f"--lung={lung}", f"--infection={infection}"]


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True), ("localhost", False)]
)
def test_the_folder_of_uploads_is_private_and_gone_at_the_end(
    networks, host, warned, monkeypatch, capsys
):
    seen = {}

    def served(made: Any, listening: socket.socket) -> None:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        (folder / "left").write_bytes(b"image")
        seen["folder"], seen["mode"] = folder, folder.stat().st_mode & 0o777
        seen["at"] = listening.getsockname()

    page = SimpleNamespace(make_app=lambda viewer, _: viewer)  # without Gradio
    monkeypatch.setitem(sys.modules, "covjax.app.page", page)
    monkeypatch.setattr(app, "_run", served)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/elsewhere")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    assert app.main([*networks, f"--host={host}", "--port=0"]) == 0
    assert seen["mode"] == 0o700 and not seen["folder"].exists()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    out, err = capsys.readouterr()
    # An address that a browser can open, and that is surely this server's.
    at = f"http://127.0.0.1:{seen['at'][1]}/"
    assert re.fullmatch(rf"covjax: {at}\?token=[\w-]{{32}} \(Ctrl-C ends it\)\n", out)
    assert ("nothing is encrypted" in err) == warned
    assert (seen["at"][0] == "127.0.0.1") != warned


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_leaves_no_upload(networks, monkeypatch, ignored):
    seen = []

    def served(made: Any, listening: socket.socket) -> None:
        seen.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        (seen[0] / "left").write_bytes(b"image")
        os.kill(os.getpid(), signal.SIGHUP)
        seen.append("went on")

    page = SimpleNamespace(make_app=lambda viewer, _: viewer)  # without Gradio
    monkeypatch.setitem(sys.modules, "covjax.app.page", page)
    monkeypatch.setattr(app, "_run", served)
    told = signal.SIG_IGN if ignored else lambda *_: None
    before = signal.signal(signal.SIGHUP, told)
    try:
        assert app.main([*networks, "--port=0"]) == (0 if ignored else 143)
        assert signal.getsignal(signal.SIGHUP) == told
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(seen) == 1 + ignored and not seen[0].exists()


def test_a_token_that_was_given_is_not_printed(networks, monkeypatch, capsys):
    page = SimpleNamespace(make_app=lambda viewer, _: viewer)
    monkeypatch.setitem(sys.modules, "covjax.app.page", page)
    monkeypatch.setattr(app, "_run", lambda *_: None)
    monkeypatch.setenv("COVJAX_APP_TOKEN", "0123456789abcdef")
    assert app.main([*networks, "--port=0"]) == 0
    out, err = capsys.readouterr()
    assert "?token=$COVJAX_APP_TOKEN (" in out and "0123456789" not in out + err
    monkeypatch.setenv("COVJAX_APP_TOKEN", "0123456789abcde")
    said = one_line(networks, capsys)
    assert "COVJAX_APP_TOKEN: give at least 16" in said and "0123" not in said
    for mark in ("+", "&", "#", "%", " ", "é", "\udcff", "\n"):
        monkeypatch.setenv("COVJAX_APP_TOKEN", f"0123456789abcdef{mark}")
        said = one_line([*networks, "--port=0"], capsys)
        assert "COVJAX_APP_TOKEN: only letters, digits" in said and "0123" not in said


def test_what_libraries_log_is_not_printed(networks, monkeypatch):
    # Orbax has logging print to stderr.
    root, printed = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(printed)])
    page = SimpleNamespace(make_app=lambda *_: None)  # without Gradio
    monkeypatch.setitem(sys.modules, "covjax.app.page", page)
    logger = logging.getLogger("decoder")
    monkeypatch.setattr(app, "_run", lambda *_: logger.error("patient-mueller"))
    assert app.main([*networks, "--port=0"]) == 0
    assert printed.getvalue() == ""


def one_line(words: list[str], capsys: Any) -> str:
    assert app.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_what_is_missing_is_said_in_one_line(networks, tmp_path, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"--port={taken.getsockname()[1]}"
        said = one_line([*networks, port], capsys)
    assert port in said and "in use" in said and "--port=0" in said
    assert "--port=70000" in one_line([*networks, "--port=70000"], capsys)
    assert "--host=nowhere.invalid" in one_line(["--host=nowhere.invalid"], capsys)
    said = one_line([f"--lung={tmp_path / 'none'}", "--port=0"], capsys)
    assert f"{tmp_path / 'none'}: neither a run" in said
    said = one_line([networks[0].replace("--lung", "--infection"), "--port=0"], capsys)
    assert "where --infection needs one that finds infection" in said
    for name in ("*", "a.example:80", "https://a.example"):
        said = one_line([f"--allowed_host={name}"], capsys)
        assert f"--allowed_host={name}: give a host's name" in said
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'covjax[app]'" in one_line(networks, capsys)
