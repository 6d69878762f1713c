"""Signals as curves that are coloured by their heatmaps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcam.plot._layout import (
    CAPTION,
    FONT,
    FOOTER,
    GAP,
    GREY,
    INK,
    MARGIN,
    SLIDE,
    axes_at,
    blank,
    colour_scale,
    fit,
    write,
)
from jaxcam.plot._pixels import COLORMAP, along, as_heats, find_colormap, note

if TYPE_CHECKING:
    import matplotlib.figure

NIGHT, QUIET = "#14131a", "#77757f"  # behind the curves, and their colour where there is no heat
LEFT = 0.75  # for the names of channels, or for the numbers on the axis
BAND, SINGLE = 0.62, 1.7  # height of a channel among several, and of one alone
FILLED = 0.8  # of its band, by a channel
GLOW = 0.07  # opacity of one stretch of the glow; the stretches overlap
MOST_POINTS = 6000  # of a curve; more could not be told apart


def signal(
    signals: Any,
    heatmaps: Any,
    *,
    x: Any = None,
    channels: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    xlabel: str = "",
    colormap: str = COLORMAP,
) -> "matplotlib.figure.Figure":
    """A figure of signals as curves coloured by their heatmaps, one below the other, with a colour scale.

    Where there is no heat a curve is grey, and where there is it glows, on a dark ground. Several channels are stacked
    within the signal's axes: each fills a band of its own, from its minimum to its maximum. One channel alone has its
    numbers on the axis. A heatmap that is zero everywhere is said to be so above its signal.

    Args:
      signals: float `[n, length, c]`, or a list of `[length, c]` of any lengths.
      heatmaps: float `[n, length]` in [0, 1], of any resolution: stretched over the signal linearly.
      x: the place of each value, such as its time, for all signals; `None` is 0, 1, 2, ...
      channels: one name per channel.
      titles: one per signal.
      xlabel: what `x` is, such as "seconds".
      colormap: any name that matplotlib knows.

    Raises:
      ValueError: wrong shapes, different `n`, NaN, heat outside [0, 1], unknown colour map, or names, titles or places
        of another number than what they name.

    Example:
      >>> figure = signal(np.sin(np.linspace(0, 9, 100))[None, :, None], np.eye(1, 10), titles=["a sine"])
      >>> len(figure.axes)  # the signal and the colour scale
      2
    """
    signals = _as_signals(signals)
    heats = as_heats(heatmaps, len(signals), space=1, kind="signal")
    _check_names(signals, x, channels, titles)
    notes = [note(heat) for heat in heats]
    caption = CAPTION if titles or any(notes) else 0
    heights = [SINGLE if each.shape[1] == 1 else BAND * each.shape[1] for each in signals]
    tops = MARGIN + caption + np.cumsum([0, *(height + caption + 2 * GAP for height in heights)])
    bottom = tops[-1] - caption + (GAP if xlabel else 0)
    left, width = MARGIN + LEFT, SLIDE[0] - 2 * MARGIN - LEFT
    figure = blank(SLIDE[0], bottom + FOOTER - GAP + MARGIN)
    for index, (values, heat, height) in enumerate(zip(signals, heats, heights, strict=True)):
        axes = axes_at(figure, (left, tops[index], width, height), f"signal {index + 1}")
        places = np.arange(len(values)) if x is None else np.asarray(x, float)
        _dress(axes, places, xlabel if index == len(signals) - 1 else "")
        _names(figure, axes, tops[index], values.shape[1], channels)
        _curves(axes, places, _bands(axes, values), along(heat, 0, np.arange(len(values)), len(values)), colormap)
        _title(figure, left, tops[index] - caption, width, titles[index] if titles else "", notes[index])
    colour_scale(figure, left, bottom, colormap)
    return figure


def _as_signals(signals) -> list[np.ndarray]:
    arrays = [np.asarray(each) for each in signals]
    if not arrays:
        raise ValueError("There are no signals.")
    for index, array in enumerate(arrays, 1):
        name = "The signal" if len(arrays) == 1 else f"Signal {index} of {len(arrays)}"
        if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
            hint = " For one signal, use signals[None]." if array.ndim == 1 else ""
            raise ValueError(f"{name} has shape {array.shape}; expected [length, c] with two places or more.{hint}")
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{name} has NaN or infinite values.")
    return [array.astype(np.float32) for array in arrays]


def _check_names(signals, x, channels, titles) -> None:
    if titles is not None and len(titles) != len(signals):
        raise ValueError(f"There are {len(titles)} titles and {len(signals)} signals; give one title per signal.")
    for index, each in enumerate(signals, 1):
        if x is not None and len(x) != len(each):
            raise ValueError(f"There are {len(x)} places in x, and signal {index} has {len(each)} values.")
        if channels is not None and len(channels) != each.shape[1]:
            raise ValueError(f"There are {len(channels)} names and signal {index} has {each.shape[1]} channels.")


def _dress(axes, places, xlabel):
    axes.set_axis_on()
    axes.set_facecolor(NIGHT)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=3, width=0.6, color=GREY, labelsize=9, labelcolor=GREY, labelfontfamily=FONT["family"])
    axes.grid(axis="x", color="white", alpha=0.07, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(places.min(), places.max())
    axes.set_xlabel(xlabel, fontsize=10, color=INK, **FONT)


def _bands(axes, values) -> np.ndarray:
    """The height of each value on the axis: as it is for one channel, and for several in a band for each."""
    low, high = values.min(0), values.max(0)
    extent = np.where(high > low, high - low, 1)
    count = values.shape[1]
    if count == 1:
        margin = extent[0] * (1 / FILLED - 1) / 2
        axes.set_ylim(low[0] - margin, high[0] + margin)
        axes.yaxis.get_major_locator().set_params(nbins=5)
        return values
    axes.set(ylim=(count, 0), yticks=[])  # the first is on top
    for edge in range(1, count):
        axes.axhline(edge, color="white", alpha=0.07, linewidth=0.6)
    return np.arange(count) + 0.5 - FILLED * ((values - low) / extent - np.where(high > low, 0.5, 0))


def _names(figure, axes, top, count, names):
    """Beside each band its channel's name, or its index; one channel alone has its name along the axis, if any."""
    if count == 1:
        axes.set_ylabel(names[0] if names else "", fontsize=10, color=INK, **FONT)
        return
    style = {"fontsize": 9, "color": GREY, "ha": "right", "va": "center"}
    rows = enumerate(names or range(count))
    fit(
        [write(figure, MARGIN + LEFT - 0.1, top + BAND * (row + 0.5), name, **style) for row, name in rows],
        LEFT - 0.1,
        6,
    )


def _curves(axes, places, levels, heat, colormap):
    """Each channel in grey, and over it as much colour as there is heat, with a glow around it."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    for level in levels.T:
        kept = _kept(level)
        points = np.stack([places[kept], level[kept]], axis=-1)
        axes.plot(*points.T, color=QUIET, linewidth=1, solid_joinstyle="round", zorder=2)
        warmth = (heat[kept][1:] + heat[kept][:-1]) / 2
        warm = warmth > 0
        segments, warmth = np.stack([points[:-1], points[1:]], axis=1)[warm], warmth[warm]
        opacity = np.minimum(1, 2 * warmth)[:, None]
        colours = opacity * find_colormap(colormap)(warmth) + (1 - opacity) * np.array(to_rgba(QUIET))
        glow = np.concatenate([colours[:, :3], GLOW * opacity], axis=1)
        for shades, thickness in ((glow, 4), (colours, 1)):
            style = {"colors": shades, "linewidths": thickness * (1 + 1.4 * warmth), "capstyle": "round", "zorder": 3}
            axes.add_collection(LineCollection(list(segments), **style), autolim=False)


def _kept(level) -> np.ndarray:
    """The places that are drawn: all, or of a long curve the lowest and the highest of each short stretch."""
    if len(level) <= MOST_POINTS:
        return np.arange(len(level))
    stretches = np.array_split(level, MOST_POINTS // 2)
    starts = np.cumsum([0, *map(len, stretches[:-1])])
    lowest = starts + [part.argmin() for part in stretches]
    highest = starts + [part.argmax() for part in stretches]
    return np.unique([0, *lowest, *highest, len(level) - 1])


def _title(figure, x, y, width, title, said):
    if title:
        fit([write(figure, x, y + 0.17, title, fontsize=10.5)], width - (1.5 if said else 0), 8)
    if said:
        write(figure, x + width, y + 0.17, said, fontsize=8.5, color=GREY, ha="right")
