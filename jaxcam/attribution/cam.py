"""Class activation maps: a layer's activations, weighted by the gradient and summed over its channels.

One engine takes the activations `A[p, k]` of a layer's cells and the gradient `G[p, k]` of the score with respect to
them, for one image, and a method is the formula of the terms `[p, k]` whose sum is the coarse map. What happens to
them is the same for all (`_cam`). The last methods of the file take another gradient: of noisy images, of the gradient
itself, or none at all.
"""

import jax
import jax.numpy as jnp

from jaxcam._array import defined, flat, repeated
from jaxcam._checks import is_known
from jaxcam._engine import chunked_sum, engine
from jaxcam._noise import Noise, deviations, noisy_copies
from jaxcam._scores import chosen, scores
from jaxcam._typing import Images, Key, Maps, Raw, Score, Targets
from jaxcam.attribution._cam import (
    activation_cam,
    cells,
    finish,
    gradient_cam,
    gradient_maps,
    prepare_tap,
    terms_of,
    warn_of_zeros,
)
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap

EPSILON = 1e-7  # pytorch-grad-cam's guard against dividing by an activation sum of zero


def grad_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False) -> Maps:
    """Grad-CAM: channels weighted by their mean gradient.

    `map[p] = sum_k mean_p(G[p, k]) A[p, k]`, then ReLU, scaling to [0, 1] and linear resizing.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: a first look at any class, at the last convolutional stage. Not at earlier stages, where one weight a channel
    averages out what matters, nor for objects smaller than the layer's cells.

    Reference: Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks, https://arxiv.org/abs/1610.02391

    Example:
      >>> classifier = jaxcam.load("resnet18_cifar10")
      >>> images = classifier.preprocess(jaxcam.sample())
      >>> model = classifier.tap()
      >>> jax.jit(jaxcam.grad_cam)(model, images).shape
      (1, 32, 32)
    """
    return gradient_cam(_grad_cam, model, images, targets, score, raw)


def _grad_cam(A, G):
    return jnp.mean(G, 0) * A


def grad_cam_plus_plus(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False
) -> Maps:
    """Grad-CAM++: channels weighted by positive gradients, each with its own share.

    `w_k = sum_p alpha relu(G)` with `alpha = G^2 / (2 G^2 + sum_p(A) G^3 + 1e-6)`, zero where `G` is zero;
    `map = sum_k w_k A`.

    As in pytorch-grad-cam, the powers of the gradient stand for the higher derivatives of `exp(score)`.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: several instances of one class, of which Grad-CAM may leave some out. Not with a score that may be negative
    for good reasons, nor to see what speaks against the class: only positive gradients count.

    Reference: Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, https://arxiv.org/abs/1710.11063

    Example:
      >>> heatmaps = jaxcam.grad_cam_plus_plus(model, images)
    """
    return gradient_cam(_grad_cam_plus_plus, model, images, targets, score, raw)


def _grad_cam_plus_plus(A, G):
    return _of_powers(A, G, G**2, G**3)


def _of_powers(A, first, second, third):
    """Grad-CAM++ of the powers of a gradient, or of their means."""
    denominator = 2 * second + jnp.sum(A, 0) * third + 1e-6
    alpha = jnp.where(second != 0, second / jnp.where(denominator != 0, denominator, 1), 0)
    return jnp.sum(alpha * jax.nn.relu(first), 0) * A


def x_grad_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False) -> Maps:
    """XGrad-CAM: channels weighted by their gradient, averaged in proportion to the activation.

    `w_k = sum_p G A / (sum_p A + 1e-7)`; `map = sum_k w_k A`.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: a weight that adds up to the score as well as one number a channel can. Not where you want a different picture
    from Grad-CAM: at the last stage they are nearly the same.

    Reference: Fu et al. 2020, Axiom-based Grad-CAM, https://arxiv.org/abs/2008.02312

    Example:
      >>> heatmaps = jaxcam.x_grad_cam(model, images)
    """
    return gradient_cam(_x_grad_cam, model, images, targets, score, raw)


def _x_grad_cam(A, G):
    return jnp.sum(G * A / (jnp.sum(A, 0) + EPSILON), 0) * A


def hires_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False) -> Maps:
    """HiResCAM: every cell weighted by its own gradient, so that the map shows what the model used.

    `map = sum_k G A`.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: what the model itself used, also one stage up, where it hits small objects. Not for a smooth blob: no
    averaging hides the noise of the gradient.

    Reference: Draelos and Carin 2020, Use HiResCAM instead of Grad-CAM, https://arxiv.org/abs/2011.08891

    Example:
      >>> heatmaps = jaxcam.hires_cam(model, images)
    """
    return gradient_cam(_hires_cam, model, images, targets, score, raw)


def _hires_cam(A, G):
    return G * A


def layer_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False) -> Maps:
    """LayerCAM: every cell weighted by its own positive gradient; made for early layers too.

    `map = sum_k relu(G) A`.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: fine maps of early and middle stages. Not at the last stage, where it shows more than the class's own part.

    Reference: Jiang et al. 2021, LayerCAM: Exploring Hierarchical Class Activation Maps,
    https://doi.org/10.1109/TIP.2021.3089943

    Example:
      >>> heatmaps = jaxcam.layer_cam(model, images)
    """
    return gradient_cam(_layer_cam, model, images, targets, score, raw)


def _layer_cam(A, G):
    return jax.nn.relu(G) * A


def grad_cam_elementwise(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False
) -> Maps:
    """Element-wise Grad-CAM: only what gradient and activation agree on counts.

    `map = sum_k relu(G A)`.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: early stages, as `layer_cam`, with less background where activations are negative. Not in place of signed
    evidence.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.grad_cam_elementwise(model, images)
    """
    return gradient_cam(_grad_cam_elementwise, model, images, targets, score, raw)


def _grad_cam_elementwise(A, G):
    return jax.nn.relu(G * A)


def cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False) -> Maps:
    """CAM: channels weighted as the dense layer weights them, for heads of global average pooling and a dense layer.

    `map = sum_k w_k A_k`, where `w` is the target's row of the dense layer.

    On such a head the gradient is `w` over the number of cells, the same in every cell, which is how `w` is found and
    how the head is recognised: no layer has to be named. Where several dense layers follow the pooling, `w` is
    their linearisation. Where this method is defined, its heatmaps are those that Grad-CAM gives.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; a gradient
        that varies over the map: the head is another one. Under `jit`, where no
        error can be raised, the map is NaN.

    When: heads of global average pooling and a dense layer, where it needs no gradient to be believed. Not for any
    other head: it raises.

    Reference: Zhou et al. 2016, Learning Deep Features for Discriminative Localization,
    https://arxiv.org/abs/1512.04150

    Example:
      >>> heatmaps = jaxcam.cam(model, images)
    """
    model, images, targets = prepare_tap("cam", model, images, targets)
    maps, alive, defined = _cam_engine(model, images, targets, score=score, raw=raw)
    warn_of_zeros(model, alive)
    if is_known(defined) and not defined.all():
        layer = model.layers[int(jnp.argmin(defined))]
        raise ValueError(
            f"Layer {layer!r} is not followed by global average pooling and a dense layer: its gradient varies over "
            "the map. CAM is defined for such heads only; tap the last convolutional layer, or use `grad_cam`."
        )
    return maps


@engine
def _cam_engine(model, images, targets, *, score, raw):
    maps, alive = gradient_maps(_cam, model, images, lambda output: scores(score, output, targets).sum())
    return finish(maps, images, raw), alive, jnp.stack([jnp.isfinite(each).all() for each in maps])


def _cam(A, G):
    mean = jnp.mean(G, 0)
    constant = jnp.max(jnp.abs(G - mean)) <= 1e-3 * jnp.max(jnp.abs(mean))
    return defined(len(A) * mean * A, constant)


@as_method
def smooth_grad_cam_plus_plus(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    num_samples: int = 4,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    key: Key = 0,
    chunk_size: int | None = None,
) -> Maps:
    """Smooth Grad-CAM++: Grad-CAM++ with the powers of the gradient averaged over noisy copies of the image.

    `w_k = sum_p alpha relu(E[G])` with `alpha = E[G^2] / (2 E[G^2] + sum_p(A) E[G^3] + 1e-6)`, zero where the
    gradient is zero; `map = sum_k w_k A`, where `A` belongs to the image itself.

    torch-cam takes the gradient and the final `A` of the last noisy copy, and puts `sum_p(A E[G^3])` into the
    denominator; here it is the mean gradient, as in the paper, the image's own `A`, and the product of Grad-CAM++.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      num_samples: noisy copies of each image.
      noise: standard deviation of the noise, as a share of the image's range.
      deviation: the same in units of the normalised pixel, in place of `noise`; torch-cam's default is 0.3.
      key: of the noise, which is the same for every image: a key, or the seed of one.
      chunk_size: noisy images in one forward and backward pass; by default what suits the device.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: Grad-CAM++ where a single gradient is noisy. Not right before pooling and a dense layer: the gradient is the
    same for every copy there, and so is the map.

    Reference: Omeiza et al. 2019, Smooth Grad-CAM++, https://arxiv.org/abs/1908.01224

    Example:
      >>> heatmaps = jaxcam.smooth_grad_cam_plus_plus(model, images, num_samples=8)
    """
    targets, spread = chosen(model, images, targets), deviations(images, Noise(noise, deviation))

    def add_powers(samples, weights):
        noisy = noisy_copies(images, spread, key, samples)
        count, repeats = len(samples), jnp.repeat(targets, len(samples), axis=0)

        def total(output):
            return scores(repeated(score, count), output, repeats).sum()

        _, _, gradients = repeated(model, count).gradients(flat(noisy), total)
        found = [G.values.reshape(images.shape[0], count, *G.values.shape[1:]) for G in cells(model, gradients, images)]
        return [[jnp.einsum("nmpk,m->npk", G**power, weights) for power in (1, 2, 3)] for G in found]

    powers = jax.tree.map(lambda each: each / num_samples, chunked_sum(add_powers, num_samples, images, chunk_size))
    maps = cells(model, model.run(images)[1], images)
    weighted = [A.laid(jax.vmap(_of_powers)(A.values, *each)) for A, each in zip(maps, powers, strict=True)]
    return finish(weighted, images, raw)


def shapley_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: Raw = False) -> Maps:
    """ShapleyCAM: channels weighted by their Shapley value, to the second order of the score.

    `w_k = mean_p(G - H A / 2)` with the Hessian `H` of the score with respect to the activations; `map = sum_k w_k A`.

    The Hessian of a logit is zero where only convolutions, ReLU, pooling and one dense layer follow: the map is then
    that of Grad-CAM. The paper explains the logit plus its log-probability:
    `score=lambda logits, targets: jaxcam.score.logit(logits, targets) + jaxcam.score.log_probability(logits, targets)`.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: scores that are no plain logit, such as log-probabilities, whose curvature Grad-CAM ignores. Not for the logit
    of a network that ends in pooling and a dense layer: it is Grad-CAM there.

    Reference: Cai 2025, CAMs as Shapley Value-based Explainers, https://arxiv.org/abs/2501.06261

    Example:
      >>> heatmaps = jaxcam.shapley_cam(model, images)
    """
    model, images, targets = prepare_tap("shapley_cam", model, images, targets)
    maps, alive = _shapley_engine(model, images, targets, score=score, raw=raw)
    warn_of_zeros(model, alive)
    return maps


@engine
def _shapley_engine(model, images, targets, *, score, raw):
    activations = model.run(images)[1]

    def weights(layer, activation):
        def gradient(perturbation):
            def total(added):
                return scores(score, model.run(images, [added], layers=(layer,))[0], targets).sum()

            return jax.grad(total)(perturbation)

        first, second = jax.jvp(gradient, (jnp.zeros_like(activation),), (activation,))
        return first - second / 2

    W = [weights(layer, each) for layer, each in zip(model.layers, activations, strict=True)]
    maps, alive = terms_of(_grad_cam, model, images, activations, W)
    return finish(maps, images, raw), alive


@as_method
def random_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    key: Key = 0,
) -> Maps:
    """Random CAM: channels weighted by chance, the baseline that a method has to beat.

    `map = sum_k w_k A_k` with `w_k` uniform in [-1, 1].

    `targets` and `score` change nothing.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      key: of the weights, which are the same for every image: a key, or the seed of one.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: the yardstick that stands beside every other map of a study. Never as an explanation.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.random_cam(model, images, key=jax.random.key(1))
    """
    return activation_cam(lambda A: jax.random.uniform(key, A.shape[-1:], jnp.float32, -1, 1) * A, model, images, raw)
