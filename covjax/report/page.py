"""report.html: one file without network that shows what a run did."""

from collections.abc import Callable
from pathlib import Path

import jinja2

from covjax.errors import expecting
from covjax.report import page_pictures, page_scores, page_sources
from covjax.report.page_parts import Section
from covjax.report.run_files import RunFiles, read_run
from covjax.runtime.files import write_whole

# In the order of the page; a section whose files are missing is left out.
SECTIONS: tuple[Callable[[RunFiles], Section | None], ...] = (
    page_scores.headline,
    page_sources.about,
    page_scores.families,
    page_scores.regions,
    page_scores.probe,
    page_pictures.samples,
    page_pictures.sheets,
    page_scores.classes,
    page_scores.lesions,
    page_scores.pixels,
    page_scores.detection,
    page_pictures.severity,
    page_pictures.reliability,
    page_pictures.training,
    page_scores.splits,
    page_sources.audit,
    page_sources.limits,
)


def write_report(workdir: Path) -> Path:
    """Writes report.html from the other files of a run's folder.

    Args:
      workdir: holds config.json and whichever results and figures there are.

    Returns:
      The path of the page.

    Raises:
      UsageError: if config.json is missing, or a file is not what its name says.
    """
    told = f"{workdir}: no report: a file there is not as covjax writes it"
    with expecting(told, jinja2.TemplateError):
        page = _render(read_run(workdir)).encode()
    path = workdir / "report.html"
    write_whole(path, page)
    return path


def _render(run: RunFiles) -> str:
    sections = [section for make in SECTIONS if (section := make(run))]
    settings = page_sources.settings(run)
    titles = {section.anchor: section.title for section in (*sections, settings)}
    sections += [page_sources.checklists(titles), settings]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of runs and files come from anybody
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        title=f"covjax: {run.task}, {run.name}", phantom=run.phantom, sections=sections
    )
