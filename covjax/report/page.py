"""report.html: one file without network that shows what a run did."""

import base64
import html
import json
from pathlib import Path

from covjax.config import flatten
from covjax.files import write_whole
from covjax.report.tables import format_results

_FIGURES = {
    "qualitative.png": "Three films chosen by their truth: input, truth, output, and"
    " both outlines over the film",
    "curves.png": "Loss on Train and Val, and Dice on Val, over the steps",
}
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
         padding: 0 1rem; color: #1a1a1a; background: #fff; }}
  h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2rem }}
  pre {{ overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: .8rem }}
  img {{ max-width: 100%; height: auto }}
  table {{ border-collapse: collapse; font-size: .85rem }}
  td {{ padding: .1rem .8rem .1rem 0; border-bottom: 1px solid #ddd;
       overflow-wrap: anywhere }}
  .note {{ border-left: 4px solid #E69F00; padding-left: .8rem }}
</style>
<h1>{title}</h1>
{notes}
{results}
{figures}
<h2>Settings</h2>
<table>{settings}</table>
</html>
"""


def write_report(workdir: Path) -> Path:
    """Writes report.html from the other files of a run's folder.

    Args:
      workdir: holds config.json and whichever results and figures there are.

    Returns:
      The path of the page.
    """
    config = json.loads((workdir / "config.json").read_text())
    results = [
        json.loads(path.read_text())
        for path in sorted((workdir / "results").glob("*.json"))
    ]
    notes = ["Research software, not a medical device."]
    if any(r["phantom"] for r in results):
        notes.append("These films are PHANTOMS: drawn by a program, of no patient.")
    title = f"covjax: {config['data']['task']}, {workdir.name}"
    path = workdir / "report.html"
    write_whole(
        path,
        _PAGE.format(
            title=html.escape(title),
            notes="\n".join(f'<p class="note">{html.escape(n)}</p>' for n in notes),
            results="\n".join(
                f"<h2>{html.escape(r['split'].capitalize())}</h2>\n"
                f"<pre>{html.escape(format_results(r, workdir.name))}</pre>"
                for r in results
            ),
            figures="\n".join(
                _figure(workdir / "figures" / name, text)
                for name, text in _FIGURES.items()
                if (workdir / "figures" / name).exists()
            ),
            settings="".join(
                f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>"
                for k, v in flatten(config).items()
            ),
        ),
    )
    return path


def _figure(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<h2>{html.escape(text)}</h2>\n"
        f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
    )
