"""What metrics take: one map per image, as arrays from here or from any other library."""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcam._array import defined
from jaxcam._checks import as_array, is_known, number, prepare

AnyHeatmaps = Float[Array, "n *space"] | Float[np.ndarray, "n *space"]
AnyMaps = Float[Array, "n *shape"] | Float[np.ndarray, "n *shape"]  # heatmaps, attributions, any values of n images
Values = Float[Array, "n"]  # one number for each image
SLACK = 1e-3  # by which a heatmap may leave [0, 1], as rounding to bfloat16 does
TO_HEATMAPS = "Turn attributions into heatmaps with `jaxcam.heatmap`."


def prepare_one(model, images, targets):
    """`prepare`, for what looks at one map of each image and so at one class."""
    model, images, targets = prepare(model, images, targets)
    if targets is not None and targets.ndim == 2:
        raise ValueError(
            f"targets has shape {targets.shape}; a metric judges one map of each image, so it takes one class for "
            "each, an array [n]. Call it once for each column of targets."
        )
    return model, images, targets


def check_maps(maps, name: str = "heatmaps") -> jax.Array:
    """`maps` as `float32[n, ...]` of finite numbers."""
    if not hasattr(maps, "ndim"):
        raise TypeError(f"{name} is a {type(maps).__name__}; it must be an array of one map per image, [n, ...].")
    if maps.ndim < 2 or 0 in maps.shape:
        raise ValueError(
            f"{name} has shape {maps.shape}; it must hold one map per image, [n, *space] or [n, *space, c]."
        )
    if not (jnp.issubdtype(maps.dtype, np.floating) or jnp.issubdtype(maps.dtype, np.integer) or maps.dtype == bool):
        raise ValueError(f"{name} has dtype {maps.dtype}; it must hold real numbers.")
    maps = as_array(maps, np.float32)
    if is_known(maps) and not seen(_is_finite, maps):
        raise ValueError(f"{name} holds NaN or infinite values.")
    return maps


def check_heatmaps(heatmaps, images=None, *, unit: bool = False) -> jax.Array:
    """`heatmaps` as finite `float32[n, *space]`: of the size of `images`, where given, and in [0, 1], if `unit`."""
    heatmaps = check_maps(heatmaps)
    if images is not None and heatmaps.shape != images.shape[:-1]:
        hint = TO_HEATMAPS if heatmaps.ndim == images.ndim else "CAM methods give that without raw=True."
        raise ValueError(
            f"heatmaps has shape {heatmaps.shape} and images {images.shape}; one map for each image, of the image's "
            f"size, is needed. {hint}"
        )
    if heatmaps.ndim > 4:
        raise ValueError(f"heatmaps has shape {heatmaps.shape}; it must be [n, *space], at most three axes of space.")
    if not unit:
        return heatmaps
    if not is_known(heatmaps):
        return jnp.where((heatmaps >= -SLACK) & (heatmaps <= 1 + SLACK), heatmaps, jnp.nan)
    low, high = seen(_range, heatmaps)
    if low < -SLACK or high > 1 + SLACK:
        raise ValueError(f"heatmaps ranges from {low:.3g} to {high:.3g}; it must be in [0, 1]. {TO_HEATMAPS}")
    return heatmaps


def check_fractions(fractions: Any) -> tuple[float, ...]:
    """Shares of the pixels, at least one of them, each between 0 and 1."""
    fractions = tuple(fractions) if isinstance(fractions, Iterable) and not isinstance(fractions, str) else (fractions,)
    if not fractions:
        raise ValueError("fractions is empty; it must hold one share of the pixels or more.")
    for each in fractions:
        number(above=0, below=1, fractions=each)
    return tuple(map(float, fractions))


def warn_of_zeros(heatmaps, stacklevel: int) -> None:
    """A warning where a known map is zero everywhere, for metrics that take nothing from it but the pixels' order."""
    zero = all_zero(heatmaps)
    if zero.size:
        more = f" (and {zero.size - 1} more)" if zero.size > 1 else ""
        warnings.warn(
            f"Heatmap {zero[0]}{more} is zero everywhere, so the order of its pixels means nothing, and neither does "
            "the metric's value.",
            stacklevel=stacklevel,
        )


def all_zero(maps) -> np.ndarray:
    """The places of those maps that are known to be zero everywhere."""
    return np.flatnonzero(seen(_is_zero, maps)) if is_known(maps) else np.array([], int)


def or_nan(values, *maps):
    """`values [n, ...]`, NaN for an image with NaN in one of its maps.

    For values that are made by comparisons, which hide it; inside `jit` it cannot be refused.
    """
    known = [~jnp.isnan(each).any(tuple(range(1, each.ndim))) for each in maps]
    known = jnp.stack(known).all(0).reshape(-1, *(1,) * (values.ndim - 1))
    return defined(values.astype(jnp.float32), known)


def seen(fact, maps):
    """A fact of known maps, on the host; known values can be looked at even while `jit` traces."""
    with jax.ensure_compile_time_eval():
        return jax.device_get(fact(maps))


@jax.jit
def _is_finite(maps):
    return jnp.isfinite(maps).all()


@jax.jit
def _range(maps):
    return maps.min(), maps.max()


@jax.jit
def _is_zero(maps):
    return ~maps.astype(bool).any(tuple(range(1, maps.ndim)))
