"""What the CAM methods share, whatever their formula: maps in, heatmaps out.

Activations become maps `[n, h', w', k]` in float32 (tokens by the tap's `reshape`); a formula makes a coarse map
`[h', w']` of one image's; and `finish` does the rest once: keep what speaks for the class (ReLU), scale to [0, 1],
resize to the image, and average where several layers are tapped, as pytorch-grad-cam does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._array import normalise, resize
from jaxcam._inputs import check_images, check_targets, engine, predicted, require_tap


def checked(method: str, model, images, targets):
    """The checks that every CAM method makes first: a tap, images and targets."""
    require_tap(model, method)
    images = check_images(images)
    return images, check_targets(model, images, targets)


def explained(score: Callable, targets) -> Callable:
    """`logits -> sum of the images' scores`; `targets=None` explains the predicted classes."""
    return lambda output: score(output, predicted(output) if targets is None else targets).sum()


def spatial(model, activations) -> list:
    """What each tapped layer returned, or its gradient, as maps `float32[n, h', w', k]`."""
    reshape = model.reshape or (lambda each: each)
    return [_spatial(layer, reshape(each)) for layer, each in zip(model.layers, activations, strict=True)]


def _spatial(layer: str, activations):
    if activations.ndim != 4:
        raise ValueError(
            f"Layer {layer!r} returns {activations.shape}, which is not spatial [n, h, w, k]. "
            "Tap a convolutional layer, or say how a token sequence lies on the image: "
            "`jaxcam.tap(..., reshape=jaxcam.tokens((h, w)))`. `jaxcam.layers(module, images)` lists the shapes."
        )
    return activations.astype(jnp.float32)


def finish(maps, images, raw: bool):
    """Heatmaps `[n, h, w]` in [0, 1] of the layers' coarse maps; with `raw` the coarse maps themselves."""
    if raw:
        return maps[0] if len(maps) == 1 else tuple(maps)
    shape = images.shape[1:3]
    fused = sum(resize(normalise(jax.nn.relu(each)), shape) for each in maps)
    return normalise(fused)


def gradient_cam(formula, model, images, targets, score, raw):
    """A method that is a formula of one image's activations and gradients, `formula(A, G) -> map`."""
    images, targets = checked(formula.__name__.strip("_"), model, images, targets)
    return _gradient_engine(model, images, targets, formula=formula, score=score, raw=raw)


@engine(static=("formula", "score", "raw"))
def _gradient_engine(model, images, targets, *, formula, score, raw):
    return finish(gradient_maps(formula, model, images, explained(score, targets)), images, raw)


def gradient_maps(formula, model, images, scalar: Callable) -> list:
    """The coarse map of each layer, by a formula of activations and gradients of `scalar(logits)`."""
    _, activations, gradients = model.gradients(images, scalar)
    pairs = zip(spatial(model, activations), spatial(model, gradients), strict=True)
    return [jax.vmap(formula)(A, G) for A, G in pairs]


def activation_cam(method: str, formula, model, images, targets, raw, *options):
    """A method that is a formula of one image's activations alone, `formula(A, *options) -> map`: no class enters."""
    images, _ = checked(method, model, images, targets)
    return _activation_engine(model, images, options, formula=formula, raw=raw)


@engine(static=("formula", "raw"))
def _activation_engine(model, images, options, *, formula, raw):
    maps = [jax.vmap(lambda A: formula(A, *options))(each) for each in spatial(model, model.run(images)[1])]
    return finish(maps, images, raw)
