"""The page for images in a real browser, against a server of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from processes import wait_until
from tiny_networks import THRESHOLD, make_image, write_networks

pytestmark = pytest.mark.browser

_PATIENCE = 60_000  # milliseconds, where others keep the machine busy
expect.set_options(timeout=_PATIENCE)

LAST_PICTURE = "[...document.querySelectorAll('#picture img')].pop().src"


class Server(NamedTuple):
    """A process of the page, its address, its token, and where it may write."""

    process: subprocess.Popen
    url: str
    token: str
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    lung, infection = write_networks(tmp_path_factory.mktemp("networks"))
    folder = tmp_path_factory.mktemp("temporary")
    words = [f"--lung={lung}", f"--infection={infection}", "--port=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "covjax.app", *words],
        env=os.environ | {"TMPDIR": str(folder), "XLA_FLAGS": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = process.stdout.readline()
    found = re.search(r"(http://127\.0\.0\.1:\d+/)\?token=(\S+)", told)
    if found is None:
        pytest.fail(f"{told}\n{process.communicate()[1]}")
    yield Server(process, found[1], found[2], folder)
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / "ward-one.png", folder / "ward-two.png"]
    for path, seed in zip(paths, (5, 6), strict=True):
        Image.fromarray(make_image(seed, 300)).save(path)
    return paths


class Watched(NamedTuple):
    """A page, what it complained of, and what it asked for."""

    page: Page
    told: list[str]
    asked: list[Any]


def open_page(browser: Browser, server: Server, width: int) -> Watched:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(_PATIENCE)
    told, asked = [], []

    def listen(message: Any) -> None:
        if message.type == "error":
            told.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request))
    page.goto(f"{server.url}?token={server.token}")
    assert page.url == server.url  # the token is not left in the address bar
    expect(page.locator("#files button")).to_be_visible()
    return Watched(page, told, asked)


def drop(page: Page, paths: list[Path]) -> None:
    page.set_input_files("#files input[type=file]", paths)
    expect(page.locator("#said")).to_contain_text("shown")
    expect(page.locator("#picture img").last).to_be_visible()


def next_picture(page: Page, before: str) -> str:
    page.wait_for_function(f"before => {LAST_PICTURE} !== before", arg=before)
    return page.evaluate(LAST_PICTURE)


def shares(page: Page) -> list[float]:
    """The infected shares of both lungs, the right and the left, in percent."""
    told = page.locator("#figures td.number").all_inner_texts()
    numbers = re.findall(r"[\d.]+", " ".join(told))  # "over 99.9 %" is one as well
    return [float(number) for number in numbers]


def tab_to(page: Page, selector: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    pytest.fail(f"Tab does not reach {selector}")


@pytest.mark.parametrize("width", [375, 1280])
def test_page_fits_and_says_what_it_is(browser, server, radiographs, width):
    page, told, asked = open_page(browser, server, width)
    drop(page, radiographs)
    overflow = page.evaluate(
        "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    )
    assert max(overflow) <= width
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.evaluate("scrollY") > 0
    banner = page.get_by_text("Research use only: not a medical device")
    expect(banner).to_be_in_viewport(ratio=1)
    expect(page.get_by_text("PHANTOM networks")).to_be_attached()
    addresses = [request.url for request in asked]
    remote = [u for u in addresses if not u.startswith(("data:", "blob:", server.url))]
    assert told == [] and remote == [] and len(addresses) > 10
    page.close()


def test_images_are_shown_chosen_and_judged_by_keyboard(browser, server, radiographs):
    page, told, _ = open_page(browser, server, 1280)
    broken = radiographs[0].with_name("broken.png")
    broken.write_bytes(radiographs[0].read_bytes()[:200])
    drop(page, [radiographs[0], broken, radiographs[1]])
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("2 images are shown.")
    expect(alert).to_contain_text("broken.png: cannot be read as a picture")
    expect(page.locator("#figures h2")).to_have_text("ward-one.png")
    assert not [p for p in server.folder.rglob("*") if p.is_file() and p.stat().st_size]

    first, before = page.evaluate(LAST_PICTURE), shares(page)
    tab_to(page, "#image label:nth-child(2) input")
    page.keyboard.press("Space")
    expect(page.locator("#figures h2")).to_have_text("ward-two.png")
    second = next_picture(page, first)
    tab_to(page, "#image label:nth-child(1) input")
    page.keyboard.press("Space")
    assert next_picture(page, second) == first and shares(page) == before

    tab_to(page, "#threshold input[type=range]")
    page.keyboard.press("End")
    slider = page.get_by_label("range slider for Threshold of infection")
    expect(slider).to_have_value("0.99")
    high = next_picture(page, first)
    assert shares(page)[0] < before[0]
    tab_to(page, "#reset")
    page.keyboard.press("Enter")
    assert next_picture(page, high) == first and shares(page) == before
    expect(slider).to_have_value(str(THRESHOLD))

    field = page.get_by_label("number input for Threshold of infection")
    for odd in ("7", ""):  # beyond the range, and none
        field.fill(odd)
        field.press("Enter")
        page.wait_for_timeout(300)
    expect(page.get_by_text("Error")).to_have_count(0)
    field.fill(str(THRESHOLD))
    assert next_picture(page, "") == first

    tab_to(page, "#opacity input[type=range]")
    page.keyboard.press("End")
    opaque = next_picture(page, first)
    assert opaque != high and shares(page) == before
    assert page.locator("#picture img").count() == 2
    alone = page.get_by_label("Overlay alone")
    alone.check()
    page.locator("#reset").focus()
    alone.hover()
    mark = alone.evaluate("radio => getComputedStyle(radio).backgroundColor")
    assert mark != "rgb(255, 255, 255)"
    expect(page.locator("#picture img")).to_have_count(1)
    assert page.evaluate(LAST_PICTURE) == opaque
    for selector in ("#files button", "#phantoms", "#forget", "#view input"):
        tab_to(page, selector)
    for picture in page.locator("img").all():
        assert picture.get_attribute("alt")

    page.locator("#phantoms").click()
    expect(page.locator("#figures h2")).to_contain_text("PHANTOM")
    page.locator("#forget").click()
    expect(page.locator("#picture")).to_contain_text("No image yet")
    assert told == []
    page.close()


def test_a_closed_page_leaves_nothing_to_be_asked_for(browser, server, radiographs):
    page, _, asked = open_page(browser, server, 1280)
    drop(page, radiographs[:1])
    page.get_by_label("Overlay alone").check()
    expect(page.locator("#picture img")).to_have_count(1)
    body = [r for r in asked if r.url.endswith("/queue/join?")][-1].post_data
    (cookie,) = page.context.cookies()

    def ask_again() -> int:
        headers = {
            "Content-Type": "application/json",
            "Cookie": f"{cookie.get('name')}={cookie.get('value')}",
        }
        url = f"{server.url}gradio_api/queue/join"
        request = urllib.request.Request(url, body.encode(), headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert ask_again() == 200
    page.close()
    # The server sees it once the browser has given up the connection.
    assert wait_until(lambda: ask_again() == 409)


def test_a_link_of_another_site_opens_the_page(browser, server):
    page = browser.new_page()
    page.goto(f"data:text/html,<a href='{server.url}?token={server.token}'>x</a>")
    page.click("a")
    expect(page.locator("#files button")).to_be_visible()
    assert page.url == server.url
    page.close()


def test_what_cannot_be_taken_is_told_on_the_page(browser, server, tmp_path):
    page, told, _ = open_page(browser, server, 1280)
    many = [tmp_path / f"{k}.png" for k in range(101)]
    for path in many:
        path.write_bytes(b"x")
    page.set_input_files("#files input[type=file]", many)
    expect(page.get_by_text("more than 100 files at a time")).to_be_visible()
    page.close()


def test_the_server_offers_the_page_and_nothing_else(server):
    def get(path: str) -> tuple[str, dict]:
        request = urllib.request.Request(
            server.url + path, headers={"Authorization": f"Bearer {server.token}"}
        )
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode(), dict(answer.headers)

    first, headers = get("")
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert not re.findall(r'<(?:script|link)[^>]*"(https?://[^"]*)"', first)
    found = re.search(r"window\.gradio_config = (\{.*?\});", first)
    assert found is not None
    config = json.loads(found[1])
    assert config["stylesheets"] == [] and not config["analytics_enabled"]
    assert {d["api_visibility"] for d in config["dependencies"]} == {"private"}
    for path in ("docs", "config", "gradio_api/info", "gradio_api/file=/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(path)
        assert error.value.code == 404
        error.value.close()


def test_it_ends_without_a_trace(browser, server, radiographs):
    page = open_page(browser, server, 1280).page  # which keeps its connection
    drop(page, radiographs)
    process = server.process
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "covjax: ended; no image is kept\n" and "ward" not in out
    assert list(server.folder.iterdir()) == []
    page.close()
