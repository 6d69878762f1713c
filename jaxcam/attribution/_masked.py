"""What perturbation methods share: many images, each of which shows a part of the original, and the score of each.

`masked_scores` makes the images inside the chunk in which the model sees them. Most methods hide or show segments, and
differ only in which sets they show and in what they make of the scores: each is a `Design`. The samples are the same
for all images, so that no image depends on its neighbours in the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from jaxcam._array import blur
from jaxcam._checks import as_array, check_baseline, choice, is_known, picked, positive, prepare, random_key, samples_of
from jaxcam._engine import chunked_map, engine
from jaxcam._engine.windows import check_large_enough
from jaxcam._scores import chosen, scores_of_copies
from jaxcam.attribution.occlusion import parts
from jaxcam.segments import grid

Segments = (
    Integer[Array, "*space"]
    | Integer[np.ndarray, "*space"]
    | Integer[Array, "n *space"]
    | Integer[np.ndarray, "n *space"]
    | None
)

# What is shown where a mask is one, and where it is zero.
PERTURBATIONS = {
    "baseline": lambda images, baseline: (images, baseline),
    "blur": lambda images, _: (images, blur(images, min(images.shape[1:-1]) / 20).astype(images.dtype)),
    "amplitude": lambda images, _: (images + 0.5, images - 0.5),
}


def masked_scores(model, images, targets, baseline, keep, num_samples, score, chunk_size):
    """`float32[n, s]`: the score of each image of which sample `s` keeps a part, the rest being the baseline.

    `keep(samples[m])` returns masks, one where the image is kept: `[m, *space]`, or `[n, m, *space]`. Of several
    baselines the score is the mean.
    """
    check_large_enough(model, images)
    targets, baselines = chosen(model, images, targets), samples_of(baseline, images)
    count = baselines.shape[1]

    def one_chunk(indices):
        mask = keep(indices // count)[..., None].astype(images.dtype)
        mask = mask if mask.ndim > images.ndim else mask[None]
        changed = mask * images[:, None] + (1 - mask) * picked(baselines, indices % count)
        return scores_of_copies(model, changed, targets, score)

    found = chunked_map(one_chunk, num_samples * count, images, chunk_size)
    return found.reshape(found.shape[0], num_samples, count).mean(-1)


class Design(NamedTuple):
    """The samples of a method on segments, and what it makes of their scores."""

    num_samples: int
    keep: Callable  # indices of samples [m] -> how far each keeps each of the segments, [m, d] in [0, 1]
    attribute: Callable  # scores [n, s] -> attributions [n, d]


def on_segments(design, model, images, targets, *, baseline, segments, num_segments, chunk_size, **more):
    """Checks the arguments that all methods on segments share, then runs the engine with the method's design."""
    more = {"num_samples": 1, "key": 0, "perturbation": "baseline", **more}
    positive(chunk_size=chunk_size, num_samples=more["num_samples"])
    choice(PERTURBATIONS, perturbation=more["perturbation"])
    model, images, targets = prepare(model, images, targets)
    segments, num_segments = check_segments(segments, num_segments, images.shape[:-1])
    arrays = check_baseline(baseline, images, several=True), segments, random_key(more.pop("key"))
    named = {name: more.pop(name) for name in ("score", "num_samples", "perturbation")}
    named |= {"num_segments": num_segments, "chunk_size": chunk_size}
    return _segments_engine(model, images, targets, *arrays, design=design, options=more, **named)


@engine
def _segments_engine(
    model, images, targets, baseline, segments, key, *, design, options, num_segments, num_samples, score,
    perturbation, chunk_size,
):  # fmt: skip
    targets = chosen(model, images, targets)
    images, baseline = PERTURBATIONS[perturbation](images, baseline)
    # A label out of range can only be seen here if it is traced: the maps are then NaN.
    segments = jnp.where(segments < 0, num_segments, segments)
    is_shared = segments.ndim < images.ndim - 1
    each = segments[None] if is_shared else segments
    present = each[..., None] == jnp.arange(num_segments, dtype=jnp.int32)
    present = present.any(range(1, each.ndim)).astype(jnp.float32)
    plan = design(key, present, num_samples, **options)

    def keep(samples):
        kept = plan.keep(samples).astype(jnp.float32)
        return spread_over(kept, segments) if is_shared else jax.vmap(spread_over)(kept * present[:, None], segments)

    scores = masked_scores(model, images, targets, baseline, keep, plan.num_samples, score, chunk_size)
    values = plan.attribute(scores)
    return spread_over(values, segments) if is_shared else jax.vmap(spread_over)(values, segments)


def spread_over(values, labels):
    """Gives each pixel the value of its segment: `[..., d]` and `[*space]` make `[..., *space]`."""
    return values.at[..., labels].get(mode="fill", fill_value=jnp.nan)


def check_segments(segments, num_segments, shape):
    """`segments` as labels `int32[*space]` or `int32[n, *space]`, and how many there are; `shape` is `(n, *space)`."""
    positive(num_segments=num_segments)
    space = shape[1:]
    if segments is None:
        segments = grid(space, parts(space))
    if not hasattr(segments, "dtype") or not jnp.issubdtype(segments.dtype, jnp.integer):
        kind = getattr(segments, "dtype", type(segments).__name__)
        raise ValueError(f"segments is of type {kind}; it must be an array of whole numbers, [*space] or [n, *space].")
    if segments.shape not in (shape, space):
        raise ValueError(f"segments has shape {segments.shape}; for images {shape} it must be {space} or {shape}.")
    if is_known(segments):
        labels = np.asarray(segments)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (num_segments is not None and high >= num_segments):
            last = "" if num_segments is None else f" to {num_segments - 1}"
            raise ValueError(f"segments holds labels from {low} to {high}; they must count from 0{last}.")
        num_segments = high + 1 if num_segments is None else num_segments
    elif num_segments is None:
        raise ValueError(
            "The labels in segments are not known while jit traces, so their number must be given: pass "
            "num_segments (one more than the highest label), or segments as a NumPy array from outside."
        )
    return as_array(segments, np.int32), int(num_segments)


def orders(key, count: int, d: int):
    """Random orders `[count, d]`: the place of each feature in each of them."""
    places = jnp.broadcast_to(jnp.arange(d), (count, d))
    return jax.random.permutation(key, places, axis=1, independent=True)
