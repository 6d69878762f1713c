"""The page in the browser, `jaxcam app`: the only importer of gradio.

What it shows is computed by `_visit`; here is where it stands and what happens when it is touched. Nothing that the
page needs comes from another machine, and nothing is sent to one.
"""

import atexit
import base64
import os
import shutil
import tempfile
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxcam import _visit
from jaxcam._errors import shown
from jaxcam._visit import PHOTOGRAPHS, Asked, Visit
from jaxcam.attribution import METHODS
from jaxcam.image import ASSETS, sample
from jaxcam.models import Classifier

TURN = threading.Lock()  # held for one map: programs run one after the other, and visitors take turns
READING = threading.Lock()  # held for one photograph: large ones are decoded one at a time, and wait for no map
KEPT = 60, 600  # seconds: how often uploaded files are removed, and from which age on
FILES = "png", "svg", "json", "npz"
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def page(classifier: Classifier, layer: str | None = None) -> Any:
    """The page for a classifier, as `gradio.Blocks`.

    Args:
      classifier: as `jaxcam.load` gives it.
      layer: for the CAM methods; by default the classifier's own.

    Raises:
      ImportError: gradio is not installed.
    """
    gr, model = _gradio(), classifier.tap(layer)
    about = {"title": f"jaxcam: {classifier.name}", "analytics_enabled": False, "delete_cache": KEPT}
    with gr.Blocks(fill_width=True, **about) as blocks:
        parts = _laid_out(gr, classifier, _visit.available(model))
        _connect(gr, parts, classifier, model, layer or classifier.layer)
    return blocks


class _Parts(NamedTuple):
    """What can be touched, and what changes."""

    visit: Any
    files: Any
    cat: Any
    shot: Any
    sight: Any
    other: Any
    names: Any  # of the methods
    controls: dict[tuple[str, str], Any]  # by method and option
    groups: dict[str, Any]  # of controls, by method
    viewer: Any
    judges: Any
    judging: Any
    buttons: dict[str, Any]  # by kind of file
    content: Any  # of the file that is saved


def _laid_out(gr, classifier, methods) -> _Parts:
    first = [name for name in _visit.FIRST if name in methods]
    visit, content = gr.State(Visit()), gr.JSON(visible=False)
    gr.HTML(html_template="<h1>jaxcam</h1><p>Why does the model say so?</p>", elem_classes="top")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(file_count="multiple", label="Photographs", height=120)
            cat = gr.Button("Begin with a cat", size="sm")
            with gr.Accordion("Camera", open=False):
                shot = gr.Image(sources=["webcam"], type="filepath", image_mode=None, show_label=False)
            sight = gr.HTML({}, html_template="<div></div>", js_on_load=_script("sight", "select", "input"))
            labels = [(label, index) for index, label in enumerate(classifier.labels)]
            other = gr.Dropdown(labels, value=None, label="Another class")
            titles = [(METHODS[name].title, name) for name in methods]
            names = gr.Dropdown(titles, value=first, label="Methods", multiselect=True)
            with gr.Accordion("Options of the methods", open=False):
                controls, groups = {}, {}
                for name in filter(_visit.controls, methods):
                    with gr.Group(visible=name in first) as groups[name]:
                        gr.Markdown(f"**{METHODS[name].title}**", container=True)
                        for option, control in _visit.controls(name).items():
                            controls[name, option] = _control(gr, option, control)
        with gr.Column(scale=7, min_width=320):
            viewer = gr.HTML(
                _visit.board(Visit(), classifier),
                html_template="<div></div>",
                js_on_load=_script("viewer", "select"),
                colours={name: _visit.colours(name) for name in (*_visit.COLORMAPS, _visit.SIGNS)},
                signs=_visit.SIGNS,
            )
            judges = gr.Dropdown(_visit.judges(), value=list(_visit.JUDGES), label="Metrics", multiselect=True)
            judging = gr.Button("Measure how faithful the maps are", size="sm")
            with gr.Row():
                buttons = {kind: gr.Button(f"Download {kind.upper()}", size="sm", min_width=120) for kind in FILES}
    return _Parts(
        visit, files, cat, shot, sight, other, names, controls, groups, viewer, judges, judging, buttons, content
    )  # fmt: skip


def _control(gr, label, control):
    if isinstance(control, _visit.Choice):
        return gr.Dropdown([(str(each), each) for each in control.values], value=control.start, label=label)
    low, high, step, start, is_open = control
    return gr.Slider(low, high, start, step=step, label=label, info="0: as the method chooses" if is_open else None)


def _connect(gr, parts: _Parts, classifier, model, layer) -> None:
    """What happens when a part is touched; what a browser sends is checked by `Visit`."""

    def seen(visit):
        return _visit.sights(visit, classifier)

    def board(visit):
        return _visit.board(visit, classifier, visit.doing)

    def upload(visit, files):
        files = [files] if isinstance(files, str) else files or []
        visit.problems, found = [], []
        if len(files) > PHOTOGRAPHS:
            visit.problems.append(f"These are {len(files)} files; the page shows the first {PHOTOGRAPHS} of them.")
        for file in map(Path, files[:PHOTOGRAPHS]):
            try:
                with READING:
                    found.append(_visit.photograph(classifier, model, file.read_bytes(), file.name))
            except (ValueError, OSError, MemoryError) as error:
                visit.problems.append(str(error))
        visit.add(found)
        return seen(visit), None

    def camera(visit, file):
        return upload(visit, file) if file else (gr.skip(), gr.skip())

    def example(visit):
        return upload(visit, str(sample()))[0]

    def pick(visit, event: gr.EventData):  # pyright: ignore[reportInvalidTypeForm]
        visit.pick(event._data.get("index"), bool(event._data.get("beside")))
        return seen(visit)

    def pick_other(visit, index):
        visit.pick(index)
        return seen(visit), None

    def choose(visit, event: gr.EventData):  # pyright: ignore[reportInvalidTypeForm]
        visit.choose(event._data.get("index"))
        return seen(visit)

    def explain(visit, names, *values):
        visit.asked = _visit.asked(names, dict(zip(parts.controls, values, strict=True)))
        yield from told(visit, _visit.maps_of(model, visit, TURN))

    def judge(visit, names):
        yield from told(visit, _visit.maps_of(model, visit, TURN))
        yield from told(visit, _visit.values_of(model, visit, names, TURN))

    def told(visit, doings):
        """The board as it fills; a question that a newer one has overtaken tells what is being done for that."""
        turn = None
        for doing in doings:
            turn = turn or visit.turn
            if visit.turn == turn:
                visit.doing = doing
            yield board(visit)
        if turn in (None, visit.turn):
            visit.doing = None
        yield board(visit)

    def mark(visit, event: gr.EventData):  # pyright: ignore[reportInvalidTypeForm]
        visit.mark(event._data.get("box"))
        return board(visit)

    def options(names):
        return [gr.Group(visible=name in names) for name in parts.groups]

    def save(visit, kind):
        try:
            with TURN:
                content = _visit.download(visit, classifier, layer, kind)
        except ValueError as error:
            raise gr.Error(str(error)) from None
        return {"name": f"jaxcam.{kind}", "content": base64.b64encode(content).decode()}

    visit, sight, viewer = parts.visit, parts.sight, parts.viewer
    inputs = [visit, parts.names, *parts.controls.values()]
    # A new question does not wait for the answer to an old one, which ends by itself, and is not dropped for it either.
    at_once = {"concurrency_limit": None, "trigger_mode": "multiple"}
    explaining = {"fn": explain, "inputs": inputs, "outputs": viewer, **at_once, **QUIET}
    for touched in (
        parts.files.upload(upload, [visit, parts.files], [sight, parts.files], **QUIET),
        parts.shot.input(camera, [visit, parts.shot], [sight, parts.shot], **QUIET),
        parts.cat.click(example, visit, sight, **QUIET),
        sight.select(pick, visit, sight, **QUIET),
        sight.input(choose, visit, sight, **QUIET),
        parts.other.input(pick_other, [visit, parts.other], [sight, parts.other], **QUIET),
        parts.names.change(options, parts.names, list(parts.groups.values()), **QUIET),
    ):
        touched.then(**explaining)
    for control in parts.controls.values():
        (control.release if hasattr(control, "release") else control.input)(**explaining)
    viewer.select(mark, visit, viewer, **QUIET)
    parts.judging.click(judge, [visit, parts.judges], viewer, concurrency_limit=None, **QUIET)
    for kind, button in parts.buttons.items():
        saved = button.click(partial(save, kind=kind), visit, parts.content, **QUIET)
        saved.success(None, parts.content, None, js="file => jaxcam.save(file)", api_visibility="private")


def serve(
    classifier: Classifier,
    layer: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = True,
) -> Any:
    """Compiles the first heatmap and serves the page, to this machine alone unless `host` is another.

    Args:
      classifier: as `jaxcam.load` gives it.
      layer: for the CAM methods; by default the classifier's own.
      host: the address to listen at; `"0.0.0.0"` is every one that this machine has.
      port: by default the first one from 7860 on that is free.
      block: whether to return only when it is interrupted; else the page, which `close()` ends.

    Raises:
      ImportError: gradio is not installed.
      OSError: the address cannot be listened at.
    """
    gr = _gradio()
    blocks, model, first = page(classifier, layer), classifier.tap(layer), Visit(asked=[Asked(_visit.FIRST[0])])
    first.add([_visit.photograph(classifier, model, sample().read_bytes(), "sample")])
    list(_visit.maps_of(model, first, TURN))
    _visit.board(first, classifier)
    style = {
        "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": (ASSETS / "app.css").read_text(),
        "head": f"<script>{(ASSETS / 'app.js').read_text()}</script>",
    }
    # No link to the outside, no history, nothing measured: what gradio may do besides the page is turned off.
    alone = {"share": False, "footer_links": [], "run_history": False, "enable_monitoring": False, "mcp_server": False}
    alone |= {
        "ssr_mode": False,
        "quiet": True,
        "pwa": False,
        "max_file_size": _visit.LARGEST,
        "state_session_capacity": 100,
    }
    try:
        blocks.launch(server_name=host, server_port=port, prevent_thread_lock=True, inbrowser=False, **alone, **style)
    except OSError as error:
        at = f"{shown(host)}:{port}" if port else shown(host)
        raise OSError(f"The page cannot listen at {at}: it is taken, or no address of this machine.") from error
    if block:
        print(f"{blocks.local_url} (Ctrl+C ends it)", flush=True)
        blocks.block_thread()
    return blocks


def _script(function: str, *events: str) -> str:
    """What a part of the page runs when it is there; gradio reads off it which events it has."""
    return f"jaxcam.{function}(element, props, trigger, watch, {list(events)})"


@cache
def _gradio() -> Any:
    """Gradio; it keeps uploads where no other user of the machine may look, and no longer than this process runs."""
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("The page needs gradio, which is not installed: pip install 'jaxcam-xai[app]'.") from error
    folder = tempfile.mkdtemp(prefix="jaxcam-")
    os.environ["GRADIO_TEMP_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return gradio
