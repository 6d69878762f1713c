"""The vocabulary of shapes: n images, h rows, w columns, c channels, k classes or features."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float, Int, Integer

Images = Float[Array, "n h w c"] | Float[np.ndarray, "n h w c"]
Targets = Int[Array, "n"] | Int[Array, ""] | Int[np.ndarray, "n"] | int | None
Logits = Float[Array, "n k"]
Heatmaps = Float[Array, "n h w"]
CoarseMaps = Float[Array, "n a b"]
Maps = Heatmaps | CoarseMaps | tuple[CoarseMaps, ...]  # a CAM method's result: coarse with raw=True
Attributions = Float[Array, "n h w c"]
Activations = Float[Array, "n a b k"]
Baseline = Float[Array, "..."] | Float[np.ndarray, "..."] | float | int | None  # broadcast to the images
Score = Callable[[Logits, Integer[Array, "n"]], Float[Array, "n"]]
