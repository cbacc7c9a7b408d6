"""The report page in a real browser: no error, no request, no picture or text lost."""

from pathlib import Path

import pytest

from configs import infection
from covjax.config import save_config
from covjax.report.page import write_report
from covjax.run import evaluate_run
from evaluated_run import write_two_runs
from finished_run import write_finished_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=["full", "evaluated", "bare"])
def report(request, tmp_path_factory) -> tuple[Path, int]:
    """A page, and how many pictures it has to show."""
    workdir = tmp_path_factory.mktemp("run") / ("a<b>&c-" + 12 * "long")
    if request.param == "full":
        return write_report(write_finished_run(workdir)), 7
    if request.param == "evaluated":  # as an evaluation leaves it; nothing was trained
        _, run = write_two_runs(workdir)
        evaluate_run(run, "Test")
        return run / "report.html", 6
    save_config(infection.get_config(), workdir / "config.json", {})
    return write_report(workdir), 0


@pytest.mark.parametrize("width", [375, 1280])
def test_page_is_whole_and_fits(browser, report, width):
    path, n_pictures = report
    page = browser.new_page(viewport={"width": width, "height": 800})
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("requestfailed", lambda request: told.append(request.url[:80]))
    page.on("request", lambda request: asked.append(request.url[:80]))
    page.goto(path.as_uri())
    pictures = page.evaluate(
        "Promise.all([...document.images].map("
        "i => i.decode().then(() => i.naturalWidth, () => 0)))"
    )
    assert len(pictures) == n_pictures and all(w > 0 for w in pictures)
    assert told == []
    assert [u for u in asked if not u.startswith("data:")] == [path.as_uri()[:80]]
    overflow = page.evaluate(
        "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    )
    assert max(overflow) <= width
    page.close()
