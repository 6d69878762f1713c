"""Charts: curves, points, a matrix of counts, and numbers with their intervals."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcam.plot._layout import (
    ACCENT,
    FONT,
    GAP,
    GREY,
    GUTTER,
    HEADING,
    INK,
    MARGIN,
    TRACK,
    axes_at,
    blank,
    fit,
    headline,
    write,
)

if TYPE_CHECKING:
    import matplotlib.figure

LETTER = 0.085  # width of one, on average, at the size of a curve's label
WIDE, LINE, BESIDE, NUMBER = 5.6, 0.27, 2.5, 1.3  # of intervals: their axes, a row, and the columns beside it


def curves(
    values: Mapping[str, Sequence[float]],
    *,
    x: Sequence[float | int] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
    limits: tuple[float | int, float | int] = (-np.inf, np.inf),
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
) -> "matplotlib.figure.Figure":
    """Named curves, each labelled at its end: training, deletion and insertion.

    Args:
      values: by name, the height of each point.
      x: the place of each point, for all curves; `None` is 1, 2, 3, ...
      intervals: by name, half the width of the band around each point; curves without one have no band.
      limits: the least and the largest that a value can be, such as 0 and 1 for a share: there a band ends.

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
        if intervals and name in intervals:
            half = np.asarray(intervals[name])
            low, high = np.clip([each - half, each + half], *limits)
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((name, colour, places[-1], each[-1]))
    if x is None:
        axes.set_xlim(1, None)
    if np.issubdtype(places.dtype, np.integer):
        axes.xaxis.get_major_locator().set_params(integer=True)
    _end_labels(figure, axes, ends)
    return figure


def scatter(
    points: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str = "", ylabel: str = "", log_x: bool = False
) -> "matplotlib.figure.Figure":
    """Named points `(x, y)`, one chart for each group, such as quality against cost; points none beats are marked.

    A point is beaten by one that lies to its left and above it (cheaper and better). `(x, y, low, high)` has a line
    from `low` to `high`, the interval of `y`.

    Raises:
      ValueError: there are no points.

    Example:
      >>> figure = scatter({"shapes": {"grad_cam": (1.1, 0.7), "rise": (900.0, 0.8)}}, log_x=True)
    """
    if not points or not all(points.values()):
        raise ValueError("There is nothing to draw: give at least one point for each chart.")
    figure, charts = _charts(len(points), xlabel, ylabel, list(points), size=(6.6, 6.2))
    for axes, group in zip(charts, points.values(), strict=True):
        axes.set_xscale("log" if log_x else "linear")
        for x, y, *interval in group.values():
            beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b, *_ in group.values())
            if interval:
                axes.vlines(x, *interval, color=GREY, linewidth=1, alpha=0.6)
            axes.plot(x, y, "o", color=GREY if beaten else ACCENT, markersize=5 if beaten else 7, zorder=3)
        axes.margins(0.12)
        _labels_apart(figure, axes, {name: point[:2] for name, point in group.items()})
    return figure


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
    figure = blank(left + extent + 2 * MARGIN, top + extent + MARGIN)
    headline(figure, title)
    shares = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    axes = axes_at(figure, (MARGIN + left, top, extent, extent), "matrix")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.6 else INK
        axes.text(column, row, f"{counts[row, column]:,}", color=colour, ha="center", va="center", fontsize=9, **FONT)
    for index, label in enumerate(labels):
        centre = (index + 0.5) * cell
        write(figure, MARGIN + left - 0.08, top + centre, label, fontsize=9.5, ha="right", va="center")
        write(figure, MARGIN + left + centre, top - 0.08, label, fontsize=9.5, ha="left", rotation=40)
    write(figure, MARGIN, top - 0.1, ylabel, fontsize=10.5, color=GREY)
    write(figure, MARGIN + left + extent, top + extent + 0.2, xlabel, fontsize=10.5, color=GREY, ha="right")
    return figure


def intervals(
    values: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    xlabel: str = "",
    title: str | None = None,
    reference: float | int | None = None,
    log_x: bool = False,
) -> "matplotlib.figure.Figure":
    """Named numbers with their intervals, `(value, half of the interval)`, one under the other and in groups.

    `reference` is marked by a line, such as zero for a difference or one half for a coin's chance. An interval of NaN,
    as of a single measurement, is not drawn.

    Raises:
      ValueError: there are no numbers, or one of them is not above zero on a logarithmic axis.

    Example:
      >>> figure = intervals({"right": {"grad_cam": (0.4, 0.02)}, "wrong": {"grad_cam": (0.5, 0.05)}}, xlabel="area")
    """
    if not values or not all(values.values()):
        raise ValueError("There is nothing to draw: give at least one number for each group.")
    least = min(value for group in values.values() for value, _ in group.values())
    if log_x and least <= 0:
        raise ValueError(f"{least} has no place on a logarithmic axis; leave log_x out.")
    top = MARGIN + (HEADING if title else 0)
    high = LINE * (len(values) + sum(map(len, values.values())))
    figure = blank(2 * MARGIN + BESIDE + WIDE + NUMBER, top + high + 0.45 + MARGIN)
    headline(figure, title)
    axes = axes_at(figure, (MARGIN + BESIDE, top, WIDE, high), "intervals")
    _dress(axes, xlabel, "")
    axes.spines["left"].set_visible(False)
    if log_x:
        axes.set_xscale("log", subs=())
        ticks: Any = axes.xaxis.get_major_locator()
        ticks.set_params(subs=(1, 2, 5))
        axes.xaxis.set_major_formatter("{x:g}")
    if reference is not None:
        axes.axvline(reference, color=GREY, linewidth=1)
    _rows_of_intervals(figure, axes, top, values)
    axes.set(ylim=(high / LINE, 0), yticks=[])
    return figure


def _rows_of_intervals(figure, axes, top, values):
    """A line for each group's name, then one for each of its numbers: name, interval, number in words."""
    y, names = top, []
    point = {"color": ACCENT, "marker": "o", "markersize": 5, "capsize": 3, "linewidth": 1.5}
    for name, group in values.items():
        fit([write(figure, MARGIN, y + 0.6 * LINE, name, fontsize=10, fontweight="bold")], BESIDE, 7)
        for row, (value, half) in group.items():
            y += LINE
            place = (y - top) / LINE + 0.5
            known = not np.isnan(half)
            axes.errorbar(value, place, xerr=half if known else None, **point)
            names.append(write(figure, MARGIN + GAP, y + 0.6 * LINE, row, fontsize=9.5))
            number = f"{value:.3f} ± {half:.3f}" if known else f"{value:.3f}"
            write(figure, MARGIN + BESIDE + WIDE + GAP, y + 0.6 * LINE, number, fontsize=9.5, color=GREY)
        y += LINE
    fit(names, BESIDE - 2 * GAP, 7)


def _labels_apart(figure, axes, group):
    """Each point's name beside it, up or down until it lies on nothing else; points in one place share a label."""
    figure.canvas.draw()
    unit = figure.dpi / 72
    labels: list[tuple[tuple, np.ndarray, list[str]]] = []
    for name, point in sorted(group.items(), key=lambda item: -item[1][1]):
        place = axes.transData.transform(point)
        shared = [names for _, other, names in labels if np.hypot(*(other - place)) < 5 * unit]
        shared[0].append(name) if shared else labels.append((point, place, [name]))
    taken = [(*(place - 3 * unit), *(place + 3 * unit)) for _, place, _ in labels]  # left, below, right, above
    for point, place, names in labels:
        # A line as wide as the chart would find no place.
        text = textwrap.fill(", ".join(names), 40, break_long_words=False, break_on_hyphens=False)
        _label_apart(figure, axes, point, place, text, taken)


def _label_apart(figure, axes, point, place, text, taken):
    """One name at the first free place beside its point, which is then taken; a line leads to one that is far off."""
    unit = figure.dpi / 72
    style = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "color": INK, **FONT}
    words = axes.annotate(text, point, xytext=(0, 0), **style)
    extent = words.get_window_extent(figure.canvas.get_renderer())
    wide, high = 1.1 * extent.width, extent.height  # letters are somewhat wider at the resolution of a file
    words.remove()
    for shift, side in [(shift, side) for shift in sorted(range(-200, 201, 4), key=abs) for side in ("left", "right")]:
        across = 7 if side == "left" else -7
        left = place[0] + across * unit - (0 if side == "left" else wide)
        below = place[1] + shift * unit - high / 2
        box = left, below, left + wide, below + high
        inside = axes.bbox.x0 <= box[0] and box[2] <= axes.bbox.x1 + 30 * unit and axes.bbox.y0 <= below
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkB": 3, "relpos": (side == "right", 0.5)}
            line = line if abs(shift) > 8 else None
            axes.annotate(text, point, xytext=(across, shift), ha=side, arrowprops=line, **style)
            return


def _overlap(a, b) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


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


def _charts(count, xlabel, ylabel, titles, beside=0.0, size=(5.6, 4.4)):
    """A figure with `count` empty charts next to each other, and room for labels `beside` the last one."""
    (wide, high), left, below = size, 0.5, 0.45
    figure = blank(count * (wide + left + GUTTER) + beside + 2 * MARGIN, high + below + HEADING + 2 * MARGIN)
    charts = []
    for index, title in enumerate(titles):
        x = MARGIN + left + index * (wide + left + GUTTER)
        axes = axes_at(figure, (x, MARGIN + HEADING, wide, high), f"chart {index + 1}")
        _dress(axes, xlabel, ylabel if index == 0 else "")
        if title:
            write(figure, x, MARGIN + 0.15, title, fontsize=12, fontweight="bold")
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
