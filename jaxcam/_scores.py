"""What a method explains: the score of each image, of many copies of it, and its gradient.

`scores` is the one way from a model's output to numbers. Copies are `[n, m, ...]`, image by image: flattened for one
pass of the model they keep an axis of images that is sharded, and what has a row for each image is repeated with them.
"""

import jax
import jax.numpy as jnp

from jaxcam._array import flat, repeated
from jaxcam._checks import functions
from jaxcam._engine import spread


def scores(score, output, targets):
    """`score(output, targets) -> float32[n]`; targets that are `None` are what each image's own output says."""
    functions(score=score)
    targets = predicted(output) if targets is None else targets
    values = score(output, targets)
    if not hasattr(values, "shape") or values.shape != targets.shape or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"The score returned {described(values)}; it must return one floating-point number for each image, "
            f"an array {targets.shape}: (output, targets[n]) -> [n]."
        )
    return values.astype(jnp.float32)


def predicted(output) -> jax.Array:
    """Each image's predicted class, `int32[n]`; of a single number it is 1, the number itself."""
    shape = getattr(output, "shape", None)
    if shape is not None and (len(shape) == 1 or shape[1:] == (1,)):
        return jnp.ones(shape[:1], jnp.int32)
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"The model returns {described(output)}, which has no predicted class. Pick what is explained, such as "
            '`jaxcam.tap(..., output="logits")`, or pass `targets` and a `score` that reads this output.'
        )
    return jnp.argmax(output, axis=-1).astype(jnp.int32)


def chosen(model, images, targets):
    """The targets; for `None`, what the model says of the unaltered images."""
    return predicted(model(images)) if targets is None else targets


def described(value) -> str:
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape"):
        return f"an array {value.dtype} {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"


def scores_of_copies(model, copies, targets, score):
    """The score of each of `copies [n, m, *space, c]`, `float32[n, m]`."""
    n, count = copies.shape[:2]
    output = repeated(model, count)(spread(flat(copies)))
    return scores(repeated(score, count), output, jnp.repeat(targets, count, axis=0)).reshape(n, count)


def input_gradient(model, images, targets, score):
    """`d score / d image` for each image, in float32."""
    return jax.grad(lambda images: scores(score, model(images), targets).sum())(images).astype(jnp.float32)


def gradients_of_copies(model, copies, targets, score):
    """`d score / d copy` for each of `copies [n, m, *space, c]`."""
    count = copies.shape[1]
    repeats = repeated(model, count), spread(flat(copies)), jnp.repeat(targets, count, axis=0), repeated(score, count)
    return input_gradient(*repeats).reshape(copies.shape)
