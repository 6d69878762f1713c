"""What metrics take: one map per image, as arrays from here or from any other library."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AnyHeatmaps = Float[Array, "n h w"] | Float[np.ndarray, "n h w"]
AnyMaps = Float[Array, "n *shape"] | Float[np.ndarray, "n *shape"]  # heatmaps, attributions, any values of n images
Values = Float[Array, "n"]  # one number for each image


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


def check_heatmaps(heatmaps, images=None) -> jax.Array:
    """`heatmaps` as finite `float32[n, h, w]`, of the size of `images` where they are given."""
    heatmaps = check_maps(heatmaps)
    if heatmaps.ndim != 3:
        hint = " Turn attributions into heatmaps with `jaxcam.heatmap`." if heatmaps.ndim == 4 else ""
        raise ValueError(f"heatmaps has shape {heatmaps.shape}; it must be [n, h, w].{hint}")
    if images is not None and heatmaps.shape != images.shape[:3]:
        raise ValueError(
            f"heatmaps has shape {heatmaps.shape} and images {images.shape}; one map for each image, of the image's "
            "size, is needed. CAM methods give that without raw=True."
        )
    return heatmaps


def is_known(array) -> bool:
    return not isinstance(array, jax.core.Tracer)
