"""What the CAM methods share, whatever their formula: maps in, heatmaps out.

A layer's activations, and what belongs to them, become cells `float32[n, p, k]` (tokens by the tap's `reshape`),
however many axes of space they lie on; a formula sees those of one image, `A[p, k], G[p, k] -> terms[p, k]`. `finish`
does the rest once: sum over the channels, keep what speaks for the class (ReLU), scale to [0, 1], resize to the image,
and average where several layers are tapped, as pytorch-grad-cam does.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcam._array import Rows, each_image, normalize, resize
from jaxcam._checks import is_known, prepare
from jaxcam._engine import engine
from jaxcam._errors import shown
from jaxcam._scores import scores
from jaxcam.taps import Tap


def prepare_tap(method: str, model, images, targets) -> tuple[Tap, jax.Array, jax.Array | None]:
    """`prepare`, for a method that looks inside the model and needs to know where."""
    if not isinstance(model, Tap):
        raise TypeError(
            f"{method} needs activations, and the model is a {type(model).__name__}. "
            'Pass a tap: `jaxcam.tap(module, variables, "layer4")`.'
        )
    if not model.layers:
        raise TypeError(
            f"{method} needs a layer, and the tap is of one function, which has none. Tap two functions, "
            "(features, head), or a module and the name of a layer."
        )
    return prepare(model, images, targets)


def check_one_layer(method: str, model) -> None:
    if len(model.layers) > 1:
        raise ValueError(f"{method} looks at one layer, and {len(model.layers)} are tapped; tap one of them.")


class Cells(NamedTuple):
    """A layer's activations as cells."""

    values: jax.Array  # [n, p, k]
    space: tuple[int, ...]  # how the p cells lie

    def laid(self, maps):
        """Numbers of the cells, `[n, p]`, as maps `[n, *space]`; or `[n, p, k]`, as maps of each channel."""
        return maps.reshape(maps.shape[0], *self.space, *maps.shape[2:])


def cells(model, activations, images) -> list[Cells]:
    """What each tapped layer returned, or its gradient, as cells that lie on as many axes as the images."""
    found = []
    for layer, each in zip(model.layers, activations, strict=True):
        maps = each if model.reshape is None else model.reshape(each)
        if maps.ndim != images.ndim:
            raise ValueError(
                f"Layer {layer!r} returns {each.shape}, which is not spatial as the images {images.shape} are. Tap a "
                "convolutional layer, or say how a token sequence lies on the image: "
                "`jaxcam.tap(..., reshape=jaxcam.tokens((h, w)))`. `jaxcam.layers(module, images)` lists the shapes."
            )
        if 0 in maps.shape:
            raise ValueError(
                f"Layer {layer!r} returns {maps.shape}, which holds nothing. Are the images too small for it?"
            )
        found.append(Cells(maps.reshape(maps.shape[0], -1, maps.shape[-1]).astype(jnp.float32), maps.shape[1:-1]))
    return found


def finish(maps, images, raw):
    """Heatmaps `[n, *space]` in [0, 1] of the layers' coarse maps, or of what is to be summed over their channels.

    With `raw` the coarse maps themselves, and with `raw="channels"` before they are summed.
    """
    if not (isinstance(raw, bool) or (isinstance(raw, str) and raw == "channels")):
        raise TypeError(f"raw is {shown(repr(raw))}; it must be True or False, or 'channels' for maps of each channel.")
    if raw == "channels":
        if any(each.ndim < images.ndim for each in maps):
            raise ValueError("raw is 'channels', and this method does not weigh channels. Use `grad_cam`, for one.")
    else:
        maps = [each.sum(-1) if each.ndim == images.ndim else each for each in maps]
    if raw:
        return maps[0] if len(maps) == 1 else tuple(maps)
    return normalize(sum(layer_heatmap(each, images) for each in maps))


def layer_heatmap(coarse, images):
    """What one layer's coarse map says for the class, scaled to [0, 1] and at the images' resolution."""
    return resize(normalize(jax.nn.relu(coarse)), images.shape[1:-1])


def gradient_cam(formula, model, images, targets, score, raw, **options):
    """A method that is a formula of one image's activations and gradients, `formula(A, G, **options) -> terms`."""
    model, images, targets = prepare_tap(formula.__name__.strip("_"), model, images, targets)
    maps, alive = _gradient_engine(model, images, targets, formula=formula, score=score, raw=raw, options=options)
    warn_of_zeros(model, alive)
    return maps


@engine
def _gradient_engine(model, images, targets, *, formula, score, raw, options):
    maps, alive = gradient_maps(formula, model, images, lambda output: scores(score, output, targets).sum(), **options)
    return finish(maps, images, raw), alive


def gradient_maps(formula, model, images, scalar, **options) -> tuple[list, jax.Array]:
    """The terms of each layer's map, by a formula of activations and gradients of `scalar(output)`.

    And for each image whether any of its gradients differs from zero.
    """
    _, activations, gradients = model.gradients(images, scalar)
    return terms_of(formula, model, images, activations, gradients, **options)


def terms_of(formula, model, images, activations, gradients, **options) -> tuple[list, jax.Array]:
    """The same of activations and gradients that are known."""
    A, G = cells(model, activations, images), cells(model, gradients, images)
    pairs = list(zip(A, G, strict=True))
    maps = [a.laid(jax.vmap(lambda A, G: formula(A, G, **options))(a.values, g.values)) for a, g in pairs]
    return maps, jnp.stack([(g.values != 0).any((1, 2)) for _, g in pairs]).any(0)


def warn_of_zeros(model, alive) -> None:
    """A warning where the score of no image depends on what the layer returned: the maps are zero for a reason."""
    if is_known(alive) and not alive.any():
        hint = (
            " Does the head read the class token alone? Then nothing after the last attention looks at the patches: "
            'tap the layer before it, such as the last block\'s first norm ("block11.norm1").'
            if model.reshape is not None
            else " Tap a layer on which the score depends."
        )
        warnings.warn(
            f"All gradients at {', '.join(map(repr, model.layers))} are zero, and so are the heatmaps: the score does "
            f"not depend on what the layer returns there.{hint}",
            stacklevel=4,
        )


def activation_cam(formula, model, images, raw):
    """A method that is a formula of one image's activations, `formula(A) -> terms`: no class enters."""
    found = cells(model, model.run(images)[1], images)
    return finish([A.laid(jax.vmap(formula)(A.values)) for A in found], images, raw)


def scores_with(model, layer, images, values, targets, score):
    """The score of each image with each of `values [n, m, ...]` in the place of what `layer` returns, `float32[n, m]`.

    The image is outside of what is mapped over the values, so what lies below the layer, where the model needs it at
    all, is computed once for each image.
    """

    def of_image(model, score, image, targets, values):
        def of_value(value):
            output = model.run(image.array, [value[None]], layers=(layer,), put=True)[0]
            return scores(score, output, targets.array)[0]

        return jax.vmap(of_value)(values.array[0])

    return each_image(of_image, model, score, Rows(images), Rows(targets), Rows(values))
