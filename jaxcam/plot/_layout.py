"""Figures, and where things stand in them: all lengths in inches, from the figure's top left corner.

A figure carries the colours of its theme, so that whatever is drawn on it later finds them there.
"""

import contextlib
import io
import math
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxcam import _files
from jaxcam._errors import unknown
from jaxcam.plot._pixels import PAPER, find_colormap

if TYPE_CHECKING:
    import matplotlib.figure

SAVED_DPI, SHOWN_DPI, MOST = 150, 100, 8  # dots an inch, and by how much a saved figure may be scaled
FORMATS = ("png", "svg", "pdf")


class Theme(NamedTuple):
    """The colours of a figure: its ground, what is written on it, the empty part of bars, and what is highlighted."""

    paper: str
    ink: str
    grey: str
    track: str
    accent: str


THEMES = {
    "light": Theme(PAPER["light"], "#1c1c1c", "#6a6a6a", "#ebebeb", "#c2403d"),
    "dark": Theme(PAPER["dark"], "#f1efec", "#a9a7af", "#37363f", "#f2766e"),
}
_, INK, GREY, TRACK, ACCENT = THEMES["light"]
FONT = {"family": "DejaVu Sans", "usetex": False, "parse_math": False}  # it ships with matplotlib; labels are no TeX

# The layouts, in inches; font sizes in points.
MARGIN, GUTTER, GAP, SEAM = 0.35, 0.45, 0.2, 0.05
HEADING, CAPTION, NOTE, FOOTER = 0.4, 0.28, 0.16, 0.56
SIDEBAR, SLIDE = 2.6, (12.0, 6.75)
BAR_ROW, SCALE_WIDTH, MOST_PREDICTIONS = 0.37, 2.6, 10
SMALLEST, LARGEST = 1.0, 4.2  # sides of a square picture
SAID, SENTENCE = 0.3, 4.2  # height and width of a sentence in small letters
ENDS = "against the class", "0", "for the class"  # of a scale of signs
NARROWEST = 1.45  # of what a caption stands over: it holds "Integrated gradients"


class Grid(NamedTuple):
    """Blocks of pictures under captions: where each caption starts, and each block's boxes (x, y, width, height)."""

    corners: list[tuple[float, float]]
    boxes: list[list[tuple[float, float, float, float]]]
    width: float  # of a block
    right: float
    bottom: float


def arranged(count, aspect, shapes, origin, room, caption, label=0.0, most=LARGEST) -> Grid:
    """Arranges `count` blocks so that pictures become as large as the room allows; too small, and the room grows.

    `shapes` are the blocks to choose from: pictures across and down. A block has a caption, and each of its pictures a
    label above it, of these heights. No picture gets larger than a square of side `most`.
    """
    root, best = math.sqrt(framed(aspect)), (0, 0, 0, (1, 1))

    def side(columns, rows, across, down):
        wide = ((room[0] + GAP) / columns - GAP - (across - 1) * SEAM) / across / root
        high = ((room[1] + GAP) / rows - GAP - caption - (down - 1) * SEAM - down * label) / down * root
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
    wide, high = min(largest, most) * root, min(largest, most) / root
    width = across * (wide + SEAM) - SEAM
    height = caption + down * (label + high + SEAM) - SEAM
    corners = [
        (origin[0] + index % columns * (width + GAP), origin[1] + index // columns * (height + GAP))
        for index in range(count)
    ]
    boxes = [
        [
            (x + column * (wide + SEAM), y + caption + label + row * (label + high + SEAM), wide, high)
            for row in range(down)
            for column in range(across)
        ]
        for x, y in corners
    ]
    right = max(x for x, _ in corners) + width
    return Grid(corners, boxes, width, right, corners[-1][1] + height)


def framed(aspect: float) -> float:
    """The aspect of the frame: a very long picture does not fill its own."""
    return min(max(aspect, 0.4), 2.5)


def blank(width, height, theme="light"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if theme not in THEMES:
        raise unknown("theme", theme, THEMES)
    figure: Any = Figure(figsize=(width, height), dpi=SHOWN_DPI, facecolor=THEMES[theme].paper, layout="none")  # pyright: ignore[reportArgumentType]
    figure.theme = THEMES[theme]
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(written, figure, "png", SHOWN_DPI)  # notebooks show it, though pyplot was not imported
    figure.show = partial(_shown, figure)  # matplotlib's own wants a figure of pyplot's
    return figure


def _shown(figure) -> None:
    """Shows a figure: in a notebook below the cell, elsewhere in the viewer that the system has for pictures."""
    from PIL import Image, ImageShow

    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    if hasattr(get_shell(), "kernel"):
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        display(figure)
    elif not ImageShow.show(Image.open(io.BytesIO(figure._repr_png_()))):
        raise OSError("There is no viewer of pictures here; jaxcam.plot.save(figure, path) writes a file.")


def written(figure, kind, dpi) -> bytes:
    """A figure as a file of this kind; what is no vector in it has `dpi` dots an inch."""
    content = io.BytesIO()
    box = figure.bbox_inches  # all of it, whatever rcParams say
    style = {"facecolor": figure.get_facecolor(), "transparent": False, "bbox_inches": box, "pad_inches": 0}
    own = {
        "png": {"pil_kwargs": {"compress_level": 4}},  # 2.5 times as fast as 6, for 3 % more bytes
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }
    with _any_letters():
        figure.savefig(content, format=kind, dpi=dpi, **style, **own[kind])
    return content.getvalue()


def save(figure: "matplotlib.figure.Figure", path: str | os.PathLike, *, scale: float | int = 1) -> None:
    """Writes a figure as PNG, SVG or PDF, whole or not at all; makes the folders that are missing.

    The pictures in it have `150 scale` dots an inch, and so has all of a PNG: a slide of 12 inches is 1800 pixels wide,
    and 3600 with `scale=2`. The rest of an SVG or PDF is drawn by curves and letters, sharp at any size.

    Args:
      figure: a figure of `jaxcam.plot`, or any of matplotlib's.
      path: ends in `.png`, `.svg` or `.pdf`.
      scale: of the resolution, above 0 and at most 8.

    Raises:
      ValueError: another suffix, or a scale outside of its range.
      OSError: the folder cannot be made or written.

    Example:
      >>> figure = jaxcam.plot.overlay(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 4, 4)))
      >>> save(figure, "figures/overlay.png", scale=2)
      >>> save(figure, "figures/overlay.pdf")
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"'{path}' does not end in .png, .svg or .pdf; figure.savefig writes other formats.")
    check_scale(scale)
    _files.write(path, written(figure, kind, SAVED_DPI * scale))


def check_scale(scale) -> None:
    if not 0 < scale <= MOST:
        raise ValueError(f"scale is {scale}; expected a number above 0 and at most {MOST}.")


def axes_at(figure, box, label):
    x, y, width, height = box
    across, down = figure.get_size_inches()
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down), label=label)
    axes.set_axis_off()
    return axes


def show(figure, box, picture, label):
    from matplotlib.patches import Rectangle

    axes = axes_at(figure, box, label)
    axes.imshow(picture, origin="upper", aspect="equal", interpolation="bicubic", resample=True)
    axes.set_anchor("NW")
    (height, width), edge = picture.shape[:2], figure.theme.track  # a picture on white gets an edge
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=edge, linewidth=0.5, clip_on=False))


def write(figure, x, y, text, **style):
    across, down = figure.get_size_inches()
    text = " ".join(str(text).split())
    return figure.text(x / across, 1 - y / down, text, **{"color": figure.theme.ink, "va": "baseline", **FONT, **style})


def sentence(figure, x, y, text):
    """In small letters, up to the right margin."""
    words = write(figure, x, y, text, fontsize=8.5, color=figure.theme.grey)
    fit([words], figure.get_figwidth() - MARGIN - x, 7)


def fit(texts, width, smallest):
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


@contextlib.contextmanager
def _any_letters():
    """A name may have letters that the font lacks; a frame stands for each, and matplotlib need not say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _length(renderer, text) -> float:
    with _any_letters():
        return max(text.get_window_extent(renderer).width / text.figure.dpi, 1e-6)


def headline(figure, title, explained=""):
    """The title and, at the right end of its line, what is explained."""
    room = figure.get_figwidth() - 2 * MARGIN
    shared = (room - GAP) / 2 if title and explained else room
    if title:
        fit([write(figure, MARGIN, MARGIN + 0.2, title, fontsize=16, fontweight="bold")], shared, 10)
    if explained:
        place = {"x": MARGIN + room, "ha": "right"} if title else {"x": MARGIN}
        fit([write(figure, y=MARGIN + 0.2, text=explained, fontsize=11.5, color=figure.theme.grey, **place)], shared, 8)


def caption_height(names, notes=()) -> float:
    """Of what `captions_above` writes: a line of names, a line of notes, or both."""
    if not names:
        return CAPTION if any(notes) else 0.0
    return CAPTION + (NOTE if any(notes) else 0)


def captions_above(figure, corners, names, width, notes=()):
    """A name at each corner and, where something must be said of its picture, a smaller note between the two."""
    last = caption_height(names, notes) - 0.11  # the baseline of the last line
    notes = list(notes) or [""] * len(corners)
    written = [
        write(figure, x, y + last - (NOTE if note else 0), name, fontsize=10.5)
        for (x, y), name, note in zip(corners, names, notes, strict=False)  # there may be no names
    ]
    fit(written, width, 7.5)
    noted = [(corner, note) for corner, note in zip(corners, notes, strict=True) if note]
    fit([write(figure, x, y + last, note, fontsize=8.5, color=figure.theme.grey) for (x, y), note in noted], width, 7)


def probability_bars(figure, x, y, predictions, explained=()):
    """Labels with their probabilities, each above a bar as long as the probability; the explained ones stand out."""
    height = BAR_ROW * len(predictions)
    axes = axes_at(figure, (x, y, SIDEBAR, height), "predictions")
    axes.set(xlim=(0, 1), ylim=(height, 0))
    highlighted = explained or [predictions[0][0]]
    texts = []
    for row, (label, probability) in enumerate(predictions, 1):
        colour, weight = (figure.theme.accent, "bold") if label in highlighted else (figure.theme.grey, "normal")
        bar = BAR_ROW * row - 0.1
        axes.barh(bar, 1, 0.07, color=figure.theme.track, linewidth=0)
        axes.barh(bar, probability, 0.07, color=colour, linewidth=0)
        style = {"fontsize": 9.5, "fontweight": weight}
        texts.append(write(figure, x, y + bar - 0.09, label, **style))
        texts.append(write(figure, x + SIDEBAR, y + bar - 0.09, _percent(probability), ha="right", **style))
    fit(texts, SIDEBAR - 0.65, 8)


def _percent(probability: float) -> str:
    if 0 < probability < 0.0005:
        return "<0.1%"
    return f"{probability:.1%}" if probability == 1 or probability < 0.9995 else ">99.9%"


def colour_scale(figure, x, y, colormap, label="colour scale", ends=("0", "relative importance", "1")):
    axes = axes_at(figure, (x, y, SCALE_WIDTH, 0.11), label)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=find_colormap(colormap), aspect="auto", interpolation="nearest")
    for position, text, side in zip((0, 0.5, 1), ends, ("left", "center", "right"), strict=True):
        write(figure, x + position * SCALE_WIDTH, y + 0.29, text, fontsize=9, color=figure.theme.grey, ha=side)
