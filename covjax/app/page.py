"""The page: its words, its controls, and what each of them asks for."""

import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
from gradio.data_classes import GradioRootModel
from gradio.themes import Default, ThemeClass

from covjax.app.decoding import PROCESSES
from covjax.app.gate import (
    Check,
    Gate,
    read_choice,
    read_index,
    read_number,
    read_uploads,
)
from covjax.app.images import LONGEST
from covjax.app.log import tell_place
from covjax.app.uploads import MOST_BYTES
from covjax.app.viewer import ALONE, BESIDE, EMPTY, MOST_IMAGES, Viewer
from covjax.predict.overlay import OPACITY

_MOST_ANSWERS = 50  # of up to 2 MB, that a page has not fetched
TITLE = "Lungs and COVID-19 infection on chest X-rays"
_STYLE = Path(__file__).with_name("style.css")

_BANNER = (
    '<div role="note"><strong>Research use only: not a medical device.</strong>'
    " Nothing here may decide about a patient.</div>"
)
_PHANTOM = (
    '<p class="phantom"><strong>PHANTOM networks:</strong> trained on synthetic images'
    " of no patient. What they find on a real image means nothing.</p>"
)
_KINDS = (
    f"<p>PNG, JPEG, TIFF, WebP, BMP or DICOM; at most {MOST_IMAGES} images at a time,"
    f" each of at most {MOST_BYTES >> 20} MiB.</p>"
)
_MEANING = f"""
<h2>What the figures mean</h2>
<ul>
<li><strong>Probability of an infection at all</strong>: how sure the second network is
that the image shows an infection by COVID-19 anywhere. Half of the published images
show one; where fewer patients have one, expect it to be too high.</li>
<li><strong>Infected share</strong>: pixels of infection above the threshold within a
lung, over the pixels of that lung, on a projection: no volume, and no grade of
severity. Measured on the image as it is shown, at most {LONGEST:,} pixels a side.</li>
<li><strong>Threshold</strong>: a pixel counts as infected if its probability is above.
The run's own was chosen on other images of the same collection; a lower one draws
more.</li>
</ul>
<h2>Limits</h2>
<p>Of the published images, those with COVID-19 and the normal ones come from different
hospitals, and the networks tell them apart by more than disease. On images of another
hospital their figures are not known. The masks they learned
from were partly drawn by machine. Lungs are looked for in whatever is given: little
that speaks against a frontal chest X-ray is noticed. More:
<code>docs/app.md</code> and <code>covjax/pretrained/README.md</code> of covjax.</p>
<h2>What is kept</h2>
<p>An image is deleted from the disk as soon as it is read, and is in memory only until
this page is closed, or another image dropped. Nothing is sent to any other machine than
the one that serves this page.</p>
"""


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a user can see change, or change."""

    files: gr.File
    phantoms: gr.Button
    forget: gr.Button
    said: gr.HTML
    radiograph: gr.Radio
    picture: gr.HTML
    figures: gr.HTML
    threshold: gr.Slider
    reset: gr.Button
    opacity: gr.Slider
    view: gr.Radio


Checks = dict[int, list[Check]]


def make_blocks(viewer: Viewer) -> tuple[gr.Blocks, Checks]:
    """Returns the page as Gradio has it, its queue bounded and its interface closed.

    Also: the number of each event, and a check for each value that comes with it.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        parts = _lay_out(viewer)
        _connect(viewer, parts)
        # For its sake, a page keeps a connection open for as long as it is open.
        blocks.unload(lambda: None)
    blocks.queue(max_size=40, default_concurrency_limit=2, api_open=False)
    # `launch` sets this. Without it, Gradio opens whatever file a client names.
    blocks.has_launched = True
    checks = {
        parts.files: read_uploads, parts.radiograph: read_index,
        parts.threshold: read_number, parts.opacity: read_number,
        parts.view: read_choice([BESIDE, ALONE]),
    }  # fmt: skip
    of_events: Checks = {
        number: [checks[control] for control in event.inputs]  # pyright: ignore
        for number, event in blocks.fns.items()
        if event.targets[0][1] != "unload"
    }
    return blocks, of_events


class _Names(GradioRootModel):
    root: list[str]


def _take_names(files: gr.File) -> gr.File:
    """Lets Gradio take the names of uploads as they are, and open no file for them."""

    def preprocess(payload: _Names | None) -> list[str]:
        return payload.root if payload else []

    files.data_model = _Names
    files.preprocess = preprocess  # pyright: ignore
    return files


def _take_any(slider: gr.Slider) -> gr.Slider:
    """Lets the field beside a slider hold any number, or none for the value at first.

    Gradio raises what has no words for a user. (Of a class derived from one of its own,
    it writes a file beside ours.)
    """

    def preprocess(payload: float | None) -> float:
        given = slider.value if payload is None else payload
        return min(max(given, slider.minimum), slider.maximum)

    slider.preprocess = preprocess
    return slider


def _lay_out(viewer: Viewer) -> _Parts:
    own = viewer.own_threshold
    phantom = _PHANTOM if viewer.segmenter.origin.phantom else ""
    gr.HTML(_BANNER, elem_id="banner")
    gr.HTML(f"<h1>{TITLE}</h1>{phantom}", elem_id="title")
    with gr.Row():
        with gr.Column(scale=7, min_width=320):
            files = _take_names(
                gr.File(
                    label="Images", file_count="multiple", height=120, elem_id="files"
                )
            )
            gr.HTML(_KINDS, elem_id="kinds")
            with gr.Row():
                phantoms = gr.Button(
                    "Show phantoms (synthetic images)", size="sm", elem_id="phantoms"
                )
                forget = gr.Button("Remove the images", size="sm", elem_id="forget")
            said = gr.HTML("", elem_id="said")
            radiograph = gr.Radio([], label="Image", visible=False, elem_id="image")
            picture = gr.HTML(EMPTY, elem_id="picture")
        with gr.Column(scale=3, min_width=320):
            figures = gr.HTML("", elem_id="figures")
            with gr.Group():
                threshold = _take_any(gr.Slider(
                    0.01, 0.99, own, step=0.01, buttons=[], elem_id="threshold",
                    label="Threshold of infection (probability)",
                    info="A lower one draws more.",
                ))  # fmt: skip
                reset = gr.Button(
                    f"The run's threshold ({own:.2f})", size="sm", elem_id="reset"
                )
                opacity = _take_any(gr.Slider(
                    0, 1, OPACITY, step=0.05, buttons=[], elem_id="opacity",
                    label="Opacity of the infection's colour",
                ))  # fmt: skip
                view = gr.Radio(
                    [BESIDE, ALONE], value=BESIDE, label="View", elem_id="view"
                )
    gr.HTML(_MEANING, elem_id="meaning")
    return _Parts(
        files, phantoms, forget, said, radiograph, picture, figures, threshold, reset,
        opacity, view,
    )  # fmt: skip


def _connect(viewer: Viewer, parts: _Parts) -> None:
    """Says what each control asks for; names are for this page alone, not an API."""

    def filled(session: str, said: str, *settings: Any) -> tuple[Any, ...]:
        choices = viewer.choices(session)
        chosen = 0 if choices else None
        radio = gr.Radio(choices, value=chosen, visible=len(choices) > 1)
        return None, said, radio, *viewer.show(session, chosen, *settings)

    def dropped(
        names: list[str],
        threshold: float,
        opacity: float,
        view: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio's own way)
    ) -> tuple[Any, ...]:
        def tell_progress(done: int, of: int) -> None:
            progress((done, of), desc="Looking at the images", unit="images")

        session = _session(request)
        said = viewer.read(names, session, tell_progress)
        return filled(session, said, threshold, opacity, view)

    def synthetic(
        threshold: float, opacity: float, view: str, request: gr.Request
    ) -> tuple[Any, ...]:
        session = _session(request)
        said = viewer.show_phantoms(session)
        return filled(session, said, threshold, opacity, view)

    def removed(
        threshold: float, opacity: float, view: str, request: gr.Request
    ) -> tuple[Any, ...]:
        session = _session(request)
        viewer.sessions.drop(session)
        return filled(session, "", threshold, opacity, view)

    def changed(
        number: int | None,
        threshold: float,
        opacity: float,
        view: str,
        request: gr.Request,
    ) -> tuple[str, str]:
        return viewer.show(_session(request), number, threshold, opacity, view)

    def back(
        number: int | None, opacity: float, view: str, request: gr.Request
    ) -> tuple[Any, ...]:
        own = viewer.own_threshold
        return own, *viewer.show(_session(request), number, own, opacity, view)

    settings = [parts.threshold, parts.opacity, parts.view]
    shown: list[Any] = [parts.picture, parts.figures]
    all_shown: list[Any] = [parts.files, parts.said, parts.radiograph, *shown]
    # A slow image of one user does not keep the others waiting.
    network: dict[str, Any] = {
        "concurrency_limit": PROCESSES, "concurrency_id": "network",
        "show_progress_on": parts.picture, "api_visibility": "private",
    }  # fmt: skip
    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    parts.files.upload(
        _careful(dropped), [parts.files, *settings], all_shown, **network
    )
    parts.phantoms.click(_careful(synthetic), settings, all_shown, **network)
    parts.forget.click(_careful(removed), settings, all_shown, **quick)
    parts.reset.click(
        _careful(back),
        [parts.radiograph, parts.opacity, parts.view],
        [parts.threshold, *shown],
        **quick,
    )
    gr.on(
        [control.input for control in (parts.radiograph, *settings)],
        _careful(changed), [parts.radiograph, *settings], shown,
        trigger_mode="always_last", **quick,
    )  # fmt: skip


def _careful(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps the text of an unforeseen error from the log, into which Gradio puts it."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            tell_place(error)
            raise gr.Error("This failed.", print_exception=False) from None

    return call


def make_theme() -> ThemeClass:
    """Returns Gradio's own theme with the fonts of the machine and more contrast."""
    theme = Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_label_text_color="*neutral_800",
        block_label_text_color_dark="*neutral_100",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def make_app(viewer: Viewer, stop: Callable[[], None]) -> Any:
    """Returns the page as an ASGI application; both networks are compiled.

    Whoever may use it, `access.guard` decides.

    Args:
      viewer: what stands behind the controls.
      stop: is called when the server shuts down, and ends what is being decoded.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        stop()  # else the event loop waits for the threads that wait for a decoder

    viewer.show_phantoms("")  # compiles before the first visitor comes
    viewer.sessions.drop("")
    closed: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    blocks, checks = make_blocks(viewer)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(**closed, lifespan=lifespan), blocks, "/", footer_links=[],
        run_history=False, app_kwargs=closed, show_error=False,
        max_file_size=MOST_BYTES, ssr_mode=False, pwa=False, mcp_server=False,
        enable_monitoring=False, theme=make_theme(), css_paths=[_STYLE],
    )  # fmt: skip

    answers = blocks._queue.pending_messages_per_session

    def is_behind(session: str) -> bool:
        return session in answers and answers[session].qsize() > _MOST_ANSWERS

    async def close(session: str) -> None:
        # Its events that wait, and answers that nobody will read.
        await blocks._queue.clean_events(session_hash=session)
        answers.pop(session, None)
        viewer.close(session)

    return Gate(app, checks, viewer.uploads, is_behind, close)
