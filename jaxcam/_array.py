"""Array operations that several files share: normalise a map, resize it."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 1e-6  # a range this small against the values is float32 rounding, not signal


def normalise(maps, num_axes: int = 2):
    """`(x - min) / (max - min)` over the last `num_axes` axes; a constant map gives zeros, NaN stays NaN.

    Scaling the input does not change the result, and its gradient is finite everywhere.
    """
    axes = tuple(range(-num_axes, 0))
    low, high = jnp.min(maps, axes, keepdims=True), jnp.max(maps, axes, keepdims=True)
    span = high - low
    constant = span <= ROUNDING * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return jnp.where(constant, 0, (maps - low) / jnp.where(constant, 1, span))


@lru_cache(maxsize=256)
def _interpolation(size: int, new_size: int, align_corners: bool) -> np.ndarray:
    """The `[new_size, size]` matrix of bilinear interpolation along one axis, without antialiasing."""
    if align_corners:
        positions = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
    else:
        positions = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    positions = positions.clip(0, size - 1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size))).astype(np.float32)


def resize(maps, shape: tuple[int, int], *, align_corners: bool = False):
    """Bilinear resize of `[..., h, w]` to `shape`, as two matrix products.

    Half-pixel centres as in OpenCV and `torch.nn.functional.interpolate`; with `align_corners` the corner samples
    coincide instead.
    """
    rows = _interpolation(maps.shape[-2], shape[0], align_corners)
    columns = _interpolation(maps.shape[-1], shape[1], align_corners)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("Hh,...hw,Ww->...HW", rows, maps.astype(jnp.float32), columns, precision=exact)
