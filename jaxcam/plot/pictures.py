"""Figures of images and their heatmaps: overlays, galleries of rows, volumes in slices."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcam.plot._layout import (
    BAR_ROW,
    CAPTION,
    ENDS,
    FOOTER,
    GAP,
    GUTTER,
    HEADING,
    LARGEST,
    MARGIN,
    SAID,
    SAVED_DPI,
    SCALE_WIDTH,
    SENTENCE,
    SIDEBAR,
    SLIDE,
    SMALLEST,
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
    SHORT_SIDE,
    SMOOTHING,
    along,
    altered,
    as_heat,
    as_heats,
    as_maps,
    as_pictures,
    as_probabilities,
    as_volumes,
    blended,
    displayed,
    find_colormap,
    note,
    signs,
    stretched,
)

if TYPE_CHECKING:
    import matplotlib.figure

LABELS = 1.75  # beside a row of pictures
LARGEST_SLICE = 2.4  # side of a square slice


def overlay(
    images: Any,
    heatmaps: Any,
    *,
    colormap: str = COLORMAP,
    alpha: float | None = None,
    titles: Sequence[str] | None = None,
    theme: str = "light",
) -> "matplotlib.figure.Figure":
    """A figure of heatmaps laid over their images, one column per image, wrapped into a grid, with a colour scale.

    A heatmap that is zero everywhere is said to be so above its image. Attributions, smoothed and cut for display as in
    `panel`, are drawn with their signs in diverging colours, zero in the middle; without a negative value, as heat.
    One image alone, saved by `save`, has the pixels of its photograph, from 300 a side to as many as fill a slide.

    Args:
      images: `[n, H, W, 3]` or a list of `[H, W, 3]` of any sizes: uint8, float in [0, 1], or normalised floats.
      heatmaps: float `[n, h, w]` in [0, 1], or attributions, `[n, h, w, c]` or signed `[n, h, w]`, of any resolution.
      colormap: of heat: any name that matplotlib knows.
      alpha: of heat: constant opacity in [0, 1]; `None` lets it follow the heat, as in `blend`.
      titles: one per image.
      theme: "light" or "dark".

    Raises:
      ValueError: wrong shapes, different `n`, NaN, heat outside [0, 1], unknown colour map or theme, alpha outside
        [0, 1].

    Example:
      >>> figure = overlay(np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 4, 4)), titles=["cat", "dog"])
      >>> len(figure.axes)  # two images and the colour scale
      3
    """
    pictures = as_pictures(images)
    maps, kind = as_maps(heatmaps, len(pictures))
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"There are {len(titles)} titles and {len(pictures)} images; give one title per image.")
    captions, notes = list(titles or []), [note(each) for each in maps]
    above, said = caption_height(captions, notes), "" if kind == "heat" else altered(SMOOTHING, PERCENTILE)[1]
    aspect = float(np.median([picture.shape[1] / picture.shape[0] for picture in pictures]))
    room = SLIDE[0] - 2 * MARGIN, SLIDE[1] - 2 * MARGIN - FOOTER - (SAID if said else 0)
    own = math.sqrt(math.prod(pictures[0].shape[:2])) / SAVED_DPI
    most = own if len(pictures) == 1 and own > LARGEST / 2 else LARGEST  # what is small is enlarged
    grid = arranged(len(pictures), aspect, [(1, 1)], (MARGIN, MARGIN), room, above, most=most)
    right, bottom = max(grid.right, MARGIN + (SENTENCE if said else SCALE_WIDTH)), grid.bottom + FOOTER
    figure = blank(right + MARGIN, bottom + (SAID if said else 0) + MARGIN, theme)
    for index, (picture, each, [box]) in enumerate(zip(map(displayed, pictures), maps, grid.boxes, strict=True), 1):
        drawn = signs(picture, each, theme) if kind == "signs" else blended(picture, each, colormap, alpha)
        show(figure, box, drawn, f"overlay {index}")
    captions_above(figure, grid.corners, captions, grid.width, notes)
    if kind == "signs":
        colour_scale(figure, MARGIN, grid.bottom + GAP, DIVERGING[theme], "scale of signs", ENDS)
    else:
        colour_scale(figure, MARGIN, grid.bottom + GAP, colormap)
    if said:
        sentence(figure, MARGIN, bottom + 0.2, said)
    return figure


def gallery(
    rows: Sequence[Sequence[Any]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str | None = None,
    across: int = 1,
    side: float = 1.5,
    colormap: str = COLORMAP,
    alpha: float | None = None,
    theme: str = "light",
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
      alpha: of overlays, as in `blend`.
      theme: "light" or "dark".

    Raises:
      ValueError: no rows, rows, labels or columns of different number, and all that `overlay` and `panel` reject.

    Example:
      >>> image = np.zeros((32, 32, 3), np.uint8)
      >>> figure = gallery([[image, np.eye(4), (image, np.eye(4)), [("cat", 0.9)]]], labels=["cat\\nright"])
    """
    rows = [list(row) for row in rows]
    if not rows or {len(row) for row in rows} != {len(rows[0])} or not rows[0]:
        raise ValueError("The rows must hold equally many cells, and at least one.")
    if len(columns) not in (0, len(rows[0])) or len(labels) not in (0, len(rows)):
        raise ValueError(f"There are {len(columns)} columns and {len(labels)} labels for {len(rows)}x{len(rows[0])}.")
    return _gallery(rows, columns, labels, title, min(across, len(rows)), (side, side), colormap, alpha, theme)


def volume(
    volumes: Any,
    heatmaps: Any,
    *,
    axis: int = 0,
    num_slices: int = 6,
    titles: Sequence[str] | None = None,
    colormap: str = COLORMAP,
    alpha: float | None = None,
    theme: str = "light",
) -> "matplotlib.figure.Figure":
    """A figure of slices through volumes with their heatmaps laid over them, one row per volume, with a colour scale.

    The slices lie evenly apart, each in the middle of its share of the volume, so that none shows the very edge. A
    heatmap that is zero everywhere is said to be so beside its row.

    Args:
      volumes: `[n, d, h, w, 1]`, shown in grey, or `[n, d, h, w, 3]`: uint8, float in [0, 1], or other floats, which
        are spread from their minimum to their maximum per volume.
      heatmaps: float `[n, d, h, w]` in [0, 1], of any resolution: stretched over the volume linearly.
      axis: the axis of space that is cut across: 0 gives slices `[h, w]`, 1 gives `[d, w]`, 2 gives `[d, h]`.
      num_slices: how many; at most as many as the axis has places.
      titles: one per volume, to the left of its row; lines after the first are smaller.
      colormap: any name that matplotlib knows.
      alpha: constant opacity in [0, 1]; `None` lets it follow the heat, as in `blend`.
      theme: "light" or "dark".

    Raises:
      ValueError: wrong shapes, different `n`, NaN, heat outside [0, 1], an axis that is none of 0, 1, 2, no slices,
        unknown colour map, alpha outside [0, 1].

    Example:
      >>> figure = volume(np.zeros((1, 8, 16, 16, 1)), np.zeros((1, 4, 4, 4)), axis=2, num_slices=3)
      >>> len(figure.axes)  # three slices and the colour scale
      4
    """
    solids = as_volumes(volumes)
    heats = as_heats(heatmaps, len(solids), space=3, kind="volume")
    if axis not in (0, 1, 2):
        raise ValueError(f"axis is {axis}; a volume has the axes of space 0, 1 and 2.")
    if num_slices < 1:
        raise ValueError(f"num_slices is {num_slices}; expected at least 1.")
    if titles is not None and len(titles) != len(solids):
        raise ValueError(f"There are {len(titles)} titles and {len(solids)} volumes; give one title per volume.")
    length = solids[0].shape[axis]
    num_slices = min(num_slices, length)
    places = [int((index + 0.5) * length / num_slices) for index in range(num_slices)]
    rows = []
    for solid, heat in zip(solids, heats, strict=True):
        slices = np.moveaxis(solid.take(places, axis), axis, 0)
        rows.append(list(zip(slices, np.moveaxis(along(heat, axis, places, length), axis, 0), strict=True)))
    notes = [note(heat) for heat in heats]
    labels = [f"{title}\n{each}" for title, each in zip(titles or [""] * len(notes), notes, strict=True)]
    labels = labels if titles or any(notes) else []
    height, width = rows[0][0][0].shape[:2]
    columns = [f"{place + 1} / {length}" for place in places]
    return _gallery(rows, columns, labels, None, 1, _slice_size(width / height, num_slices), colormap, alpha, theme)


def _slice_size(aspect, count) -> tuple[float, float]:
    """As large as a slide allows, within reason."""
    wide = (SLIDE[0] - 2 * MARGIN + GAP / 2) / count - GAP / 2
    root = math.sqrt(framed(aspect))
    side = min(max(wide / root, SMALLEST), LARGEST_SLICE)
    return side * root, side / root


def _gallery(rows, columns, labels, title, across, size, colormap, alpha, theme):
    """A gallery whose pictures have this size, in inches."""
    wide, high = size
    widths = [SIDEBAR if any(isinstance(row[place], list) for row in rows) else wide for place in range(len(rows[0]))]
    starts = np.cumsum([LABELS if labels else 0, *(width + GAP / 2 for width in widths)])
    top, down = MARGIN + (HEADING if title else 0), math.ceil(len(rows) / across)
    height = max([high] + [BAR_ROW * len(cell[:5]) for row in rows for cell in row if isinstance(cell, list)])
    pitch = starts[-1] - GAP / 2 + GUTTER, height + GAP / 2
    first = top + (CAPTION if columns else 0)
    bottom = first + down * pitch[1] - GAP / 2
    heat = any(isinstance(cell, tuple) or getattr(cell, "ndim", 0) == 2 for row in rows for cell in row)
    whole = max(across * pitch[0] - GUTTER, SCALE_WIDTH if heat else 0)
    figure = blank(whole + 2 * MARGIN, bottom + (FOOTER if heat else 0) + MARGIN, theme)
    headline(figure, title)
    for block in range(across if columns else 0):
        corners = [(MARGIN + block * pitch[0] + start, top) for start in starts[:-1]]
        captions_above(figure, corners, columns, min(widths))
    for index, row in enumerate(rows):
        corner = MARGIN + index % across * pitch[0], first + index // across * pitch[1]
        _label(figure, corner, labels[index] if labels else "")
        for place, cell in enumerate(row):
            box, name = (corner[0] + starts[place], corner[1], widths[place], high), f"{index + 1}.{place + 1}"
            _cell(figure, box, cell, name, colormap, alpha)
    if heat:
        colour_scale(figure, MARGIN, bottom + GAP, colormap)
    return figure


def _label(figure, corner, label):
    """Lines to the left of a row; those after the first are smaller."""
    for line, text in enumerate(label.splitlines()):
        style = {"fontsize": 9, "color": figure.theme.grey} if line else {"fontsize": 10.5, "fontweight": "bold"}
        fit([write(figure, corner[0], corner[1] + 0.17 * (line + 1), text, **style)], LABELS - GAP / 2, 7)


def _cell(figure, box, cell, label, colormap, alpha):
    if isinstance(cell, list):
        probability_bars(figure, box[0], box[1], as_probabilities(cell)[:5])
    elif isinstance(cell, tuple):
        picture = displayed(as_pictures([cell[0]])[0])
        show(figure, box, blended(picture, as_heat(cell[1], "The heatmap"), colormap, alpha), f"overlay {label}")
    elif cell is not None and np.ndim(cell) == 2:
        square = np.zeros((SHORT_SIDE, SHORT_SIDE * np.shape(cell)[1] // np.shape(cell)[0], 3), np.uint8)
        heat = stretched(as_heat(cell, "The heatmap"), square)
        show(figure, box, find_colormap(colormap)(heat, bytes=True)[..., :3], f"heatmap {label}")
    elif cell is not None:
        show(figure, box, displayed(as_pictures([cell])[0]), f"image {label}")
