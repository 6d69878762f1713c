"""Heatmaps as pictures: colours, overlays, and the panel that shows one photograph with many explanations.

The only file that imports matplotlib, and only inside functions. Figures are built from `Figure` and the Agg canvas
alone: no pyplot state and no rcParams are touched, so everything works headless, in threads and in notebooks.

Conventions:
- A heatmap is float `[h, w]` in [0, 1], of any resolution: it is stretched over its image bilinearly.
- An image to be shown is `[h, w, 3]`: uint8, float in [0, 1], or normalised floats as `preprocess` gives them, which
  are spread from their minimum to their maximum per image (`preprocess.restore` gives the exact colours). Arrays given
  together are judged together: all of them count as normalised where any value lies outside [0, 1].
- Layouts are computed in inches from the top left, so that nothing overlaps at any number of methods.
"""

import contextlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxcam._errors import unknown

COLORMAP = "inferno"  # perceptually uniform; any name that matplotlib knows will do, "jet" included
OPACITY = 0.7  # of the hottest places: the photograph's texture still shows
SLACK = 1e-3  # by which floats may leave [0, 1]
SAVED_DPI, SHOWN_DPI = 150, 100
SHORT_SIDE, LONG_SIDE = 256, 1024  # pixels of a picture in a figure, if its aspect allows

INK, GREY, TRACK, ACCENT = "#1c1c1c", "#6a6a6a", "#ebebeb", "#c2403d"
FONT = {"family": "DejaVu Sans", "usetex": False, "parse_math": False}  # it ships with matplotlib; labels are no TeX

# The layouts, in inches; font sizes in points.
MARGIN, GUTTER, GAP, SEAM = 0.35, 0.45, 0.2, 0.05
HEADING, SUBHEADING, CAPTION, FOOTER = 0.4, 0.34, 0.28, 0.56
SIDEBAR, SLIDE = 2.6, (12.0, 6.75)
BAR_ROW, SCALE_WIDTH, MOST_PREDICTIONS = 0.37, 2.6, 10
SMALLEST, LARGEST = 1.0, 4.2  # sides of a square picture
LABELS = 1.75  # beside a row of pictures
NARROWEST = 1.45  # of what a caption stands over: it holds "integrated_gradients"
ROW_TITLE, ROW_LARGEST = 1.1, 1.8  # in `rows`: room at the left, side of a picture
LETTER = 0.085  # width of one, on average, at the size of a curve's label


def colorize(heatmaps: Any, colormap: str = COLORMAP) -> UInt8[np.ndarray, "n h w 3"]:
    """The colours of heatmaps: float `[n, h, w]` in [0, 1] to uint8 `[n, h, w, 3]`.

    Args:
      heatmaps: float `[n, h, w]` in [0, 1].
      colormap: any name that matplotlib knows: "inferno", "viridis", "magma", "turbo", "jet", ...

    Raises:
      ValueError: unknown colour map (the error names the closest ones); not `[n, h, w]`; NaN or outside [0, 1].

    Example:
      >>> colorize(np.zeros((1, 2, 2)), "jet")[0, 0, 0].tolist()
      [0, 0, 127]
    """
    heats = _heats(heatmaps)
    return _colormap(colormap)(np.stack(heats), bytes=True)[..., :3]


def blend(
    images: Any, heatmaps: Any, *, colormap: str = COLORMAP, alpha: float | None = None
) -> UInt8[np.ndarray, "n h w 3"]:
    """Heatmaps laid over their images: uint8 `[n, H, W, 3]` at the images' resolution.

    Each pixel is `(1 - a) * image + a * colour`. By default the opacity `a` follows the heat `s` as
    `0.7 * min(1, 2 s)`: cold areas show the photograph as it is. A number makes it the same everywhere:
    `colormap="jet", alpha=0.5` is the familiar look.

    Args:
      images: `[n, H, W, 3]` or a list of `[H, W, 3]` of one size: uint8, float in [0, 1], or normalised floats.
      heatmaps: float `[n, h, w]` in [0, 1], of any resolution.
      colormap: any name that matplotlib knows.
      alpha: constant opacity in [0, 1]; `None` lets it follow the heat.

    Raises:
      ValueError: wrong shapes, different `n`, NaN, heat outside [0, 1], unknown colour map, alpha outside [0, 1].

    Example:
      >>> blend(np.full((1, 32, 32, 3), 9, np.uint8), np.zeros((1, 4, 4))).max()
      np.uint8(9)
    """
    pictures = _pictures(images)
    heats = _heats(heatmaps, len(pictures))
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"The images have the shapes {sorted(sizes)}; blend takes images of one size.")
    return np.stack([_blended(*pair, colormap, alpha) for pair in zip(pictures, heats, strict=True)])


def overlay(
    images: Any,
    heatmaps: Any,
    *,
    colormap: str = COLORMAP,
    alpha: float | None = None,
    titles: Sequence[str] | None = None,
) -> "matplotlib.figure.Figure":
    """A figure of heatmaps laid over their images, one column per image, wrapped into a grid, with a colour scale.

    Args:
      images: `[n, H, W, 3]` or a list of `[H, W, 3]` of any sizes: uint8, float in [0, 1], or normalised floats.
      heatmaps: float `[n, h, w]` in [0, 1], of any resolution.
      colormap: any name that matplotlib knows.
      alpha: constant opacity in [0, 1]; `None` lets it follow the heat, as in `blend`.
      titles: one per image.

    Raises:
      ValueError: wrong shapes, different `n`, NaN, heat outside [0, 1], unknown colour map, alpha outside [0, 1].

    Example:
      >>> figure = overlay(np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 4, 4)), titles=["cat", "dog"])
      >>> len(figure.axes)  # two images and the colour scale
      3
    """
    pictures = _pictures(images)
    heats = _heats(heatmaps, len(pictures))
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"There are {len(titles)} titles and {len(pictures)} images; give one title per image.")
    captions = titles or []
    aspect = float(np.median([picture.shape[1] / picture.shape[0] for picture in pictures]))
    room = SLIDE[0] - 2 * MARGIN, SLIDE[1] - 2 * MARGIN - FOOTER
    grid = _grid(len(pictures), aspect, [(1, 1)], (MARGIN, MARGIN), room, CAPTION if captions else 0)
    figure = _figure(max(grid.right, MARGIN + SCALE_WIDTH) + MARGIN, grid.bottom + FOOTER + MARGIN)
    for index, (picture, heat, [box]) in enumerate(zip(pictures, heats, grid.boxes, strict=True), 1):
        _show(figure, box, _blended(_displayed(picture), heat, colormap, alpha), f"overlay {index}")
    _captions(figure, grid.corners, captions, grid.boxes[0][0][2])
    _scale(figure, MARGIN, grid.bottom + GAP, colormap)
    return figure


def panel(
    image: Any,
    heatmaps: Mapping[str, Any],
    *,
    predictions: Sequence[tuple[str, Any]] = (),
    title: str | None = None,
    explained: str | None = None,
    colormap: str = COLORMAP,
) -> "matplotlib.figure.Figure":
    """One photograph, what the model takes it for, and per method the heatmap and its overlay, with a colour scale.

    The grid of methods is arranged so that the pictures become as large as a 16:9 slide allows; from some twenty
    methods on the figure grows instead, so that every title stays readable.

    Args:
      image: `[H, W, 3]`: uint8, float in [0, 1], or normalised floats.
      heatmaps: by method, float `[h, w]` in [0, 1], of any resolution.
      predictions: (label, probability) of the top classes, best first; at most ten are drawn.
      title: headline, such as the file's name.
      explained: the label of the class that the heatmaps explain; its bar is highlighted, or the first bar without it.
      colormap: any name that matplotlib knows.

    Raises:
      ValueError: no heatmaps, wrong shapes, NaN, heat outside [0, 1], a probability outside [0, 1], unknown colour map.

    Example:
      >>> figure = panel(np.zeros((64, 64, 3), np.uint8), {"grad_cam": np.eye(7)}, predictions=[("cat", 0.9)])
      >>> [axes.get_label() for axes in figure.axes]
      ['image', 'predictions', 'heatmap grad_cam', 'overlay grad_cam', 'colour scale']
    """
    picture = _displayed(_pictures([image])[0])
    if not heatmaps:
        raise ValueError("There are no heatmaps: the mapping is empty.")
    heats = {name: _stretched(_heat(heat, f"The heatmap {name!r}"), picture) for name, heat in heatmaps.items()}
    predictions = _probabilities(predictions)[:MOST_PREDICTIONS]

    aspect = picture.shape[1] / picture.shape[0]
    left, top = MARGIN + SIDEBAR + GUTTER, MARGIN + (HEADING if title else 0) + (SUBHEADING if explained else 0)
    photograph = MARGIN, top + CAPTION, SIDEBAR, SIDEBAR / _framed(aspect)
    bars = photograph[1] + photograph[3] + GAP
    bottom = bars + CAPTION + BAR_ROW * len(predictions) if predictions else bars - GAP
    room = SLIDE[0] - left - MARGIN, max(SLIDE[1] - MARGIN, bottom) - FOOTER - top
    grid = _grid(len(heats), aspect, [(1, 2), (2, 1)], (left, top), room, CAPTION)

    figure = _figure(max(grid.right, left + SCALE_WIDTH) + MARGIN, max(grid.bottom + FOOTER, bottom) + MARGIN)
    _headline(figure, title, explained)
    _captions(figure, [(MARGIN, top)], ["Image"], SIDEBAR)
    _show(figure, photograph, picture, "image")
    if predictions:
        _captions(figure, [(MARGIN, bars)], ["Predicted class"], SIDEBAR)
        _bars(figure, MARGIN, bars + CAPTION, predictions, explained)
    _captions(figure, grid.corners, list(heats), grid.width)
    for (name, heat), (alone, over) in zip(heats.items(), grid.boxes, strict=True):
        _show(figure, alone, _colormap(colormap)(heat, bytes=True)[..., :3], f"heatmap {name}")
        _show(figure, over, _blended(picture, heat, colormap, None), f"overlay {name}")
    _scale(figure, left, grid.bottom + GAP, colormap)
    return figure


def rows(
    images: Any,
    heatmaps: Mapping[str, Any],
    *,
    titles: Sequence[str] | None = None,
    over: bool = True,
    colormap: str = COLORMAP,
    alpha: float | None = None,
) -> "matplotlib.figure.Figure":
    """One row per image: the image, then the heatmap of each method, with a colour scale.

    Args:
      images: `[n, H, W, 3]` or a list of `[H, W, 3]` of any sizes: uint8, float in [0, 1], or normalised floats.
      heatmaps: by method, float `[n, h, w]` in [0, 1], of any resolution.
      titles: one per image, at the left of its row.
      over: heatmaps laid over their image, as in `blend`; otherwise on their own.
      colormap: any name that matplotlib knows.
      alpha: as in `blend`.

    Raises:
      ValueError: no heatmaps, wrong shapes, different `n`, NaN, heat outside [0, 1], unknown colour map, alpha outside
        [0, 1].

    Example:
      >>> figure = rows(np.zeros((2, 32, 32, 3), np.uint8), {"grad_cam": np.zeros((2, 4, 4))}, titles=["cat", "dog"])
      >>> len(figure.axes)  # two rows of two, and the colour scale
      5
    """
    pictures = [_displayed(picture) for picture in _pictures(images)]
    if not heatmaps:
        raise ValueError("There are no heatmaps: the mapping is empty.")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"There are {len(titles)} titles and {len(pictures)} images; give one title per image.")
    heats = {name: _heats(each, len(pictures)) for name, each in heatmaps.items()}
    left = MARGIN + (ROW_TITLE if titles else 0)
    aspect = _framed(float(np.median([picture.shape[1] / picture.shape[0] for picture in pictures])))
    wide = max(NARROWEST, min(ROW_LARGEST, (SLIDE[0] - left - MARGIN) / (1 + len(heats)) - SEAM))
    high, top = wide / aspect, MARGIN + CAPTION
    right, bottom = left + (1 + len(heats)) * (wide + SEAM) - SEAM, top + len(pictures) * (high + SEAM) - SEAM

    figure = _figure(max(right, left + SCALE_WIDTH) + MARGIN, bottom + FOOTER + MARGIN)
    corners = [(left + column * (wide + SEAM), MARGIN) for column in range(1 + len(heats))]
    _captions(figure, corners, ["Image", *heats], wide)
    row_titles = []
    for row, picture in enumerate(pictures):
        y = top + row * (high + SEAM)
        if titles:
            row_titles.append(_text(figure, MARGIN, y + high / 2, titles[row], fontsize=10.5, va="center"))
        _show(figure, (left, y, wide, high), picture, f"image {row + 1}")
        for (x, _), (name, own) in zip(corners[1:], heats.items(), strict=True):
            alone = _colormap(colormap)(_stretched(own[row], picture), bytes=True)[..., :3]
            shown = _blended(picture, own[row], colormap, alpha) if over else alone
            _show(figure, (x, y, wide, high), shown, f"{name} {row + 1}")
    _fit(row_titles, ROW_TITLE - GAP, 8)
    _scale(figure, left, bottom + GAP, colormap)
    return figure


def curves(
    values: Mapping[str, Sequence[float]],
    *,
    x: Sequence[float] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
) -> "matplotlib.figure.Figure":
    """Named curves, each labelled at its end: training, deletion and insertion.

    Args:
      values: by name, the height of each point.
      x: the place of each point, for all curves; `None` is 1, 2, 3, ...
      intervals: by name, half the width of the band around each point; curves without one have no band.

    Raises:
      ValueError: there are no curves, or one of them has no points.

    Example:
      >>> figure = curves({"train": [0.5, 0.2, 0.1], "test": [0.5, 0.3, 0.25]}, xlabel="epoch", ylabel="error rate")
    """
    if not values or not all(len(each) for each in values.values()):
        raise ValueError("There is nothing to draw: give at least one curve with at least one point.")
    figure, (axes,) = _charts(1, xlabel, ylabel, [title], beside=LETTER * max(map(len, values)))
    ends = []
    for colour, (name, each) in zip(_colours(len(values)), values.items(), strict=True):
        places, each = np.arange(1, len(each) + 1) if x is None else np.asarray(x), np.asarray(each)
        axes.plot(places, each, color=colour, linewidth=1.8, marker="o", markersize=3, clip_on=False)
        if name in (intervals or {}):
            half = np.asarray(intervals[name])
            axes.fill_between(places, each - half, each + half, color=colour, alpha=0.15, linewidth=0)
        ends.append((name, colour, places[-1], each[-1]))
    if x is None:
        axes.set_xlim(1, None)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _end_labels(figure, axes, ends)
    return figure


def scatter(
    points: Mapping[str, Mapping[str, tuple[float, float]]], *, xlabel: str = "", ylabel: str = "", log_x: bool = False
) -> "matplotlib.figure.Figure":
    """Named points `(x, y)`, one chart for each group, such as quality against cost; points none beats are marked.

    A point is beaten by one that lies to its left and above it (cheaper and better).

    Raises:
      ValueError: there are no points.

    Example:
      >>> figure = scatter({"shapes": {"grad_cam": (1.1, 0.7), "rise": (900.0, 0.8)}}, log_x=True)
    """
    if not points or not all(points.values()):
        raise ValueError("There is nothing to draw: give at least one point for each chart.")
    figure, charts = _charts(len(points), xlabel, ylabel, list(points))
    for axes, group in zip(charts, points.values(), strict=True):
        axes.set_xscale("log" if log_x else "linear")
        for x, y in group.values():
            beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in group.values())
            axes.plot(x, y, "o", color=GREY if beaten else ACCENT, markersize=5 if beaten else 7, zorder=3)
        axes.margins(0.12)
        _labels_apart(figure, axes, group)
    return figure


def save(figure: "matplotlib.figure.Figure", path: str | os.PathLike) -> None:
    """Writes a figure as PNG at 150 dpi, whole or not at all; makes the folders that are missing.

    Raises:
      ValueError: the path does not end in `.png` (`figure.savefig` writes other formats).
      OSError: the folder cannot be made or written.

    Example:
      >>> save(overlay(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 4, 4))), "figures/overlay.png")
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"'{path}' does not end in .png; figure.savefig writes other formats.")
    content = _png(figure, SAVED_DPI)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise type(error)(f"Cannot write '{path}': {error.strerror}. Choose another output folder.") from error


# What is given: checks, and pictures in uint8.


def _pictures(images) -> list[np.ndarray]:
    """Images as uint8 `[h, w, 3]`, whichever of the three conventions they follow."""
    if getattr(images, "ndim", 4) != 4:
        raise ValueError(f"The images have shape {images.shape}; expected [n, h, w, 3] or a list. Use [image] for one.")
    arrays = [np.asarray(image) for image in images]
    if not arrays:
        raise ValueError("There are no images.")
    for index, array in enumerate(arrays, 1):
        name = "The image" if len(arrays) == 1 else f"Image {index} of {len(arrays)}"
        if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
            hint = " For files, use preprocess.view(files)." if array.ndim == 0 else ""
            raise ValueError(f"{name} has shape {array.shape}; expected [h, w, 3].{hint}")
        if array.dtype != np.uint8 and array.dtype.kind in "iub":
            raise ValueError(f"{name} holds {array.dtype}; expected uint8 or floating point.")
        if array.dtype != np.uint8 and not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{name} has NaN or infinite pixels.")
    floats = [array.astype(np.float32) for array in arrays if array.dtype != np.uint8]
    normalised = any(array.min() < -SLACK or array.max() > 1 + SLACK for array in floats)
    return [array if array.dtype == np.uint8 else _eight_bits(array.astype(np.float32), normalised) for array in arrays]


def _eight_bits(array, normalised) -> np.ndarray:
    if normalised:
        array = (array - array.min()) / max(array.max() - array.min(), np.finfo(np.float32).tiny)
    return np.uint8(np.round(255 * np.clip(array, 0, 1)))


def _heats(heatmaps, expected: int | None = None) -> list[np.ndarray]:
    heatmaps = np.asarray(heatmaps)
    if heatmaps.ndim != 3 or not heatmaps.size:
        hints = {2: " Use heatmap[None] for one.", 4: " For attributions, use jaxcam.heatmap(attributions)."}
        hint = hints.get(heatmaps.ndim, "")
        raise ValueError(f"The heatmaps have shape {heatmaps.shape}; expected [n, h, w].{hint}")
    if expected is not None and len(heatmaps) != expected:
        raise ValueError(f"There are {len(heatmaps)} heatmaps and {expected} images; give one heatmap per image.")
    return [_heat(heat, f"Heatmap {index} of {len(heatmaps)}") for index, heat in enumerate(heatmaps, 1)]


def _heat(heat, name) -> np.ndarray:
    heat = np.asarray(heat)
    if heat.ndim != 2 or not heat.size:
        hint = " For attributions, use jaxcam.heatmap(attributions)." if heat.ndim == 3 and heat.shape[-1] == 3 else ""
        raise ValueError(f"{name} has shape {heat.shape}; expected [h, w].{hint}")
    heat = heat.astype(np.float32)
    if not np.isfinite(heat).all():
        raise ValueError(f"{name} has NaN or infinite values.")
    if heat.min() < -SLACK or heat.max() > 1 + SLACK:
        raise ValueError(
            f"{name} ranges from {heat.min():.3g} to {heat.max():.3g}; expected [0, 1]. "
            "For signed attributions, use jaxcam.heatmap(attributions)."
        )
    return np.clip(heat, 0, 1)


def _probabilities(predictions) -> list[tuple[str, float]]:
    for label, probability in predictions:
        if not -SLACK <= probability <= 1 + SLACK:
            raise ValueError(f"The probability of {label!r} is {probability}; expected a number in [0, 1].")
    return [(str(label), float(probability)) for label, probability in predictions]


def _colormap(name):
    import matplotlib

    if name not in matplotlib.colormaps:
        raise unknown("colour map", name, matplotlib.colormaps)
    return matplotlib.colormaps[name]


# From numbers to pixels.


def _stretched(heat, picture) -> np.ndarray:
    size = picture.shape[1], picture.shape[0]
    return np.asarray(Image.fromarray(np.ascontiguousarray(heat)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


def _blended(picture, heat, colormap, alpha) -> np.ndarray:
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected a number in [0, 1], or None to let the opacity follow the heat.")
    heat = _stretched(heat, picture)
    opacity = OPACITY * np.minimum(1, 2 * heat) if alpha is None else np.full_like(heat, alpha)
    colours = np.float32(_colormap(colormap)(heat, bytes=True)[..., :3])
    return np.uint8(np.round(picture + opacity[..., None] * (colours - picture)))


def _displayed(picture) -> np.ndarray:
    """A small picture in larger pixels, so that it stays crisp under smooth heat; a huge one scaled down."""
    short, long = min(picture.shape[:2]), max(picture.shape[:2])
    if long > LONG_SIDE:
        size = [max(1, round(side * LONG_SIDE / long)) for side in picture.shape[1::-1]]
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    times = min(math.ceil(SHORT_SIDE / short), LONG_SIDE // long)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


# Layout: all lengths in inches, from the figure's top left corner.


class _Grid(NamedTuple):
    """Blocks of pictures under captions: where each caption starts, and each block's boxes (x, y, width, height)."""

    corners: list[tuple[float, float]]
    boxes: list[list[tuple[float, float, float, float]]]
    width: float  # of a block
    right: float
    bottom: float


def _grid(count, aspect, shapes, origin, room, caption) -> _Grid:
    """Arranges `count` blocks so that pictures become as large as the room allows; too small, and the room grows.

    `shapes` are the blocks to choose from: pictures across and down.
    """
    root, best = math.sqrt(_framed(aspect)), (0, 0, 0, (1, 1))

    def side(columns, rows, across, down):
        wide = ((room[0] + GAP) / columns - GAP - (across - 1) * SEAM) / across / root
        high = ((room[1] + GAP) / rows - GAP - caption - (down - 1) * SEAM) / down * root
        legible = not caption or across * min(wide, high) * root >= NARROWEST
        return min(wide, high) if legible else 0

    while best[0] < SMALLEST:
        best = max(  # of equally large ones, the arrangement with fewer gaps
            (side(columns, rows, *shape), -rows * columns, columns, shape)
            for shape in shapes
            for columns in range(1, count + 1)
            for rows in [math.ceil(count / columns)]
        )
        room = 1.05 * room[0], 1.05 * room[1]
    largest, _, columns, (across, down) = best
    wide, high = min(largest, LARGEST) * root, min(largest, LARGEST) / root
    width = across * (wide + SEAM) - SEAM
    height = caption + down * (high + SEAM) - SEAM
    corners = [
        (origin[0] + index % columns * (width + GAP), origin[1] + index // columns * (height + GAP))
        for index in range(count)
    ]
    boxes = [
        [
            (x + column * (wide + SEAM), y + caption + row * (high + SEAM), wide, high)
            for row in range(down)
            for column in range(across)
        ]
        for x, y in corners
    ]
    right = max(x for x, _ in corners) + width
    return _Grid(corners, boxes, width, right, corners[-1][1] + height)


def _framed(aspect: float) -> float:
    """The aspect of the frame: a very long picture does not fill its own."""
    return min(max(aspect, 0.4), 2.5)


def _figure(width, height):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=SHOWN_DPI, facecolor="white", layout="none")
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(_png, figure, SHOWN_DPI)  # notebooks show it, though pyplot was never imported
    return figure


def _png(figure, dpi) -> bytes:
    content = io.BytesIO()
    box = figure.bbox_inches  # all of it, whatever rcParams say
    figure.savefig(content, format="png", dpi=dpi, facecolor="white", transparent=False, bbox_inches=box, pad_inches=0)
    return content.getvalue()


def _axes(figure, box, label):
    x, y, width, height = box
    across, down = figure.get_size_inches()
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down), label=label)
    axes.set_axis_off()
    return axes


def _show(figure, box, picture, label):
    from matplotlib.patches import Rectangle

    axes = _axes(figure, box, label)
    axes.imshow(picture, origin="upper", aspect="equal", interpolation="bicubic", resample=True)
    axes.set_anchor("NW")
    height, width = picture.shape[:2]  # a picture on white gets an edge
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=TRACK, linewidth=0.5, clip_on=False))


def _text(figure, x, y, text, **style):
    across, down = figure.get_size_inches()
    text = " ".join(str(text).split())
    return figure.text(x / across, 1 - y / down, text, **{"color": INK, "va": "baseline", **FONT, **style})


def _fit(texts, width, smallest):
    """Shrinks texts alike until the longest fits `width`, and shortens those that do not even fit at `smallest`."""
    if not texts:
        return
    length = partial(_length, texts[0].figure.canvas.get_renderer())
    size = texts[0].get_fontsize()
    size = max(smallest, min(size, 0.99 * size * width / max(map(length, texts))))  # hinting moves letters
    for text in texts:
        text.set_fontsize(size)
        full = text.get_text()
        keep = len(full)
        while length(text) > width and keep > 1:
            keep = min(keep - 1, int(keep * width / length(text)))
            text.set_text(full[:keep].rstrip() + "…")


def _length(renderer, text) -> float:
    return max(text.get_window_extent(renderer).width / text.figure.dpi, 1e-6)


def _headline(figure, title, explained):
    room = figure.get_figwidth() - 2 * MARGIN
    if title:
        _fit([_text(figure, MARGIN, MARGIN + 0.2, title, fontsize=16, fontweight="bold")], room, 10)
    if explained:
        y = MARGIN + (HEADING if title else 0) + 0.12
        _fit([_text(figure, MARGIN, y, f"Explained class: {explained}", fontsize=11, color=GREY)], room, 8)


def _captions(figure, corners, names, width):
    _fit([_text(figure, x, y + 0.17, n, fontsize=10.5) for (x, y), n in zip(corners, names, strict=False)], width, 8)


def _bars(figure, x, y, predictions, explained):
    """Labels with their probabilities, each above a bar as long as the probability."""
    height = BAR_ROW * len(predictions)
    axes = _axes(figure, (x, y, SIDEBAR, height), "predictions")
    axes.set(xlim=(0, 1), ylim=(height, 0))
    highlighted = predictions[0][0] if explained is None else explained
    texts = []
    for row, (label, probability) in enumerate(predictions, 1):
        colour, weight = (ACCENT, "bold") if label == highlighted else (GREY, "normal")
        bar = BAR_ROW * row - 0.1
        axes.barh(bar, 1, 0.07, color=TRACK, linewidth=0)
        axes.barh(bar, probability, 0.07, color=colour, linewidth=0)
        style = {"fontsize": 9.5, "fontweight": weight}
        texts.append(_text(figure, x, y + bar - 0.09, label, **style))
        texts.append(_text(figure, x + SIDEBAR, y + bar - 0.09, _percent(probability), ha="right", **style))
    _fit(texts, SIDEBAR - 0.65, 8)


def _percent(probability: float) -> str:
    if 0 < probability < 0.0005:
        return "<0.1%"
    return f"{probability:.1%}" if probability == 1 or probability < 0.9995 else ">99.9%"


def _scale(figure, x, y, colormap):
    axes = _axes(figure, (x, y, SCALE_WIDTH, 0.11), "colour scale")
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=_colormap(colormap), aspect="auto", interpolation="nearest")
    for position, text, side in ((0, "0", "left"), (0.5, "relative importance", "center"), (1, "1", "right")):
        _text(figure, x + position * SCALE_WIDTH, y + 0.29, text, fontsize=9, color=GREY, ha=side)


def _labels_apart(figure, axes, group):
    """Each point's name beside it, pushed up or down until it lies on no other name."""
    figure.canvas.draw()
    renderer, taken = figure.canvas.get_renderer(), []
    for name, (x, y) in sorted(group.items(), key=lambda item: -item[1][1]):
        sides = [(7, "left"), (-7, "right")]
        shifts = sorted(range(-120, 121, 4), key=abs)
        for shift, (across, side) in ((shift, place) for shift in shifts for place in sides):
            style = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 7.5, "color": INK}
            arrow = {"arrowstyle": "-", "color": TRACK, "linewidth": 0.6, "shrinkB": 2} if abs(shift) > 8 else None
            text = axes.annotate(name, (x, y), xytext=(across, shift), arrowprops=arrow, **style, **FONT)
            box = text.get_window_extent(renderer).expanded(1.02, 1.1)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _end_labels(figure, axes, ends):
    """The curves' names beside their ends `(name, colour, x, y)`, pushed upwards until none lies on another."""
    figure.canvas.draw()
    points = figure.dpi / 72
    lowest = -np.inf
    for name, colour, x, y in sorted(ends, key=lambda end: end[3]):
        _, height = axes.transData.transform((x, y))
        place = max(height, lowest)
        lowest = place + 12 * points
        offset = {"xytext": (7, (place - height) / points), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, (x, y), color=colour, fontsize=9.5, annotation_clip=False, **offset, **FONT)


def _charts(count, xlabel, ylabel, titles, beside=0.0):
    """A figure with `count` empty charts next to each other, and room for labels `beside` the last one."""
    wide, high, left, below = 5.6, 4.4, 0.5, 0.45
    figure = _figure(count * (wide + left + GUTTER) + beside + 2 * MARGIN, high + below + HEADING + 2 * MARGIN)
    charts = []
    for index, title in enumerate(titles):
        x = MARGIN + left + index * (wide + left + GUTTER)
        axes = _axes(figure, (x, MARGIN + HEADING, wide, high), f"chart {index + 1}")
        _dress(axes, xlabel, ylabel if index == 0 else "")
        if title:
            _text(figure, x, MARGIN + 0.15, title, fontsize=12, fontweight="bold")
        charts.append(axes)
    return figure, charts


def _dress(axes, xlabel, ylabel):
    axes.set_axis_on()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=TRACK, linewidth=0.6)
    axes.tick_params(labelsize=9, colors=GREY, labelfontfamily=FONT["family"])
    axes.set_xlabel(xlabel, fontsize=10, color=INK, **FONT)
    axes.set_ylabel(ylabel, fontsize=10, color=INK, **FONT)


def _colours(count: int) -> list:
    return [ACCENT, "#2f6db3", "#3a8f5c", "#8a5fb0", "#b8862b", GREY][:count] if count <= 6 else ["#444444"] * count


# Figures of studies: rows of pictures, a matrix of counts, and numbers with their intervals.


def gallery(
    rows: Sequence[Sequence[Any]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str | None = None,
    across: int = 1,
    side: float = 1.5,
    colormap: str = COLORMAP,
) -> "matplotlib.figure.Figure":
    """Rows of pictures under common headings, with a colour scale where heat is shown.

    A cell is an image `[h, w, 3]`, a heatmap `[h, w]` in [0, 1], a pair `(image, heatmap)` that is drawn as an overlay,
    a list of predictions `[(label, probability), ...]`, best first, that is drawn as bars, or `None` for nothing.

    Args:
      rows: of equally many cells each.
      columns: a heading for each place of a row.
      labels: what stands to the left of each row; lines after the first are smaller.
      title: headline.
      across: rows that stand beside each other; they are filled from left to right, then downwards.
      side: of a picture, in inches.
      colormap: any name that matplotlib knows.

    Raises:
      ValueError: no rows, rows, labels or columns of different number, and all that `overlay` and `panel` reject.

    Example:
      >>> image = np.zeros((32, 32, 3), np.uint8)
      >>> figure = gallery([[image, np.eye(4), (image, np.eye(4)), [("cat", 0.9)]]], labels=["cat\\nright"])
    """
    rows, across = [list(row) for row in rows], min(across, len(rows))
    if not rows or {len(row) for row in rows} != {len(rows[0])} or not rows[0]:
        raise ValueError("The rows must hold equally many cells, and at least one.")
    if len(columns) not in (0, len(rows[0])) or len(labels) not in (0, len(rows)):
        raise ValueError(f"There are {len(columns)} columns and {len(labels)} labels for {len(rows)}x{len(rows[0])}.")
    widths = [SIDEBAR if any(isinstance(row[place], list) for row in rows) else side for place in range(len(rows[0]))]
    starts = np.cumsum([LABELS if labels else 0, *(width + GAP / 2 for width in widths)])
    top = MARGIN + (HEADING if title else 0)
    height = max([side] + [BAR_ROW * len(cell[:5]) for row in rows for cell in row if isinstance(cell, list)])
    pitch = starts[-1] - GAP / 2 + GUTTER, height + GAP / 2
    bottom = top + (CAPTION if columns else 0) + math.ceil(len(rows) / across) * pitch[1] - GAP / 2
    heat = any(isinstance(cell, tuple) or getattr(cell, "ndim", 0) == 2 for row in rows for cell in row)
    wide = max(across * pitch[0] - GUTTER, SCALE_WIDTH if heat else 0)
    figure = _figure(wide + 2 * MARGIN, bottom + (FOOTER if heat else 0) + MARGIN)
    _headline(figure, title, None)
    for block in range(across if columns else 0):
        _captions(figure, [(MARGIN + block * pitch[0] + start, top) for start in starts[:-1]], columns, min(widths))
    for index, row in enumerate(rows):
        x = MARGIN + index % across * pitch[0]
        y = bottom + GAP / 2 - (math.ceil(len(rows) / across) - index // across) * pitch[1]
        for line, text in enumerate(labels[index].splitlines() if labels else []):
            style = {"fontsize": 9, "color": GREY} if line else {"fontsize": 10.5, "fontweight": "bold"}
            _fit([_text(figure, x, y + 0.17 * (line + 1), text, **style)], LABELS - GAP / 2, 7)
        for place, cell in enumerate(row):
            _cell(figure, (x + starts[place], y, widths[place], side), cell, f"{index + 1}.{place + 1}", colormap)
    if heat:
        _scale(figure, MARGIN, bottom + GAP, colormap)
    return figure


def _cell(figure, box, cell, label, colormap):
    if isinstance(cell, list):
        _bars(figure, *box[:2], _probabilities(cell)[:5], None)
    elif isinstance(cell, tuple):
        picture = _displayed(_pictures([cell[0]])[0])
        _show(figure, box, _blended(picture, _heat(cell[1], "The heatmap"), colormap, None), f"overlay {label}")
    elif cell is not None and np.ndim(cell) == 2:
        square = np.zeros((SHORT_SIDE, SHORT_SIDE * np.shape(cell)[1] // np.shape(cell)[0], 3), np.uint8)
        heat = _stretched(_heat(cell, "The heatmap"), square)
        _show(figure, box, _colormap(colormap)(heat, bytes=True)[..., :3], f"heatmap {label}")
    elif cell is not None:
        _show(figure, box, _displayed(_pictures([cell])[0]), f"image {label}")


def matrix(
    counts: Any, labels: Sequence[str], *, xlabel: str = "", ylabel: str = "", title: str | None = None
) -> "matplotlib.figure.Figure":
    """A square matrix of counts, such as a confusion matrix; the colour is the share of the row, as its square root.

    The root lets rare confusions show beside a strong diagonal.

    Raises:
      ValueError: not as many rows and columns as labels.

    Example:
      >>> figure = matrix([[9, 1], [2, 8]], ["cat", "dog"], xlabel="predicted", ylabel="true")
    """
    counts = np.asarray(counts)
    if counts.shape != (len(labels), len(labels)):
        raise ValueError(f"The matrix has shape {counts.shape}; expected {len(labels)} labels in each direction.")
    cell, left, top = 0.56, 1.25, MARGIN + (HEADING if title else 0) + 0.75
    extent = cell * len(labels)
    figure = _figure(left + extent + 2 * MARGIN, top + extent + MARGIN)
    _headline(figure, title, None)
    shares = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    axes = _axes(figure, (MARGIN + left, top, extent, extent), "matrix")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.6 else INK
        axes.text(column, row, f"{counts[row, column]:,}", color=colour, ha="center", va="center", fontsize=9, **FONT)
    for index, label in enumerate(labels):
        centre = (index + 0.5) * cell
        _text(figure, MARGIN + left - 0.08, top + centre, label, fontsize=9.5, ha="right", va="center")
        _text(figure, MARGIN + left + centre, top - 0.08, label, fontsize=9.5, ha="left", rotation=40)
    _text(figure, MARGIN, top - 0.1, ylabel, fontsize=10.5, color=GREY)
    _text(figure, MARGIN + left + extent, top + extent + 0.2, xlabel, fontsize=10.5, color=GREY, ha="right")
    return figure


def intervals(
    values: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    xlabel: str = "",
    title: str | None = None,
    reference: float | int | None = None,
) -> "matplotlib.figure.Figure":
    """Named numbers with their intervals, `(value, half of the interval)`, one under the other and in groups.

    `reference` is marked by a line, such as zero for a difference or one half for a coin's chance.

    Raises:
      ValueError: there are no numbers.

    Example:
      >>> figure = intervals({"right": {"grad_cam": (0.4, 0.02)}, "wrong": {"grad_cam": (0.5, 0.05)}}, xlabel="area")
    """
    if not values or not all(values.values()):
        raise ValueError("There is nothing to draw: give at least one number for each group.")
    wide, line, left, right = 5.6, 0.27, 2.5, 1.3
    top = MARGIN + (HEADING if title else 0)
    high = line * (len(values) + sum(map(len, values.values())))
    figure = _figure(2 * MARGIN + left + wide + right, top + high + 0.45 + MARGIN)
    _headline(figure, title, None)
    axes = _axes(figure, (MARGIN + left, top, wide, high), "intervals")
    _dress(axes, xlabel, "")
    axes.spines["left"].set_visible(False)
    if reference is not None:
        axes.axvline(reference, color=GREY, linewidth=1)
    y, names = top, []
    for name, group in values.items():
        _fit([_text(figure, MARGIN, y + 0.6 * line, name, fontsize=10, fontweight="bold")], left, 7)
        for row, (value, half) in group.items():
            y += line
            place = (y - top) / line + 0.5
            axes.errorbar(value, place, xerr=half, color=ACCENT, marker="o", markersize=5, capsize=3, linewidth=1.5)
            names.append(_text(figure, MARGIN + GAP, y + 0.6 * line, row, fontsize=9.5))
            number = f"{value:.3f} ± {half:.3f}"
            _text(figure, MARGIN + left + wide + GAP, y + 0.6 * line, number, fontsize=9.5, color=GREY)
        y += line
    _fit(names, left - 2 * GAP, 7)
    axes.set(ylim=(high / line, 0), yticks=[])
    return figure
