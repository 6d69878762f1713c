"""Guided backpropagation and its relatives: the gradient, cut at every ReLU of a model that stays as it is.

The model's program is traced inside the engine and walked backwards (see `_engine.program`); a method is what it lets a
ReLU pass on. Where there is no ReLU, or one is out of reach, the method raises: it never falls back to the plain
gradient silently.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcam._array import defined, nearest, resize
from jaxcam._checks import choice
from jaxcam._engine import engine
from jaxcam._engine.program import backward, contains_relu, gradient, relu_operand, seeds, trace
from jaxcam._scores import scores
from jaxcam._typing import Attributions, Images, Score, Targets
from jaxcam.attribution._cam import gradient_maps, prepare_tap, warn_of_zeros
from jaxcam.attribution._method import as_method
from jaxcam.attribution.cam import _grad_cam
from jaxcam.score import logit
from jaxcam.taps import Tap

RESIZE = {"linear": resize, "nearest": nearest}


@as_method
def guided_backprop(
    model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit
) -> Attributions:
    """Guided backpropagation: a ReLU passes only positive gradients, and only where it was active.

    `passed = relu(gradient) * (x > 0)` at every ReLU; everything else is differentiated as usual.

    A ReLU is found however the model spells it: `jax.nn.relu`, `jnp.maximum(x, 0)`, `jnp.where(x > 0, x, 0)`, under
    `nn.remat` or in `nn.scan`. Every image of a batch is explained by itself (pytorch-grad-cam: the first alone).
    Beware: the picture is sharp because it depends little on what the upper layers have learnt (Adebayo et al. 2018).

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`; its own derivative is the usual one.

    Returns:
      Attributions `float32[n, *space, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; no ReLU between the images and the score; a ReLU in
        a `while`, `cond` or `shard_map`.

    When: what the network sees, in fine lines. Not for whether the class depends on it: random weights
    give much the same picture.

    Reference: Springenberg et al. 2015, Striving for Simplicity: The All Convolutional Net, https://arxiv.org/abs/1412.6806

    Example:
      >>> attributions = jaxcam.guided_backprop(model, images)
    """
    return _relu_gradient(_guided, model, images, lambda output: scores(score, output, targets).sum())


def _guided(x, gradient):
    return jnp.where(x > 0, jax.nn.relu(gradient), 0)


@as_method
def deconvnet(model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit) -> Attributions:
    """Deconvolution: a ReLU passes only positive gradients, wherever it was active.

    `passed = relu(gradient)` at every ReLU; everything else is differentiated as usual.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`; its own derivative is the usual one.

    Returns:
      Attributions `float32[n, *space, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; no ReLU between the images and the score; a ReLU in
        a `while`, `cond` or `shard_map`.

    When: a comparison with the literature. Not as an explanation: it ignores which ReLUs were active, and hardly knows
    the class.

    Reference: Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks,
    https://arxiv.org/abs/1311.2901

    Example:
      >>> attributions = jaxcam.deconvnet(model, images)
    """
    return _relu_gradient(_deconvolution, model, images, lambda output: scores(score, output, targets).sum())


def _deconvolution(x, gradient):
    return jax.nn.relu(gradient)


def guided_grad_cam(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, interpolation: str = "linear"
) -> Attributions:
    """Guided Grad-CAM: guided backpropagation where Grad-CAM finds the class.

    `attribution = guided_backprop * resize(relu(sum_k mean_p(G[p, k]) A[p, k]))`, with the activations `A` of the
    tapped layer's cells `p` and their gradient `G`; over several layers, the mean of their maps. The map is not scaled.

    Args:
      model: a tap on one or several spatial layers; token sequences become maps by the tap's `reshape`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`; its own derivative is the usual one.
      interpolation: how the map is resized: `"linear"` along each axis as in the paper, or `"nearest"` as in Captum.

    Returns:
      Attributions `float32[n, *space, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: an unknown or non-spatial layer, an unknown interpolation.
      TypeError: `model` is not a tap.

    When: a fine picture that stays on the class's region. Not as a proof of edges: the lines are those of guided
    backpropagation.

    Reference: Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks, https://arxiv.org/abs/1610.02391

    Example:
      >>> attributions = jaxcam.guided_grad_cam(model, images)
    """
    choice(RESIZE, interpolation=interpolation)
    model, images, targets = prepare_tap("guided_grad_cam", model, images, targets)
    result, alive = _guided_grad_cam_engine(model, images, targets, score=score, interpolation=interpolation)
    warn_of_zeros(model, alive)
    return result


@engine
def _guided_grad_cam_engine(model, images, targets, *, score, interpolation):
    def scalar(output):
        return scores(score, output, targets).sum()

    maps, alive = gradient_maps(_grad_cam, model, images, scalar)
    resized = [RESIZE[interpolation](jax.nn.relu(each.sum(-1)), images.shape[1:-1]) for each in maps]
    guided = _relu_gradient(_guided, model, images, scalar)
    mean: Any = sum(resized) / len(resized)
    return guided * mean[..., None], alive


def _relu_gradient(relu_rule, model, images, scalar):
    """The gradient of `scalar(model(images))` where a ReLU passes `relu_rule(x, gradient)`, in float32."""
    program = trace(model, images, keep=lambda equation: not contains_relu(equation))
    values = program.run(images)
    found = []

    def rule(equation, arrived):
        x = relu_operand(program, equation)
        if x is not None:
            found.append(x)
            return [(x, relu_rule(values(x), arrived[0]))]
        if contains_relu(equation):
            raise ValueError(f"A ReLU inside {equation.primitive.name!r} is out of reach; write the model without it.")
        return gradient(program, values, equation, arrived)

    result = backward(program, seeds(scalar, program.output(values)), rule)
    if not found:
        raise ValueError(
            "There is no ReLU between the images and the score, so this would be the plain gradient. "
            "Use `saliency`, or a method for any activation, such as `deep_lift` or `integrated_gradients`."
        )
    if result is None:
        return jnp.zeros_like(images, jnp.float32)
    # Without pooling, `deconvnet` reads none of the model's values: so its result is sharded as the images are, too.
    return defined(result.astype(jnp.float32), images == images)
