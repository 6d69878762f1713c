"""Performance information curves: how much of the picture, in bytes, the model needs to see of what a map points at.

A picture of which hardly anything is known is blurred; the most important pixels become known first, and what lies
between is interpolated. The score is plotted over the information in the picture, the size of its compressed file, and
not over the share of pixels, because some pixels tell more than others. Files and triangulations are made on the host;
the model runs on the device.
"""

import io
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxcam._checks import as_array, is_known, random_key
from jaxcam._engine import engine
from jaxcam._scores import scores
from jaxcam._typing import Images, Key, Score, Targets
from jaxcam.metrics._altered import Curve, Model, classes, prepare_maps, removal_order
from jaxcam.metrics._checks import AnyHeatmaps, Values, check_fractions, warn_of_zeros
from jaxcam.score import probability

FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.21, 0.34, 0.5, 0.75)  # the authors'
HINT = 0.01  # share of the pixels that are known from the start
POINTS = 1001  # of the curve


def softmax_information_curve(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    fractions: Sequence[float] | Float[np.ndarray, "fractions"] = FRACTIONS,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """Softmax information curve (SIC): the area under the score over the information shown to the model; high is good.

    `SIC = integral_0^1 y dx`, where `x = (bytes(shown) - bytes(blurred)) / (bytes(image) - bytes(blurred))` and
    `y = (score(shown) - score(blurred)) / (score(image) - score(blurred))`, both cut to [0, 1], for pictures that show
    the highest shares of the pixels; `y` never falls, and the curve is linear between them, from (0, 0) to (1, 1).

    Bytes are those of a lossless WebP file. In `blurred` a random hundredth of the pixels and the corners are known;
    all others are interpolated linearly between them, as in the authors' code (PAIR's `saliency`), in steps of 1/255 of
    the image's range. Runs on the host, so call it outside `jit`; a photograph takes seconds.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, h, w, c]` of one or three channels, normalised as the model expects.
      heatmaps: `float[n, h, w]`; only the order of the pixels counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      fractions: shares of the pixels that are shown, each between 0 and 1.
      key: for the pixels that are known from the start, the same for all images; a seed or a key.
      curve: return a `Curve`: 1001 shares of the information, the score's share at each, and the area.

    Returns:
      `float32[n]` in [0, 1]; NaN where the blurred image has the score or the information of the image, so that there
      is nothing to gain (`jnp.nanmean` leaves it out). The authors leave out images of a score below 0.8 too.

    Raises:
      ValueError: arrays of a wrong shape, type or range; signals, volumes and other numbers of channels; a fraction
        outside (0, 1); arrays that are not known, as inside `jit`.

    Reference: Kapishnikov et al. 2019, XRAI: Better Attributions Through Regions, https://arxiv.org/abs/1906.02825

    Example:
      >>> areas = jaxcam.metrics.softmax_information_curve(model, images, heatmaps, fractions=(0.1, 0.4))
    """
    return _information_curve(model, images, heatmaps, targets, score, fractions, key, curve)


def accuracy_information_curve(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    fractions: Sequence[float] | Float[np.ndarray, "fractions"] = FRACTIONS,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """Accuracy information curve (AIC): the area under the accuracy over the information shown; high is good.

    `AIC = integral_0^1 [class(shown) = target] dx`, where `x = (bytes(shown) - bytes(blurred)) / (bytes(image) -
    bytes(blurred))`, cut to [0, 1], for pictures that show the highest shares of the pixels; once right it stays right,
    and the curve is linear between them, from (0, 0) to (1, 1).

    Bytes are those of a lossless WebP file. In `blurred` a random hundredth of the pixels and the corners are known;
    all others are interpolated linearly between them, as in the authors' code (PAIR's `saliency`), in steps of 1/255 of
    the image's range. Runs on the host, so call it outside `jit`; a photograph takes seconds.

    Args:
      model: a tap or any callable `images -> logits`.
      images: `float[n, h, w, c]` of one or three channels, normalised as the model expects.
      heatmaps: `float[n, h, w]`; only the order of the pixels counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      fractions: shares of the pixels that are shown, each between 0 and 1.
      key: for the pixels that are known from the start, the same for all images; a seed or a key.
      curve: return a `Curve`: 1001 shares of the information, the accuracy at each, and the area.

    Returns:
      `float32[n]` in [0, 1]; NaN where the whole image's class is another, or the blurred image's is right already
      (`jnp.nanmean` leaves it out).

    Raises:
      ValueError: arrays of a wrong shape, type or range; signals, volumes and other numbers of channels; a fraction
        outside (0, 1); arrays that are not known, as inside `jit`.

    Reference: Kapishnikov et al. 2019, XRAI: Better Attributions Through Regions, https://arxiv.org/abs/1906.02825

    Example:
      >>> areas = jaxcam.metrics.accuracy_information_curve(model, images, heatmaps, fractions=(0.1, 0.4))
    """
    return _information_curve(model, images, heatmaps, targets, _is_right, fractions, key, curve)


def _is_right(output, targets):
    return (jnp.argmax(output, -1) == targets).astype(jnp.float32)


def _information_curve(model, images, heatmaps, targets, score, fractions, key, curve):
    fractions = sorted(check_fractions(fractions))
    model, images, targets, heatmaps = prepare_maps(model, images, targets, heatmaps)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 1 in images.shape[1:3]:
        raise ValueError(
            f"images has shape {images.shape}; the size of files is that of pictures, [n, h, w, 1 or 3], of two rows "
            "and columns or more."
        )
    if not (is_known(images) and is_known(heatmaps)):
        raise ValueError("The arrays are not known here, and files are made on the host: call it outside of jit.")
    warn_of_zeros(heatmaps, stacklevel=4)
    targets = classes(model, images, targets)
    pictures = np.asarray(jax.device_get(images), np.float32)
    ranks, hint = jax.device_get(removal_order(heatmaps)), _hint(random_key(key), pictures.shape[1:3])
    pixels = hint.size
    counts = [pixels - int(np.ceil((1 - each) * (pixels - 1) - 1e-9)) for each in fractions]  # as np.quantile would

    def measure(copies):
        values = _score(model, _beside(images, copies.astype(images.dtype)), targets, score=score)
        return jax.device_get(values), [_bytes(*each) for each in zip(copies, pictures, strict=True)]

    shown = [
        np.stack([_seen(*each, hint, count) for each in zip(pictures, ranks, strict=True)]) for count in [0, *counts]
    ]
    scores, sizes = (np.stack(each, -1) for each in zip(*map(measure, [*shown, pictures]), strict=True))
    x, y = _share(sizes), np.maximum.accumulate(_share(scores), -1)
    grid = np.linspace(0, 1, POINTS)
    curves = np.stack([_drawn(*each, grid) for each in zip(x, y, strict=True)])
    value = _beside(images, np.trapezoid(curves, grid, axis=-1).astype(np.float32))
    return Curve(as_array(grid, np.float32), _beside(images, curves.astype(np.float32)), value) if curve else value


def _beside(images, values: np.ndarray) -> jax.Array:
    """What was made on the host, on the device of the images, if they are held to one."""
    return jax.device_put(values, images.sharding if images.committed and len(images.devices()) == 1 else None)


@engine
def _score(model, images, targets, *, score):
    return scores(score, model(images), targets)


def _hint(key, space) -> np.ndarray:
    """The pixels that are known from the start, `bool[*space]`."""
    pixels = int(np.prod(space))
    order = jax.device_get(jax.random.permutation(key, pixels))
    known = (order < int(HINT * pixels)).reshape(space)
    known[np.ix_(*([0, -1],) * len(space))] = True
    return known


def _seen(picture, ranks, hint, count) -> np.ndarray:
    """A picture of which the `count` highest pixels and the hint are known, the others interpolated between them."""
    known, low, step = hint | (ranks < count), picture.min(), max(np.ptp(picture), 1e-12) / 255
    between = _interpolated(picture, known).astype(np.float32)
    return np.where(known[..., None], picture, low + step * np.round((between - low) / step))


def _interpolated(picture, known) -> np.ndarray:
    """Linear between the known pixels, the corners among them, on the triangles of Delaunay.

    Every triangle is drawn into the box around it, in whole numbers. SciPy's own interpolation asks LAPACK about each
    triangle, which takes a minute where its threads find no processor free.
    """
    from scipy.spatial import Delaunay

    points = np.argwhere(known)
    triangles = Delaunay(points).simplices
    corners = points[triangles]
    low, sides = corners.min(1), np.ptp(corners, axis=1) + 1
    counts = sides.prod(1)
    owner = np.repeat(np.arange(len(triangles)), counts)  # of each pixel of each box
    places = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    pixels = low[owner] + np.stack([places // sides[owner, 1], places % sides[owner, 1]], -1)
    first, second, third = (corners[owner, each] - pixels for each in range(3))
    areas = np.stack([_area(second, third), _area(third, first), _area(first, second)], -1)
    inside = ((areas >= 0).all(-1) | (areas <= 0).all(-1)) & (areas.sum(-1) != 0)
    weights = areas[inside] / areas[inside].sum(-1, keepdims=True)
    result = np.zeros(picture.shape)
    result[tuple(pixels[inside].T)] = np.einsum("pv,pvc->pc", weights, picture[known][triangles[owner[inside]]])
    return result


def _area(a, b):
    """Twice the area, with its sign, of the triangle between two points and the origin."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _bytes(seen, picture) -> int:
    """The size of a file of what is seen of a picture, whose range is that of a byte."""
    low, span = picture.min(), max(np.ptp(picture), 1e-12)
    pixels = np.round((seen - low) * (255 / span)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "webp", lossless=True, quality=100)
    return file.tell()


def _share(values):
    """Of the way from the first of each row to the last, those between them, cut to [0, 1]; NaN where it leads down."""
    values = values.astype(np.float64)
    way = values[:, -1:] - values[:, :1]
    share = (values[:, 1:-1] - values[:, :1]) / np.where(way > 0, way, 1)
    return np.where(way > 0, share.clip(0, 1), np.nan)


def _drawn(x, y, grid):
    """The curve from (0, 0) to (1, 1) through points in any order, at each of `grid`."""
    if np.isnan(x).any() or np.isnan(y).any():
        return np.full(len(grid), np.nan)
    x, y = np.append(x, [0, 1]), np.append(y, [0, 1])
    order = np.argsort(x, kind="stable")
    return np.append(np.interp(grid[:-1], x[order], y[order]), 1)
