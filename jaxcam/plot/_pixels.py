"""What is given, checked and turned into pixels: images as uint8, heatmaps as colours and as overlays."""

import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxcam._errors import unknown

COLORMAP = "inferno"  # perceptually uniform; any name that matplotlib knows will do, "jet" included
PAPER = {"light": "#ffffff", "dark": "#131318"}  # the ground of figures, by theme
DIVERGING = {"light": "RdBu_r", "dark": "berlin"}  # for signs, by theme: zero is the ground's colour, nearly
FADED = {"light": 0.3, "dark": 0.5}  # how much of the photograph shows below signs
SMOOTHING, PERCENTILE = 0.01, 99  # of attributions, for display
OPACITY = 0.7  # of the hottest places: the photograph's texture still shows
CHANNELS = 4  # at most, of attributions: more would be a batch of heatmaps
SLACK = 1e-3  # by which floats may leave [0, 1]
ZERO = "zero everywhere"  # said of such a heatmap, which would otherwise look like one that was not drawn
AXES = {1: "length", 2: "h, w", 3: "d, h, w"}  # of a heatmap, by the number of its image's axes of space
SHORT_SIDE, LONG_SIDE = 256, 1024  # pixels of a picture in a figure, if its aspect allows


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
    heats = as_heats(heatmaps)
    return find_colormap(colormap)(np.stack(heats), bytes=True)[..., :3]


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
    pictures = as_pictures(images)
    heats = as_heats(heatmaps, len(pictures))
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"The images have the shapes {sorted(sizes)}; blend takes images of one size.")
    return np.stack([blended(*pair, colormap, alpha) for pair in zip(pictures, heats, strict=True)])


def as_pictures(images) -> list[np.ndarray]:
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
        _check_type(array, name, "pixels")
    return _eight_bits(arrays)


def _check_type(array, name, what) -> None:
    if array.dtype == np.uint8:
        return
    if array.dtype.kind in "iub":
        raise ValueError(f"{name} holds {array.dtype}; expected uint8 or floating point.")
    if not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(f"{name} has NaN or infinite {what}.")


def as_volumes(volumes) -> list[np.ndarray]:
    """Volumes as uint8 `[d, h, w, 3]`: grey or in colours, by the conventions of images."""
    arrays = [np.asarray(volume) for volume in volumes]
    for array in arrays:
        if array.ndim != 4 or array.shape[-1] not in (1, 3) or not array.size:
            hint = " Use volumes[..., :1] for the first channel." if array.ndim == 4 else ""
            shape = (len(arrays), *array.shape)
            raise ValueError(f"The volumes have shape {shape}; expected [n, d, h, w, 1] or [n, d, h, w, 3].{hint}")
        _check_type(array, "A volume", "voxels")
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1:
        found = f"have the shapes {shapes}" if shapes else "are none"
        raise ValueError(f"The volumes {found}; give volumes of one size, and at least one.")
    return [np.broadcast_to(array, (*array.shape[:3], 3)) for array in _eight_bits(arrays)]


def _eight_bits(arrays) -> list[np.ndarray]:
    """Floats as uint8: of [0, 1] as they are; where any of them leaves it, each from its minimum to its maximum."""
    floats = [None if array.dtype == np.uint8 else array.astype(np.float32) for array in arrays]
    normalised = any(each.min() < -SLACK or each.max() > 1 + SLACK for each in floats if each is not None)

    def converted(each):
        if normalised:
            each = (each - each.min()) / max(each.max() - each.min(), np.finfo(np.float32).tiny)
        return np.round(255 * np.clip(each, 0, 1)).astype(np.uint8)

    return [array if each is None else converted(each) for array, each in zip(arrays, floats, strict=True)]


def as_heats(heatmaps, expected: int | None = None, space: int = 2, kind: str = "image") -> list[np.ndarray]:
    heatmaps = np.asarray(heatmaps)
    if heatmaps.ndim != space + 1 or not heatmaps.size:
        one, attributions = " Use heatmap[None] for one.", " For attributions, use jaxcam.heatmap(attributions)."
        hint = {space: one, space + 2: attributions}.get(heatmaps.ndim, "")
        raise ValueError(f"The heatmaps have shape {heatmaps.shape}; expected [n, {AXES[space]}].{hint}")
    if expected is not None and len(heatmaps) != expected:
        raise ValueError(f"There are {len(heatmaps)} heatmaps and {expected} {kind}s; give one heatmap per {kind}.")
    return [as_heat(heat, f"Heatmap {index} of {len(heatmaps)}", space) for index, heat in enumerate(heatmaps, 1)]


def as_maps(given, expected: int) -> tuple[list[np.ndarray], str]:
    """Heatmaps, or attributions for the eye, and what they show: "heat", or "magnitudes" or "signs" of attributions."""
    maps = np.asarray(given)
    signed = bool(maps.size) and bool(maps.min() < -SLACK)
    if maps.ndim != 4 and not (maps.ndim == 3 and signed):
        return as_heats(given, expected), "heat"
    if len(maps) != expected:
        raise ValueError(f"There are {len(maps)} attributions and {expected} images; give one per image.")
    maps = [
        as_attributions(each, f"Map {i} of {expected}") for i, each in enumerate(maps.reshape(*maps.shape[:3], -1), 1)
    ]
    return [legible(each, signed, SMOOTHING, PERCENTILE) for each in maps], "signs" if signed else "magnitudes"


def as_heat(heat, name, space: int = 2) -> np.ndarray:
    heat = np.asarray(heat)
    if heat.ndim != space or not heat.size:
        hint = " For attributions, use jaxcam.heatmap(attributions)." if heat.ndim == 3 and heat.shape[-1] == 3 else ""
        raise ValueError(f"{name} has shape {heat.shape}; expected [{AXES[space]}].{hint}")
    heat = heat.astype(np.float32)
    if not np.isfinite(heat).all():
        raise ValueError(f"{name} has NaN or infinite values.")
    if heat.min() < -SLACK or heat.max() > 1 + SLACK:
        raise ValueError(
            f"{name} ranges from {heat.min():.3g} to {heat.max():.3g}; expected [0, 1]. "
            "For signed attributions, use jaxcam.plot.overlay, or jaxcam.heatmap(attributions)."
        )
    return np.clip(heat, 0, 1)


def as_attributions(given, name) -> np.ndarray:
    """Attributions `[h, w, c]`: any finite numbers, of the few channels that a picture has."""
    values = np.asarray(given, np.float32)
    if not values.size or values.shape[-1] > CHANNELS:
        raise ValueError(f"{name} has shape {values.shape}; expected [h, w], or [h, w, c] of attributions.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite values.")
    return values


def as_probabilities(predictions) -> list[tuple[str, float]]:
    for label, probability in predictions:
        if not -SLACK <= probability <= 1 + SLACK:
            raise ValueError(f"The probability of {label!r} is {probability}; expected a number in [0, 1].")
    return [(str(label), float(probability)) for label, probability in predictions]


def find_colormap(name):
    import matplotlib

    if name not in matplotlib.colormaps:
        raise unknown("colour map", name, matplotlib.colormaps)
    return matplotlib.colormaps[name]


def note(heat) -> str:
    """What a caption must say of a heatmap."""
    return "" if heat.any() else ZERO


def along(heat, axis: int, places, length: int) -> np.ndarray:
    """A heatmap at some places of an axis with `length` places, interpolated linearly between its own centres."""
    own = heat.shape[axis]
    centres = np.clip((np.asarray(places) + 0.5) * own / length - 0.5, 0, own - 1)
    lower = np.floor(centres).astype(int)
    upper = np.minimum(lower + 1, own - 1)
    share = (centres - lower).reshape([-1 if each == axis else 1 for each in range(heat.ndim)])
    return heat.take(lower, axis) * (1 - share) + heat.take(upper, axis) * share


def stretched(heat, picture) -> np.ndarray:
    size = picture.shape[1], picture.shape[0]
    return np.asarray(Image.fromarray(np.ascontiguousarray(heat)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


def blended(picture, heat, colormap, alpha) -> np.ndarray:
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected a number in [0, 1], or None to let the opacity follow the heat.")
    heat = stretched(heat, picture)
    opacity = OPACITY * np.minimum(1, 2 * heat) if alpha is None else np.full_like(heat, alpha)
    colours = np.float32(find_colormap(colormap)(heat, bytes=True)[..., :3])
    return np.round(picture + opacity[..., None] * (colours - picture)).astype(np.uint8)


def heated(picture, heat, colormap) -> np.ndarray:
    """Heat over the photograph in dimmed greys, so that all colour is heat."""
    heat = stretched(heat, picture)
    opacity = 0.85 * np.minimum(1, 1.5 * heat)[..., None]
    return _mixed(0.8 * _grey(picture), heat, opacity, colormap)


def signs(picture, values, theme) -> np.ndarray:
    """Values in [-1, 1] in diverging colours over the faded photograph, which is what zero shows."""
    values = stretched(values / 2 + 0.5, picture)
    paper = np.array([int(PAPER[theme][place : place + 2], 16) for place in (1, 3, 5)], np.float32)
    faded = paper + FADED[theme] * (_grey(picture) - paper)
    return _mixed(faded, values, np.minimum(1, 1.5 * np.abs(2 * values - 1))[..., None], DIVERGING[theme])


def _grey(picture) -> np.ndarray:
    return (
        np.asarray(picture, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)[:, None] * np.ones(3, np.float32)
    )


def _mixed(ground, values, opacity, colormap) -> np.ndarray:
    colours = np.float32(find_colormap(colormap)(values, bytes=True)[..., :3])
    return np.round(ground + opacity * (colours - ground)).astype(np.uint8)


def legible(attributions, signed: bool, smoothing, percentile) -> np.ndarray:
    """Attributions `[h, w, c]` for the eye: smoothed, and scaled by a percentile of their magnitudes.

    Signed, the sum over channels in [-1, 1], zero staying where it is; else that of absolute values in [0, 1].
    """
    from scipy.ndimage import gaussian_filter

    summed = attributions.sum(-1) if signed else np.abs(attributions).sum(-1)
    smooth = gaussian_filter(summed, smoothing * min(summed.shape), mode="nearest")
    smooth = smooth if signed else smooth - smooth.min()
    magnitude = np.abs(smooth)
    limit = np.percentile(magnitude, percentile) or magnitude.max()
    return np.clip(smooth / limit, -1, 1) if limit else smooth


def altered(smoothing, percentile) -> tuple[str, str]:
    """What is done to attributions, in a word and in a sentence."""
    smoothed = f"smoothed (σ {100 * smoothing:.3g}% of the side)" if smoothing else ""
    clipped = f"clipped (percentile {percentile:g})" if percentile < 100 else ""
    said = " and ".join(filter(None, [smoothed, clipped]))
    return said.partition(" ")[0], f"{said[0].upper()}{said[1:]}, for display only." if said else ""


def displayed(picture) -> np.ndarray:
    """A small picture in larger pixels, so that it stays crisp under smooth heat; a huge one scaled down."""
    short, long = min(picture.shape[:2]), max(picture.shape[:2])
    if long > LONG_SIDE:
        size = [max(1, round(side * LONG_SIDE / long)) for side in picture.shape[1::-1]]
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    times = min(math.ceil(SHORT_SIDE / short), LONG_SIDE // long)
    return picture.repeat(times, axis=0).repeat(times, axis=1)
