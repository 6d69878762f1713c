"""What the page in the browser shows, in plain functions that know no page.

What a visitor has shown lies in a `Visit`, one for each open page; visitors have the model and its compiled programs
in common, and nothing else. They take turns, a map each.
"""

import base64
import inspect
import io
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcam import metrics
from jaxcam._errors import shown
from jaxcam.attribution import METHODS, heatmap
from jaxcam.attribution._masked import PERTURBATIONS
from jaxcam.attribution.attention import FUSIONS
from jaxcam.attribution.decomposition import KERNELS
from jaxcam.attribution.paths import BORDERS
from jaxcam.attribution.xrai import CHANNELS
from jaxcam.image import decode_image
from jaxcam.lrp_rules import COMPOSITES
from jaxcam.models import Classifier
from jaxcam.taps import Tap

FIRST = ("grad_cam", "layer_cam", "guided_backprop", "integrated_gradients")  # methods of a new page
JUDGES = ("deletion", "insertion", "road")  # metrics of a new page
COLORMAPS, SIGNS = ("inferno", "viridis", "turbo", "jet"), "RdBu_r"
PREDICTIONS, SIDE_BY_SIDE, PHOTOGRAPHS = 5, 2, 12  # at most
KEPT = 64  # maps of a visit, and metrics of them; the oldest go first
LARGEST = 64 * 2**20  # bytes of an uploaded file

# --- Options as controls ----------------------------------------------------------------------------------------------

# Lowest, highest, step. Steps are wide, because each value is compiled by itself; a count's follow from its default.
# Zero stands for a default of None, which is "as the method chooses".
RANGES = {
    "num_samples": None,
    "num_steps": None,
    "alpha": (0, 2, 0.25),
    "cells": (3, 15, 2),
    "deviations": (0, 4, 0.5),
    "fraction": (0.05, 0.95, 0.05),
    "kernel_width": (0.05, 1, 0.05),
    "key": (0, 9, 1),
    "mask_noise": (0, 4, 0.5),
    "max_channels": (0, 256, 32),
    "max_distance": (0.02, 0.2, 0.02),
    "noise": (0, 0.5, 0.05),
    "num_classes": (1, 10, 1),
    "residual": (0, 1, 0.1),
    "stride": (0, 28, 4),
    "window": (0, 64, 8),
}


# Those that are words, or yes and no.
CHOICES: dict[str, tuple] = {
    "border": tuple(BORDERS),
    "channels": tuple(CHANNELS),
    "composite": tuple(COMPOSITES),
    "fusion": tuple(FUSIONS),
    "interpolation": ("linear", "nearest"),
    "kernel": tuple(KERNELS),
    "multiply_by_inputs": (True, False),
    "perturbation": tuple(PERTURBATIONS),
}


class Slider(NamedTuple):
    low: float
    high: float
    step: float
    start: float  # where the method's default is
    is_open: bool = False  # whether that is for the method to choose, which zero stands for


class Choice(NamedTuple):
    values: tuple
    start: str | bool


def controls(method: str) -> dict[str, Slider | Choice]:
    """The options of a method that are numbers, words or yes and no, read off its signature.

    Example:
      >>> controls("smooth_grad")["num_samples"]
      Slider(low=5, high=100, step=5, start=25, is_open=False)
    """
    found: dict[str, Slider | Choice] = {}
    for name, each in inspect.signature(METHODS[method].function).parameters.items():
        if name in RANGES:
            start = each.default or 0
            low, high, step = RANGES[name] or _counts(start)
            found[name] = Slider(low, high, step, start, each.default is None)
        elif name in CHOICES:
            found[name] = Choice(CHOICES[name], each.default)
    return found


def _counts(start: int) -> tuple[int, int, int]:
    """Up to four times the default, in steps that meet it."""
    step = next(start // parts for parts in (5, 4, start) if start % parts == 0)
    return step, 4 * start, step


def changed(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options whose controls were touched; the others are left to the method, as is what is no choice.

    Example:
      >>> changed("smooth_grad", {"num_samples": 50, "noise": 0.15, "key": 0})
      {'num_samples': 50}
    """
    options = {}
    for name, control in controls(method).items():
        value = values.get(name, control.start)
        if isinstance(control, Choice):
            if value in control.values and value != control.start:
                options[name] = value
            continue
        value = float(np.clip(value, control.low, control.high))
        if not math.isclose(value, control.start):
            options[name] = round(value) if isinstance(control.step, int) else round(value, 6)
    return options


class Asked(NamedTuple):
    """A method with the options whose controls were touched."""

    method: str
    options: tuple[tuple[str, int | float | str], ...] = ()

    def said(self) -> list[str]:
        """The options as a reader sees them."""
        return [f"{name} {value if isinstance(value, str | bool) else f'{value:g}'}" for name, value in self.options]


def asked(methods: Sequence[str], values: Mapping[tuple[str, str], Any]) -> list[Asked]:
    """The chosen methods, with the options that the controls of all methods say, `{(method, option): value}`.

    Example:
      >>> asked(["saliency", "smooth_grad"], {("smooth_grad", "noise"): 0.3})
      [Asked(method='saliency', options=()), Asked(method='smooth_grad', options=(('noise', 0.3),))]
    """
    of = {name: {option: value for (each, option), value in values.items() if each == name} for name in methods}
    return [Asked(name, tuple(changed(name, each).items())) for name, each in of.items()]


def available(model: Tap) -> list[str]:
    """The methods that give heatmaps for this model with what is installed."""
    is_of_tokens = model.reshape is not None
    return [
        name
        for name, row in METHODS.items()
        if row.is_map and (row.needs != "tokens" or is_of_tokens) and (row.on_host is None or find_spec(row.on_host))
    ]


# --- What is computed -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Photograph:
    """A photograph as a person and as the model see it, and what the model takes it for."""

    name: str
    view: np.ndarray  # uint8[s, s, 3]
    images: jax.Array  # float32[1, h, w, 3]
    probabilities: np.ndarray  # float32[k]


class Map(NamedTuple):
    """What a method says, or why it says nothing; then it has neither map."""

    heat: np.ndarray | None  # float32[h, w] in [0, 1]
    drawn: np.ndarray | None  # the same, or attributions [h, w, c]
    said: str
    seconds: float


@jax.jit
def _probabilities(model, images):
    return jax.nn.softmax(model(images), axis=-1)


def photograph(classifier: Classifier, model: Tap, content: bytes, name: str) -> Photograph:
    """Decodes, checks and classifies the content of an image file.

    Raises:
      ValueError: the file is too large, damaged or no image; a sentence that a visitor can read.
    """
    called = f"'{shown(name)}'"
    if len(content) > LARGEST:
        raise ValueError(f"{called} has {len(content) / 2**20:.0f} MB, and the page takes {LARGEST / 2**20:.0f}.")
    image = decode_image(content, called)
    images = classifier.preprocess(image)
    probabilities = np.asarray(_probabilities(model, images))[0]
    return Photograph(shown(name), classifier.preprocess.view(image)[0], images, probabilities)


def explained(model: Tap, photo: Photograph, target: int, method: str, options: Mapping[str, Any]) -> Map:
    """The map of one method for one class; what speaks against it comes back as a sentence."""
    row, started = METHODS[method], time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            found = row.function(model, photo.images, np.array([target], np.int32), **options)
            heat = found if row.gives == "heatmaps" else heatmap(found, photo.images)
            found, heat = np.asarray(found[0]), np.asarray(heat[0])
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:  # one method must not end the page
            return Map(None, None, " ".join(str(error).split()), 0)
    if not np.isfinite(heat).all():
        return Map(None, None, "The map holds NaN or infinite values.", 0)
    said = "" if heat.any() else " ".join(["Zero everywhere.", *dict.fromkeys(str(each.message) for each in caught)])
    if row.gives != "heatmaps" and found.ndim == heat.ndim:
        found = found[..., None] if row.signed else heat
    return Map(heat, found, said, time.perf_counter() - started)


def share(heat: np.ndarray, box: Sequence[float]) -> dict[str, float]:
    """How much of the heat lies in a box `(left, top, right, bottom)`, in shares of the sides; a point is its pixel.

    Example:
      >>> share(np.eye(4, dtype=np.float32), (0, 0, 0.5, 0.5))
      {'energy': 0.5, 'points': 0.5, 'area': 0.25}
    """
    height, width = heat.shape
    edges = np.asarray(box, np.float64) * [width, height, width, height]
    low = np.clip(np.floor(edges[:2]), 0, [width - 1, height - 1])
    high = np.clip(np.ceil(edges[2:]), low + 1, [width, height])
    mask = metrics.box_to_mask(np.array([[*low, *high]], np.float32), heat.shape)
    return {
        "energy": float(metrics.energy_pointing_game(heat[None], mask)[0]),
        "points": float(metrics.pointing_game(heat[None], mask)[0]),
        "area": float(np.prod(high - low) / heat.size),
    }


def judges() -> list[str]:
    """The metrics of faithfulness that take a heatmap of one photograph."""
    return [
        name
        for name, row in metrics.METRICS.items()
        if row.needs == "model" and "heatmaps" in inspect.signature(row.function).parameters
    ]


def judged(model: Tap, photo: Photograph, target: int, heat: np.ndarray, metric: str) -> float | str:
    """A metric of one map, or the sentence of why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a zero map, which is said to be so below it
        try:
            function = metrics.METRICS[metric].function
            value = float(function(model, photo.images, heat[None], np.array([target], np.int32))[0])
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            return " ".join(str(error).split())
    return value if math.isfinite(value) else "It is not defined for this map."


# --- A visit ----------------------------------------------------------------------------------------------------------


@dataclass
class Visit:
    """What one open page shows; a visitor sees no other's."""

    photographs: list[Photograph] = field(default_factory=list)
    chosen: int = 0
    targets: list[int] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    box: tuple[float, ...] | None = None
    maps: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)  # of metrics
    problems: list[str] = field(default_factory=list)
    turn: int = 0  # what is computed for an earlier one is not wanted any more
    doing: tuple[int, int, str] | None = None  # how many are done, of how many, and which is next

    @property
    def photo(self) -> Photograph | None:
        return self.photographs[self.chosen] if self.photographs else None

    def choose(self, index: int) -> None:
        """Another of the photographs, and of it the class that the model sees."""
        if index in range(len(self.photographs)):
            self.chosen = index
            self.targets, self.box = [int(self.photographs[index].probabilities.argmax())], None

    def pick(self, target: int, beside: bool = False) -> None:
        """Explains this class, or this one too, or no longer."""
        if self.photo is None or target not in range(len(self.photo.probabilities)):
            return
        if not beside:
            self.targets = [target]
        elif target not in self.targets:
            self.targets = [*self.targets, target][-SIDE_BY_SIDE:]
        elif len(self.targets) > 1:
            self.targets.remove(target)

    def add(self, photos: Sequence[Photograph]) -> None:
        """Photographs in front of those that are there already; the oldest go."""
        if photos:
            self.photographs = [*photos, *self.photographs][:PHOTOGRAPHS]
            self.choose(0)

    def mark(self, box: Sequence[float] | None) -> None:
        """The box that was drawn, or none."""
        self.box = None
        if isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(each, int | float) for each in box):
            self.box = tuple(float(np.clip(each, 0, 1)) for each in box)

    def wanted(self) -> list[tuple]:
        """Of the maps that are shown, method by method."""
        return [(self.photo, target, each) for each in self.asked for target in self.targets] if self.photo else []

    def keep(self, kind: dict, key: tuple, value: Any) -> None:
        """A map, or a metric of one; of those that are not shown, the oldest go."""
        kind[key], shown = value, set(self.wanted())
        hidden = [each for each in kind if each[:3] not in shown]
        for each in hidden[: max(0, len(kind) - KEPT)]:
            del kind[each]


def maps_of(model: Tap, visit: Visit, lock: Any) -> Iterator[tuple[int, int, str]]:
    """Computes what the visit still lacks, and says before each map how many are done, of how many, and which is next.

    It ends early where the visitor has asked for something else meanwhile.
    """
    visit.turn += 1
    turn, keys = visit.turn, visit.wanted()
    for done, key in enumerate(keys):
        if key in visit.maps:
            continue
        photo, target, (method, options) = key
        yield done, len(keys), METHODS[method].title
        with lock:
            if visit.turn != turn:
                return
            visit.keep(visit.maps, key, explained(model, photo, target, method, dict(options)))


def values_of(model: Tap, visit: Visit, names: Sequence[str], lock: Any) -> Iterator[tuple[int, int, str]]:
    """The same for metrics of the maps that are shown."""
    visit.turn += 1
    turn = visit.turn
    keys = [(*key, name) for name in names for key in visit.wanted() if getattr(visit.maps.get(key), "said", 0) == ""]
    for done, key in enumerate(keys):
        if key in visit.values:
            continue
        photo, target, each, metric = key
        yield done, len(keys), f"{metric} of {METHODS[each.method].title}"
        with lock:
            if visit.turn != turn:
                return
            heat = visit.maps[key[:3]].heat
            visit.keep(visit.values, key, judged(model, photo, target, heat, metric))


# --- What is shown, as JSON -------------------------------------------------------------------------------------------


def sights(visit: Visit, classifier: Classifier) -> dict:
    """The photographs and the predictions."""
    photo = visit.photo
    if photo is None:
        return {"problems": visit.problems}
    return {
        "photographs": [{"name": each.name, "picture": _jpeg(each.view, 96)} for each in visit.photographs],
        "chosen": visit.chosen,
        "classes": [
            {**_class(classifier, photo, index), "explained": index in visit.targets}
            for index in dict.fromkeys([*_best(photo, PREDICTIONS), *visit.targets])
        ],
        "problems": visit.problems,
        "model": classifier.name,
    }


def board(visit: Visit, classifier: Classifier, doing: tuple[int, int, str] | None = None) -> dict:
    """The maps of the chosen photograph, what lies in the box, and the metrics; `doing` is what is being computed."""
    photo, names = visit.photo, list(dict.fromkeys(key[3] for key in visit.values if key[:3] in visit.wanted()))
    shown_maps = [
        {
            "method": each.method,
            "title": METHODS[each.method].title,
            "about": f"{METHODS[each.method].summary} {METHODS[each.method].reference}",
            "options": ", ".join(each.said()),
            "signed": METHODS[each.method].signed,
            "stages": [_stage(visit, classifier, photo, target, each, names) for target in visit.targets],
        }
        for each in (visit.asked if photo else ())
    ]
    return {
        "photo": photo and {"name": photo.name, "picture": _jpeg(photo.view, max(photo.view.shape))},
        "maps": shown_maps,
        "box": visit.box,
        "metrics": [{"name": name, "better": metrics.METRICS[name].better} for name in names],
        "doing": doing,
    }


def _stage(visit, classifier, photo, target, asked, names) -> dict:
    """One map: its values in 256 steps, of those with a sign from -1 to 1."""
    from jaxcam.plot._pixels import legible

    found = visit.maps.get((photo, target, asked))
    stage = {"label": classifier.labels[target], "ready": found is not None, "said": found.said if found else ""}
    if found is None or found.heat is None:
        return stage
    values, signed = found.heat, METHODS[asked.method].signed
    if smoothed := found.drawn.ndim > values.ndim:
        values = legible(found.drawn, signed, 0.01, 99)  # as panels draw it
        values = (values + 1) / 2 if signed else values
    return stage | {
        "shape": list(values.shape),
        "values": _base64(np.uint8(np.round(255 * values)).tobytes()),
        "seconds": found.seconds,
        "smoothed": smoothed,
        "share": share(found.heat, visit.box) if visit.box else None,
        "metrics": [visit.values.get((photo, target, asked, name)) for name in names],
    }


def colours(name: str) -> str:
    """A colour map in 256 steps of red, green and blue."""
    from jaxcam import plot

    return _base64(plot.colorize(np.linspace(0, 1, 256, dtype=np.float32)[None, None], name).tobytes())


def _best(photo, count: int) -> list[int]:
    return photo.probabilities.argsort()[::-1][:count].tolist()


def _class(classifier, photo, index: int) -> dict:
    return {"index": index, "label": classifier.labels[index], "probability": float(photo.probabilities[index])}


def _jpeg(pixels, side: int) -> str:
    from PIL import Image

    image, content = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((side, side))
    image.save(content, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{_base64(content.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


# --- Downloads --------------------------------------------------------------------------------------------------------


def report(visit: Visit, classifier: Classifier, layer: str) -> dict:
    """What is shown, in numbers: predictions, methods with what was set, shares of the box, metrics."""
    photo = visit.photographs[visit.chosen]
    found = {key: visit.maps[key] for key in visit.wanted() if key in visit.maps}
    return {
        "image": photo.name,
        "model": classifier.name,
        "layer": layer,
        "predictions": [_class(classifier, photo, index) for index in _best(photo, PREDICTIONS)],
        "box": visit.box,
        "maps": [
            {
                "method": key[2].method,
                "options": dict(key[2].options),
                "target": _class(classifier, photo, key[1]),
                "seconds": each.seconds,
                "metrics": {name: value for (*of, name), value in visit.values.items() if tuple(of) == key},
                "share": share(each.heat, visit.box) if visit.box else None,
            }
            for key, each in found.items()
            if each.heat is not None
        ],
    }


def download(visit: Visit, classifier: Classifier, layer: str, kind: str) -> bytes:
    """What is shown as a file: `"png"` and `"svg"` are a panel, `"json"` is the report, `"npz"` the arrays.

    Raises:
      ValueError: there is no map yet.
    """
    if not _whole(visit):
        raise ValueError("There is no heatmap yet; choose a photograph and a method first.")
    return {"png": _panel, "svg": _panel, "json": _json, "npz": _arrays}[kind](visit, classifier, layer, kind)


def _json(visit, classifier, layer, kind) -> bytes:
    return (json.dumps(report(visit, classifier, layer), indent=2) + "\n").encode()


def _arrays(visit, classifier, layer, kind) -> bytes:
    """The heatmaps by method, `[t, h, w]`, with the classes, the photograph and the report."""
    arrays: dict[str, Any] = {
        _called(each): np.stack([heat for heat, *_ in maps]) for each, maps in _whole(visit).items()
    }
    content = io.BytesIO()
    facts = np.array(json.dumps(report(visit, classifier, layer)))
    np.savez_compressed(content, targets=np.int32(visit.targets), view=visit.photo.view, report=facts, **arrays)
    return content.getvalue()


def _panel(visit, classifier, layer, kind) -> bytes:
    """The panel that the command line writes."""
    from jaxcam import plot
    from jaxcam.plot._layout import SAVED_DPI, written

    photo, labels = visit.photo, [classifier.labels[target] for target in visit.targets]
    maps = {_called(each): np.stack([drawn for _, drawn, *_ in maps]) for each, maps in _whole(visit).items()}
    rows = [_class(classifier, photo, index) for index in dict.fromkeys([*_best(photo, 3), *visit.targets])]
    alone = len(labels) == 1
    figure = plot.panel(
        photo.view,
        {name: each[0] if alone else each for name, each in maps.items()},
        predictions=[(each["label"], each["probability"]) for each in rows],
        title=photo.name,
        model=classifier.name,
        explained=labels[0] if alone else labels,
        signed=[_called(each) for each in visit.asked if METHODS[each.method].signed],
    )
    return written(figure, kind, SAVED_DPI)


def _whole(visit) -> dict[Asked, list[Any]]:
    """The methods that have a map for each of the classes, and these maps."""
    found = {each: [visit.maps.get((visit.photo, target, each)) for target in visit.targets] for each in visit.asked}
    return {each: maps for each, maps in found.items() if all(one and one.heat is not None for one in maps)}


def _called(asked: Asked) -> str:
    return " ".join([METHODS[asked.method].title, *(each.replace(" ", "=") for each in asked.said())])
