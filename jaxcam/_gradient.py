"""What the gradient methods share: the gradient with respect to the image, and its integral along a path.

`integral` is the one engine of the path methods: a method says where its path is at each step and how far the step
moves, and gets the sum of `gradient * movement`. Points are made inside the chunk, so memory does not grow with the
number of steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._inputs import engine, predicted
from jaxcam._loops import chunked_sum


def input_gradient(model, images, targets, score):
    """`d score / d image` for each image; `targets=None` explains the predicted classes."""

    def total_score(images):
        output = model(images)
        return score(output, predicted(output) if targets is None else targets).sum()

    return jax.grad(total_score)(images)


@engine(static=("curve", "score", "num_steps", "chunk_size"))
def integral(model, images, targets, own, shared, *, curve: Callable, score, num_steps, chunk_size):
    """`sum_s gradient(point_s) * movement_s` with `point_s, movement_s = curve(image, own, shared, s)`.

    `own` is a tree of arrays with a row for each image, `shared` one that belongs to all.
    """
    targets = predicted(model(images)) if targets is None else targets

    def add(indices, counts):
        image, step = jnp.divmod(indices, num_steps)
        pick = jax.tree.map(lambda each: each[image], (images, own))
        points, movements = jax.vmap(curve, in_axes=(0, 0, None, 0))(*pick, shared, step)
        gradients = input_gradient(model, points.astype(images.dtype), targets[image], score)
        terms = gradients.astype(jnp.float32) * movements.astype(jnp.float32) * counts[:, None, None, None]
        return jax.ops.segment_sum(terms, image, images.shape[0], indices_are_sorted=True)

    return chunked_sum(add, images.shape[0] * num_steps, chunk_size, jnp.zeros(images.shape, jnp.float32))


def straight_line(model, images, targets, baseline, *, score, num_steps, chunk_size):
    """The integral from `baseline` (one for each image) to the image, by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)
    shared = jnp.asarray((nodes + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)
    options = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size}
    return integral(model, images, targets, baseline, shared, curve=_straight, **options)


def _straight(image, baseline, shared, step):
    points, shares = shared
    return baseline + points[step] * (image - baseline), shares[step] * (image - baseline)
