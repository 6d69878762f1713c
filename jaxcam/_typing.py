"""The vocabulary of shapes: n images, one to three axes of space, c channels, k classes or features, t targets."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int

Images = Float[Array, "n *space c"] | Float[np.ndarray, "n *space c"]
Targets = (
    Int[Array, "n"] | Int[np.ndarray, "n"] | Int[Array, "n t"] | Int[np.ndarray, "n t"] | Int[Array, ""] | int | None
)
Heatmaps = Float[Array, "n *space"] | Float[Array, "n t *space"]
CoarseMaps = Float[Array, "n *cells"]
Raw = bool | Literal["channels"]
Attributions = Float[Array, "n *space c"] | Float[Array, "n t *space c"]
Activations = Float[Array, "n *cells k"]
Deltas = Float[Array, "n"] | Float[Array, "n m"] | Float[Array, "n t"] | Float[Array, "n t m"]  # m baselines or draws
if TYPE_CHECKING:  # which of them it is, an option says: a type checker lets a user take it for either
    Maps = Heatmaps | Any
    Explained = Attributions | Any
else:
    Maps = Heatmaps | CoarseMaps | tuple[CoarseMaps, ...]  # a CAM method's result: coarse with raw=True
    Explained = Attributions | tuple[Attributions, Deltas]  # with return_delta=True
Baseline = Float[Array, "..."] | Float[np.ndarray, "..."] | float | int | None  # broadcast to the images, or several
Score = Callable[[Any, Int[Array, "n"]], Float[Array, "n"]]
Key = jax.Array | int
Sizes = int | tuple[int, ...] | None  # one for all axes of space, or one for each
