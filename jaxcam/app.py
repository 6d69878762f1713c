"""The page in the browser, `jaxcam app`: the only importer of gradio.

What it shows is computed by `_visit`; here is where it stands and what happens when it is touched. Nothing that the
page needs comes from another machine, and nothing is sent to one.
"""

import base64
import threading
from itertools import chain
from pathlib import Path
from typing import Any

from jaxcam import _visit
from jaxcam._errors import shown
from jaxcam._visit import PHOTOGRAPHS, Asked, Visit
from jaxcam.image import ASSETS, sample
from jaxcam.metrics import METRICS
from jaxcam.models import Classifier

TURN = threading.Lock()  # held for one map: programs run one after the other, and visitors take turns
KEPT = 60, 600  # seconds: how often uploaded files are removed, and from which age on
FILES = "png", "svg", "json", "npz"
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def page(classifier: Classifier, layer: str | None = None) -> Any:
    """The page for a classifier, as `gradio.Blocks`: `page(classifier).launch()` in a notebook, too.

    Args:
      classifier: as `jaxcam.load` gives it.
      layer: for the CAM methods; by default the classifier's own.

    Raises:
      ImportError: gradio is not installed.
    """
    gr = _gradio()
    model, layer = classifier.tap(layer), layer or classifier.layer
    methods = _visit.available(model)
    first = [name for name in _visit.FIRST if name in methods]
    options = [(name, option) for name in methods for option in _visit.sliders(name)]

    def asked(names, values):
        """The chosen methods with their options; what a browser sends is not trusted."""
        of = {name: {} for name in names if name in methods}
        for (name, option), value in zip(options, values, strict=True):
            if name in of and isinstance(value, int | float):
                of[name][option] = value
        return [Asked(name, tuple(_visit.changed(name, each).items())) for name, each in of.items()]

    def seen(visit):
        return _visit.sights(visit, classifier)

    def board(visit, doing=None):
        return _visit.board(visit, classifier, doing)

    def upload(visit, files):
        files = [files] if isinstance(files, str) else files or []
        visit.problems, found = [], []
        if len(files) > PHOTOGRAPHS:
            visit.problems.append(f"These are {len(files)} files; the page shows the first {PHOTOGRAPHS} of them.")
        for file in files[:PHOTOGRAPHS]:
            try:
                with TURN:
                    found.append(_visit.photograph(classifier, model, Path(file).read_bytes(), Path(file).name))
            except (ValueError, OSError, MemoryError) as error:
                visit.problems.append(str(error))
        visit.add(found)
        return seen(visit), None

    def camera(visit, file):
        return upload(visit, file) if file else (gr.skip(), gr.skip())

    def example(visit):
        return upload(visit, str(sample()))[0]

    def pick(visit, event: gr.EventData):
        visit.pick(event._data.get("index"), bool(event._data.get("beside")))
        return seen(visit)

    def pick_other(visit, index):
        visit.pick(index)
        return seen(visit), None

    def choose(visit, event: gr.EventData):
        visit.choose(event._data.get("index"))
        return seen(visit)

    def explain(visit, names, *values):
        visit.asked = asked(names, values)
        for doing in _visit.maps_of(model, visit, TURN):
            yield board(visit, doing)
        yield board(visit)

    def judge(visit, names):
        measuring = _visit.values_of(model, visit, [each for each in names if each in METRICS], TURN)
        for doing in chain(_visit.maps_of(model, visit, TURN), measuring):
            yield board(visit, doing)
        yield board(visit)

    def mark(visit, event: gr.EventData):
        visit.mark(event._data.get("box"))
        with TURN:
            return board(visit)

    def save(kind):
        def saved(visit):
            try:
                with TURN:
                    content = _visit.download(visit, classifier, layer, kind)
            except ValueError as error:
                raise gr.Error(str(error)) from None
            return {"name": f"jaxcam.{kind}", "content": base64.b64encode(content).decode()}

        return saved

    with gr.Blocks(
        title=f"jaxcam: {classifier.name}", analytics_enabled=False, delete_cache=KEPT, fill_width=True
    ) as blocks:
        visit = gr.State(Visit())
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
                chosen = [(_visit.title(name), name) for name in methods]
                names = gr.Dropdown(chosen, value=first, label="Methods", multiselect=True)
                with gr.Accordion("Options of the methods", open=False):
                    inputs, groups = [], {}
                    for name in methods:
                        if ranges := _visit.sliders(name):
                            with gr.Group(visible=name in first) as groups[name]:
                                gr.Markdown(f"**{_visit.title(name)}**", container=True)
                                for option, (low, high, step, start, is_open) in ranges.items():
                                    info = "0: as the method chooses" if is_open else None
                                    inputs.append(gr.Slider(low, high, start, step=step, label=option, info=info))
            with gr.Column(scale=7, min_width=320):
                colours = {name: _visit.colours(name) for name in (*_visit.COLORMAPS, _visit.SIGNS)}
                viewer = gr.HTML(
                    board(Visit()),
                    html_template="<div></div>",
                    js_on_load=_script("viewer", "select"),
                    colours=colours,
                    signs=_visit.SIGNS,
                )
                judges = gr.Dropdown(_visit.judges(), value=list(_visit.JUDGES), label="Metrics", multiselect=True)
                judging = gr.Button("Measure how faithful the maps are", size="sm")
                with gr.Row():
                    buttons = [gr.Button(f"Download {kind.upper()}", size="sm", min_width=120) for kind in FILES]
        content = gr.JSON(visible=False)

        # A new question does not wait for the answer to an old one, which ends by itself.
        explaining = {
            "fn": explain, "inputs": [visit, names, *inputs], "outputs": viewer, "concurrency_limit": None, **QUIET
        }  # fmt: skip
        touched = [
            files.upload(upload, [visit, files], [sight, files], **QUIET),
            shot.input(camera, [visit, shot], [sight, shot], **QUIET),
            cat.click(example, visit, sight, **QUIET),
            sight.select(pick, visit, sight, **QUIET),
            sight.input(choose, visit, sight, **QUIET),
            other.input(pick_other, [visit, other], [sight, other], **QUIET),
        ]
        for each in touched:
            each.then(**explaining)
        names.change(**explaining)
        names.change(
            lambda now: [gr.Group(visible=name in now) for name in groups], names, list(groups.values()), **QUIET
        )
        for each in inputs:
            each.release(**explaining)
        viewer.select(mark, visit, viewer, **QUIET)
        judging.click(judge, [visit, judges], viewer, concurrency_limit=None, **QUIET)
        for button, kind in zip(buttons, FILES, strict=True):
            button.click(save(kind), visit, content, **QUIET).success(
                None, content, None, js="file => jaxcam.save(file)", api_visibility="private"
            )
    return blocks


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
    blocks, model = page(classifier, layer), classifier.tap(layer)
    photo = _visit.photograph(classifier, model, sample().read_bytes(), "sample")
    _visit.explained(model, photo, int(photo.probabilities.argmax()), _visit.FIRST[0], {})
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


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The page needs gradio, which is not installed: pip install 'jaxcam-xai[app]'.") from error
    return gradio
