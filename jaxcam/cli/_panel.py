"""The figures that `jaxcam explain` writes: what is drawn of each method, and what its cost is in words."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MOST = 3  # predictions; explained classes that are not among them follow


class Look(NamedTuple):
    """How the files look."""

    colormap: str
    theme: str
    format: str | None  # of the panel; `None`: none is drawn
    scale: float


def check(look: Look) -> None:
    """Before anything is computed."""
    from jaxcam import plot
    from jaxcam.plot._layout import check_scale

    plot.colorize(np.zeros((1, 1, 1)), look.colormap)
    check_scale(look.scale)


def drawn(method: str, found, heatmaps):
    """What a panel draws of a method: attributions where there are channels or signs to see, else the heatmaps."""
    from jaxcam.attribution import METHODS

    if METHODS[method].gives == "heatmaps":
        return heatmaps
    if found.ndim > heatmaps.ndim:
        return found
    return found[..., None] if METHODS[method].signed else heatmaps


def overlay(view, drawn, method: str, label: str, look: Look):
    """One method for one class, with the pixels of the photograph."""
    from jaxcam import plot
    from jaxcam.attribution import METHODS

    title = f"{METHODS[method].title}: {label}"
    return plot.overlay(view[None], drawn[None], titles=[title], colormap=look.colormap, theme=look.theme)


def panel(view, maps: Mapping[str, Any], report: dict, title: str, channels: int | None, look: Look):
    """All methods, for each of the classes."""
    from jaxcam import plot
    from jaxcam.attribution import METHODS

    targets = report["targets"]
    predictions = report["predictions"][:MOST]
    predictions += [each for each in targets if each not in predictions]
    labels = [each["label"] for each in targets]
    return plot.panel(
        view,
        {method: each if len(targets) > 1 else each[0] for method, each in maps.items()},
        predictions=[(each["label"], each["probability"]) for each in predictions],
        title=title,
        model=Path(report["model"]).name if Path(report["model"]).exists() else report["model"],
        explained=labels if len(targets) > 1 else labels[0],
        notes={method: cost(METHODS[method], channels) for method in maps},
        signed=[method for method in maps if METHODS[method].signed],
        colormap=look.colormap,
        theme=look.theme,
    )


def cost(method, channels: int | None) -> str:
    """The registry's cost with the numbers that are known: "150 forward passes"."""
    passes, above = _costs(method, channels)
    end = "" if passes == "1" else "es"
    return f"{passes} pass{end} + {above} of the head" if above else f"{passes} forward pass{end}"


def passes(method, channels: int | None) -> int | None:
    """Forward passes for an image, or `None` where that depends on more than the model."""
    number = _costs(method, channels)[0].replace(",", "")
    return int(number) if number.isdecimal() else None


def _costs(method, channels) -> tuple[str, str]:
    """Passes through the model, and through its head alone."""
    known = {
        name: each.default
        for name, each in inspect.signature(method.function).parameters.items()
        if isinstance(each.default, int)
    }
    known |= {"k": channels} if channels else {}
    text = re.sub(r"\w+", lambda word: str(known.get(word[0], word[0])), method.cost)
    first, _, above = text.partition(", and ")
    return _evaluated(first), _evaluated(above.split()[0]) if above else ""


def _evaluated(text: str) -> str:
    """Sums of products of numbers, "1 + 50 1280", as their value; what holds a name stays as it is."""
    if not re.fullmatch(r"[\d +]+", text):
        return text
    return f"{sum(int(np.prod([int(each) for each in term.split()])) for term in text.split('+')):,}"
