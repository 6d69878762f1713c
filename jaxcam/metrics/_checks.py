"""What metrics take: one map per image, as arrays from here or from any other library."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AnyHeatmaps = Float[Array, "n h w"] | Float[np.ndarray, "n h w"]
AnyMaps = Float[Array, "n *shape"] | Float[np.ndarray, "n *shape"]  # heatmaps, attributions, any values of n images
Values = Float[Array, "n"]  # one number for each image
SLACK = 1e-3  # by which a heatmap may leave [0, 1], as rounding to bfloat16 does


def check_maps(maps, name: str = "heatmaps") -> jax.Array:
    """`maps` as `float32[n, ...]` of finite numbers."""
    if not hasattr(maps, "ndim"):
        raise TypeError(f"{name} is a {type(maps).__name__}; it must be an array of one map per image, [n, ...].")
    if maps.ndim < 2 or 0 in maps.shape:
        raise ValueError(f"{name} has shape {maps.shape}; it must hold one map per image, [n, h, w] or [n, h, w, c].")
    if is_known(maps):
        with jax.ensure_compile_time_eval():  # known values can be looked at even while `jit` traces
            finite = bool(jnp.isfinite(maps).all())
        if not finite:
            raise ValueError(f"{name} holds NaN or infinite values.")
    return jnp.asarray(maps, jnp.float32)


def check_heatmaps(heatmaps, images=None, *, unit: bool = False) -> jax.Array:
    """`heatmaps` as finite `float32[n, h, w]`, of the size of `images` where they are given, `unit` ones in [0, 1]."""
    heatmaps = check_maps(heatmaps)
    if heatmaps.ndim != 3:
        hint = " Turn attributions into heatmaps with `jaxcam.heatmap`." if heatmaps.ndim == 4 else ""
        raise ValueError(f"heatmaps has shape {heatmaps.shape}; it must be [n, h, w].{hint}")
    if images is not None and heatmaps.shape != images.shape[:3]:
        raise ValueError(
            f"heatmaps has shape {heatmaps.shape} and images {images.shape}; one map for each image, of the image's "
            "size, is needed. CAM methods give that without raw=True."
        )
    if not unit:
        return heatmaps
    if not is_known(heatmaps):
        return jnp.where((heatmaps >= -SLACK) & (heatmaps <= 1 + SLACK), heatmaps, jnp.nan)
    with jax.ensure_compile_time_eval():
        low, high = float(heatmaps.min()), float(heatmaps.max())
    if low < -SLACK or high > 1 + SLACK:
        raise ValueError(
            f"heatmaps ranges from {low:.3g} to {high:.3g}; it must be in [0, 1]. "
            "Turn attributions into heatmaps with `jaxcam.heatmap`."
        )
    return heatmaps


def or_nan(values, *maps):
    """`values [n, ...]`, NaN for an image with NaN in one of its maps.

    For values that are made by comparisons, which hide it; inside `jit` it cannot be refused.
    """
    known = [~jnp.isnan(each).reshape(len(each), -1).any(-1) for each in maps]
    known = jnp.stack(known).all(0).reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(known, values, jnp.nan)


def is_known(array) -> bool:
    return not isinstance(array, jax.core.Tracer)
