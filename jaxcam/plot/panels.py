"""The panel: one photograph, what a model takes it for, and what methods say of it, on one grid.

A method has one picture for each class: heat over the photograph in dimmed greys, or attributions with their signs in
diverging colours over the faded photograph. What is done to attributions for the eye alone is said on the panel.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxcam.attribution import METHODS
from jaxcam.plot._layout import (
    BAR_ROW,
    CAPTION,
    ENDS,
    GAP,
    GUTTER,
    HEADING,
    MARGIN,
    MOST_PREDICTIONS,
    SAID,
    SENTENCE,
    SIDEBAR,
    SLIDE,
    Grid,
    arranged,
    blank,
    caption_height,
    captions_above,
    colour_scale,
    fit,
    framed,
    headline,
    probability_bars,
    sentence,
    show,
    write,
)
from jaxcam.plot._pixels import (
    COLORMAP,
    DIVERGING,
    PERCENTILE,
    SMOOTHING,
    altered,
    as_attributions,
    as_heat,
    as_pictures,
    as_probabilities,
    displayed,
    heated,
    legible,
    note,
    signs,
)

if TYPE_CHECKING:
    import matplotlib.figure

LABEL, SCALE = 0.2, 0.44  # heights of a class's name and of a colour scale


class _Map(NamedTuple):
    """What is drawn of one method for one class: heat or magnitudes in [0, 1], or signs in [-1, 1]."""

    values: np.ndarray
    kind: str


class _Places(NamedTuple):
    """Where things stand in a panel."""

    photograph: tuple[float, float, float, float]  # x, y, width, height
    bars: float  # y of the predictions
    scales: float  # y of the colour scales
    grid: Grid  # of the methods
    size: tuple[float, float]


def panel(
    image: Any,
    heatmaps: Mapping[str, Any],
    *,
    predictions: Sequence[tuple[str, Any]] = (),
    title: str | None = None,
    model: str | None = None,
    explained: str | Sequence[str] | None = None,
    notes: Mapping[str, str] | None = None,
    signed: Collection[str] | None = None,
    smoothing: float | int = SMOOTHING,
    percentile: float | int = PERCENTILE,
    colormap: str = COLORMAP,
    theme: str = "light",
) -> "matplotlib.figure.Figure":
    """One photograph, what the model takes it for, and what each method says of it, with the scales of the colours.

    The grid of methods is arranged so that the pictures become as large as a 16:9 slide allows; from some twenty
    methods on the figure grows instead, so that every title stays readable. A map that is zero everywhere is said to
    be so. Attributions are smoothed and cut for display, which the panel says; heatmaps are drawn as they are.

    Args:
      image: `[H, W, 3]`: uint8, float in [0, 1], or normalised floats.
      heatmaps: by method, a heatmap, float `[h, w]` in [0, 1], or attributions, float `[h, w, c]`; of any resolution.
        With several explained classes one for each: `[t, h, w]` or `[t, h, w, c]`. The methods of `jaxcam.METHODS` are
        called by their titles, "Grad-CAM++", any other name stays as it is.
      predictions: (label, probability) of the top classes, best first; at most ten are drawn.
      title: headline, such as the file's name.
      model: the name of the model, above the predictions.
      explained: the label of the class that the maps explain, or a list of `t` labels; their bars are highlighted, or
        the first bar without any.
      notes: by method, what stands below its name, such as its cost.
      signed: the methods whose attributions are summed over channels and drawn with their signs, centred at zero;
        those of the others are drawn as the sum of their absolute values. `None`: all attributions.
      smoothing: of attributions: the standard deviation of a Gaussian, as a share of the map's short side.
      percentile: of the magnitudes of attributions: the colours end there.
      colormap: of heat: any name that matplotlib knows, such as "jet".
      theme: "light" or "dark".

    Raises:
      ValueError: no heatmaps, wrong shapes, NaN, heat outside [0, 1], a probability outside [0, 1], a percentile
        outside (0, 100], a negative smoothing, unknown colour map or theme.

    Example:
      >>> maps = {"grad_cam": np.eye(7), "integrated_gradients": np.random.default_rng(0).normal(size=(32, 32, 3))}
      >>> figure = panel(np.zeros((64, 64, 3), np.uint8), maps, predictions=[("cat", 0.9)], theme="dark")
      >>> [axes.get_label() for axes in figure.axes]
      ['image', 'predictions', 'map grad_cam', 'map integrated_gradients', 'colour scale', 'scale of signs']
    """
    if not heatmaps:
        raise ValueError("There are no heatmaps: the mapping is empty.")
    if not 0 < percentile <= 100 or smoothing < 0:
        raise ValueError(f"percentile is {percentile} and smoothing {smoothing}; expected (0, 100], and 0 or more.")
    picture = displayed(as_pictures([image])[0])
    alone = explained is None or isinstance(explained, str)
    classes: list[Any] = [explained] if alone else list(explained or ())
    maps = {}
    for name, given in heatmaps.items():
        kind = "signs" if signed is None or name in signed else "magnitudes"
        maps[name] = _maps(name, [given] if alone else given, classes, kind, smoothing, percentile)
    is_altered = any(each.kind != "heat" for of_classes in maps.values() for each in of_classes)
    word, said = altered(smoothing, percentile) if is_altered else ("", "")
    captions = [_caption(of_classes, (notes or {}).get(name), word) for name, of_classes in maps.items()]
    predictions = as_probabilities(predictions)[:MOST_PREDICTIONS]
    places = _places(picture, maps, captions, predictions, title or explained, said)
    figure = blank(*places.size, theme)
    headline(figure, title, f"Explained class{'' if alone else 'es'}: {', '.join(classes)}" if explained else "")
    _sidebar(figure, places, picture, predictions, classes if explained else (), model)
    _grid(figure, places.grid, maps, captions, said)
    _pictures(figure, places.grid, picture, maps, classes, colormap, theme)
    _scales(figure, places.scales, maps, colormap, theme)
    return figure


def _maps(name, given, classes, kind, smoothing, percentile) -> list[_Map]:
    """The maps of a method, class by class: heatmaps as they are, attributions for the eye."""
    if len(given) != len(classes):
        raise ValueError(
            f"There are {len(given)} heatmaps {name!r}; expected one for each of the {len(classes)} classes."
        )
    maps = []
    for each, label in zip(given, classes, strict=True):
        what = f"The heatmap {name!r}" + (f" of {label!r}" if len(classes) > 1 else "")
        if np.ndim(each) == 3:
            maps.append(_Map(legible(as_attributions(each, what), kind == "signs", smoothing, percentile), kind))
        else:
            maps.append(_Map(as_heat(each, what), "heat"))
    return maps


def _caption(maps, cost, word) -> str:
    """What stands below the name of a method."""
    zero = note(maps[0].values) if len(maps) == 1 else ""  # of several, each says it for itself
    return " · ".join(filter(None, [cost, word if maps[0].kind != "heat" else "", zero]))


def _places(picture, maps, captions, predictions, headed, said) -> _Places:
    aspect, count = picture.shape[1] / picture.shape[0], len(next(iter(maps.values())))
    above, label = caption_height(list(maps), captions), LABEL if count > 1 else 0
    left, top = MARGIN + SIDEBAR + GUTTER, MARGIN + (HEADING if headed else 0)
    photograph = MARGIN, top + above, SIDEBAR, SIDEBAR / framed(aspect)
    bars = photograph[1] + photograph[3] + GAP
    scales = bars + (CAPTION + BAR_ROW * len(predictions) + GAP if predictions else 0)
    bottom = scales + SCALE * len(_kinds(maps)) - GAP / 2
    below = SAID if said else 0
    high = max(SLIDE[1], bottom + MARGIN)
    wide = SLIDE[0] * min(high / SLIDE[1], 1.1)  # a long sidebar makes the slide larger
    room = wide - left - MARGIN, high - MARGIN - below - top
    grid = arranged(len(maps), aspect, [(1, count), (count, 1)], (left, top), room, above, label)
    size = max(grid.right, left + (SENTENCE if said else SIDEBAR)) + MARGIN, max(grid.bottom + below, bottom) + MARGIN
    return _Places(photograph, bars, scales, grid, size)


def _sidebar(figure, places, picture, predictions, explained, model):
    """The photograph, and below it what the model takes it for."""
    captions_above(figure, [(MARGIN, places.photograph[1] - CAPTION)], ["Image"], SIDEBAR)
    show(figure, places.photograph, picture, "image")
    if predictions:
        by = f"Predicted by {model}" if model else "Predicted class"
        captions_above(figure, [(MARGIN, places.bars)], [by], SIDEBAR)
        probability_bars(figure, MARGIN, places.bars + CAPTION, predictions, explained)


def _grid(figure, grid, maps, captions, said):
    """What is written around the maps."""
    captions_above(figure, grid.corners, [_titled(name) for name in maps], grid.width, captions)
    if said:
        sentence(figure, grid.corners[0][0], grid.bottom + 0.24, said)


def _titled(name: str) -> str:
    """A method in words, "Grad-CAM++"; any other name as it is."""
    return METHODS[name].title if name in METHODS else name


def _pictures(figure, grid, picture, maps, classes, colormap, theme):
    """Each method's map for each class; several classes have their names above the maps."""
    labels = []
    for (name, of_classes), boxes in zip(maps.items(), grid.boxes, strict=True):
        for each, label, box in zip(of_classes, classes, boxes, strict=True):
            several, signed = len(classes) > 1, each.kind == "signs"
            drawn = signs(picture, each.values, theme) if signed else heated(picture, each.values, colormap)
            show(figure, box, drawn, f"map {name} {label}" if several else f"map {name}")
            if several:
                said = " · ".join(filter(None, [label, note(each.values)]))
                labels.append(write(figure, box[0], box[1] - 0.07, said, fontsize=8.5))
    fit(labels, grid.boxes[0][0][2], 7)


def _kinds(maps) -> list[str]:
    """The kinds of colours: heat has those of magnitudes."""
    kinds = {each.kind for of_classes in maps.values() for each in of_classes}
    return ["heat"] * bool(kinds - {"signs"}) + ["signs"] * ("signs" in kinds)


def _scales(figure, y, maps, colormap, theme):
    for row, kind in enumerate(_kinds(maps)):
        if kind == "heat":
            colour_scale(figure, MARGIN, y + SCALE * row, colormap)
        else:
            colour_scale(figure, MARGIN, y + SCALE * row, DIVERGING[theme], "scale of signs", ENDS)
