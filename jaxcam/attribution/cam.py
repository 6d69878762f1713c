"""Class activation maps: a layer's activations, weighted by the gradient and summed over its channels.

One engine takes the activations `A[h, w, k]` and the gradient `G[h, w, k]` of the score with respect to them, for one
image, and a method is the formula that makes a coarse map `[h, w]` of the two. What happens to the coarse map is the
same for all (`jaxcam._cam`). The last methods of the file take another gradient: of noisy images, of the gradient
itself, of a contrast of classes, or none at all.
"""

import jax
import jax.numpy as jnp

from jaxcam._cam import activation_cam, checked, explained, finish, gradient_cam, gradient_maps, spatial
from jaxcam._inputs import engine, positive, predicted
from jaxcam._loops import chunked_sum
from jaxcam._typing import Images, Maps, Score, Targets
from jaxcam.score import logit
from jaxcam.tap import Tap

EPSILON = 1e-7  # pytorch-grad-cam's guard against dividing by an activation sum of zero


def grad_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """Grad-CAM: channels weighted by their mean gradient.

    `map[h, w] = sum_k mean_hw(G[:, :, k]) A[h, w, k]`, then ReLU, scaling to [0, 1] and bilinear resizing.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, h, w, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class.
      score: the explained scalar, `(logits[n, k], targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers).

    Returns:
      Heatmaps `float32[n, h, w]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    Reference: Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks, https://arxiv.org/abs/1610.02391

    Example:
      >>> classifier = jaxcam.load("resnet18_cifar10")
      >>> images = classifier.preprocess(jaxcam.sample())
      >>> model = jaxcam.tap(classifier.module, classifier.variables, "layer4")
      >>> jax.jit(jaxcam.grad_cam)(model, images).shape
      (1, 32, 32)
    """
    return gradient_cam(_grad_cam, model, images, targets, score, raw)


def _grad_cam(A, G):
    return jnp.sum(jnp.mean(G, (0, 1)) * A, -1)


def grad_cam_plus_plus(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False
) -> Maps:
    """Grad-CAM++: channels weighted by positive gradients, each with its own share.

    `w_k = sum_hw alpha relu(G)` with `alpha = G^2 / (2 G^2 + sum_hw(A) G^3 + 1e-6)`, zero where `G` is zero;
    `map = sum_k w_k A`.

    As in pytorch-grad-cam, the powers of the gradient stand for the higher derivatives of `exp(score)`.
    Arguments, result and errors are those of `grad_cam`.

    Reference: Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, https://arxiv.org/abs/1710.11063

    Example:
      >>> heatmaps = jaxcam.grad_cam_plus_plus(model, images)
    """
    return gradient_cam(_grad_cam_plus_plus, model, images, targets, score, raw)


def _grad_cam_plus_plus(A, G):
    denominator = 2 * G**2 + jnp.sum(A, (0, 1)) * G**3 + 1e-6
    alpha = jnp.where(G != 0, G**2 / jnp.where(denominator != 0, denominator, 1), 0)
    return jnp.sum(jnp.sum(alpha * jax.nn.relu(G), (0, 1)) * A, -1)


def x_grad_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """XGrad-CAM: channels weighted by their gradient, averaged in proportion to the activation.

    `w_k = sum_hw G A / (sum_hw A + 1e-7)`; `map = sum_k w_k A`.

    Arguments, result and errors are those of `grad_cam`.

    Reference: Fu et al. 2020, Axiom-based Grad-CAM, https://arxiv.org/abs/2008.02312

    Example:
      >>> heatmaps = jaxcam.x_grad_cam(model, images)
    """
    return gradient_cam(_x_grad_cam, model, images, targets, score, raw)


def _x_grad_cam(A, G):
    weights = jnp.sum(G * A / (jnp.sum(A, (0, 1)) + EPSILON), (0, 1))
    return jnp.sum(weights * A, -1)


def hires_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """HiResCAM: every cell weighted by its own gradient, so that the map shows what the model used.

    `map = sum_k G A`.

    Arguments, result and errors are those of `grad_cam`.

    Reference: Draelos and Carin 2020, Use HiResCAM instead of Grad-CAM, https://arxiv.org/abs/2011.08891

    Example:
      >>> heatmaps = jaxcam.hires_cam(model, images)
    """
    return gradient_cam(_hires_cam, model, images, targets, score, raw)


def _hires_cam(A, G):
    return jnp.sum(G * A, -1)


def layer_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """LayerCAM: every cell weighted by its own positive gradient; made for early layers too.

    `map = sum_k relu(G) A`.

    Arguments, result and errors are those of `grad_cam`.

    Reference: Jiang et al. 2021, LayerCAM: Exploring Hierarchical Class Activation Maps,
    https://doi.org/10.1109/TIP.2021.3089943

    Example:
      >>> heatmaps = jaxcam.layer_cam(model, images)
    """
    return gradient_cam(_layer_cam, model, images, targets, score, raw)


def _layer_cam(A, G):
    return jnp.sum(jax.nn.relu(G) * A, -1)


def grad_cam_elementwise(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False
) -> Maps:
    """Element-wise Grad-CAM: only what gradient and activation agree on counts.

    `map = sum_k relu(G A)`.

    Arguments, result and errors are those of `grad_cam`.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.grad_cam_elementwise(model, images)
    """
    return gradient_cam(_grad_cam_elementwise, model, images, targets, score, raw)


def _grad_cam_elementwise(A, G):
    return jnp.sum(jax.nn.relu(G * A), -1)


def cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """CAM: channels weighted as the dense layer weights them, for heads of global average pooling and a dense layer.

    `map = sum_k w_k A_k`, where `w` is the target's row of the dense layer.

    On such a head the gradient is `w / (h' w')`, the same in every cell, which is how `w` is found and how the head is
    recognised: no layer has to be named. Where several dense layers follow the pooling, `w` is their linearisation.
    Arguments and result are those of `grad_cam`, whose heatmaps are the same where this method is defined.

    Raises:
      ValueError: as `grad_cam`; and a gradient that varies over the map: the head is another one. Under `jit`, where no
        error can be raised, the map is NaN.

    Reference: Zhou et al. 2016, Learning Deep Features for Discriminative Localization,
    https://arxiv.org/abs/1512.04150

    Example:
      >>> heatmaps = jaxcam.cam(model, images)
    """
    images, targets = checked("cam", model, images, targets)
    maps, defined = _cam_engine(model, images, targets, score=score, raw=raw)
    if not isinstance(defined, jax.core.Tracer) and not defined.all():
        layer = model.layers[int(jnp.argmin(defined))]
        raise ValueError(
            f"Layer {layer!r} is not followed by global average pooling and a dense layer: its gradient varies over "
            "the map. CAM is defined for such heads only; tap the last convolutional layer, or use `grad_cam`."
        )
    return maps


@engine(static=("score", "raw"))
def _cam_engine(model, images, targets, *, score, raw):
    maps = gradient_maps(_cam, model, images, explained(score, targets))
    return finish(maps, images, raw), jnp.stack([jnp.isfinite(each).all() for each in maps])


def _cam(A, G):
    mean = jnp.mean(G, (0, 1))
    constant = jnp.max(jnp.abs(G - mean)) <= 1e-3 * jnp.max(jnp.abs(mean))
    return jnp.where(constant, A.shape[0] * A.shape[1] * jnp.sum(mean * A, -1), jnp.nan)


def smooth_grad_cam_plus_plus(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    num_samples: int = 4,
    noise: float | int = 0.3,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> Maps:
    """Smooth Grad-CAM++: Grad-CAM++ with the powers of the gradient averaged over noisy copies of the image.

    `w_k = sum_hw alpha relu(E[G])` with `alpha = E[G^2] / (2 E[G^2] + sum_hw(A) E[G^3] + 1e-6)`, zero where the
    gradient is zero; `map = sum_k w_k A`, where `A` belongs to the image itself.

    torch-cam takes the gradient and the final `A` of the last noisy copy, and puts `sum_hw(A E[G^3])` into the
    denominator; here it is the mean gradient, as in the paper, the image's own `A`, and the product of Grad-CAM++.
    Arguments, result and errors are those of `grad_cam`, and:

    Args:
      num_samples: noisy copies of each image.
      noise: standard deviation of the noise, in units of the normalised pixel.
      key: of the noise, which is the same for every image; `None` means `jax.random.key(0)`.
      chunk_size: noisy images in one forward and backward pass; by default what suits the device.

    Reference: Omeiza et al. 2019, Smooth Grad-CAM++, https://arxiv.org/abs/1908.01224

    Example:
      >>> heatmaps = jaxcam.smooth_grad_cam_plus_plus(model, images, num_samples=8)
    """
    positive(num_samples=num_samples, chunk_size=chunk_size)
    images, targets = checked("smooth_grad_cam_plus_plus", model, images, targets)
    key = jax.random.key(0) if key is None else key
    static = {"score": score, "raw": raw, "num_samples": num_samples, "chunk_size": chunk_size}
    return _smooth_engine(model, images, targets, noise, key, **static)


@engine(static=("score", "raw", "num_samples", "chunk_size"))
def _smooth_engine(model, images, targets, noise, key, *, score, raw, num_samples, chunk_size):
    logits, activations = model.run(images)
    targets = predicted(logits) if targets is None else targets
    n, maps = images.shape[0], spatial(model, activations)

    def add_powers(indices, counts):
        image, sample = jnp.divmod(indices, num_samples)
        fields = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), images.shape[1:]))(sample)
        noisy = images[image] + (noise * fields).astype(images.dtype)
        _, _, gradients = model.gradients(noisy, explained(score, targets[image]))
        shares = (counts / num_samples)[:, None, None, None, None]
        powers = [jnp.stack([G, G**2, G**3], 1) * shares for G in spatial(model, gradients)]
        return [jax.ops.segment_sum(each, image, n, indices_are_sorted=True) for each in powers]

    zeros = [jnp.zeros((n, 3, *A.shape[1:]), jnp.float32) for A in maps]
    powers = chunked_sum(add_powers, n * num_samples, chunk_size, zeros)
    weighted = [jax.vmap(_smooth_grad_cam_plus_plus)(A, each) for A, each in zip(maps, powers, strict=True)]
    return finish(weighted, images, raw)


def _smooth_grad_cam_plus_plus(A, powers):
    first, second, third = powers
    denominator = 2 * second + jnp.sum(A, (0, 1)) * third + 1e-6
    alpha = jnp.where(second != 0, second / jnp.where(denominator != 0, denominator, 1), 0)
    return jnp.sum(jnp.sum(alpha * jax.nn.relu(first), (0, 1)) * A, -1)


def shapley_cam(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False
) -> Maps:
    """ShapleyCAM: channels weighted by their Shapley value, to the second order of the score.

    `w_k = mean_hw(G - H A / 2)` with the Hessian `H` of the score with respect to the activations; `map = sum_k w_k A`.

    The Hessian of a logit is zero where only convolutions, ReLU, pooling and one dense layer follow: the map is then
    that of Grad-CAM. The paper explains the logit plus its log-probability:
    `score=lambda logits, targets: jaxcam.score.logit(logits, targets) + jaxcam.score.log_probability(logits, targets)`.
    Arguments, result and errors are those of `grad_cam`.

    Reference: Cai 2025, CAMs as Shapley Value-based Explainers, https://arxiv.org/abs/2501.06261

    Example:
      >>> heatmaps = jaxcam.shapley_cam(model, images)
    """
    images, targets = checked("shapley_cam", model, images, targets)
    return _shapley_engine(model, images, targets, score=score, raw=raw)


@engine(static=("score", "raw"))
def _shapley_engine(model, images, targets, *, score, raw):
    logits, activations = model.run(images)
    targets = predicted(logits) if targets is None else targets

    def weights(layer, activation):
        def gradient(perturbation):
            return jax.grad(lambda p: score(model.run(images, [p], layers=(layer,))[0], targets).sum())(perturbation)

        first, second = jax.jvp(gradient, (jnp.zeros_like(activation),), (activation,))
        return first - second / 2

    W = [weights(layer, each) for layer, each in zip(model.layers, activations, strict=True)]
    pairs = zip(spatial(model, activations), spatial(model, W), strict=True)
    return finish([jax.vmap(_grad_cam)(A, each) for A, each in pairs], images, raw)


def finer_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    alpha: float | int = 1.0,
    num_classes: int = 3,
) -> Maps:
    """Finer-CAM: Grad-CAM of what sets the class apart from the classes most like it.

    `score_c - alpha score_d`, averaged over the classes `d` whose logits are nearest, each with the weight of its
    probability, is explained by Grad-CAM: `map = sum_k mean_hw(G) A`.

    Arguments, result and errors are those of `grad_cam`, and:

    Args:
      alpha: how much of the similar classes is taken away; 0 is Grad-CAM.
      num_classes: how many similar classes; all others where the model has fewer.

    Raises:
      ValueError: as `grad_cam`; a model of a single class.

    Reference: Zhang et al. 2025, Finer-CAM: Spotting the Difference Reveals Finer Details,
    https://arxiv.org/abs/2501.11309

    Example:
      >>> heatmaps = jaxcam.finer_cam(model, images, alpha=0.6)
    """
    positive(num_classes=num_classes)
    images, targets = checked("finer_cam", model, images, targets)
    return _finer_engine(model, images, targets, alpha, score=score, raw=raw, num_classes=num_classes)


@engine(static=("score", "raw", "num_classes"))
def _finer_engine(model, images, targets, alpha, *, score, raw, num_classes):
    def finer(logits):
        n, k = logits.shape
        if k < 2:
            raise ValueError("finer_cam compares classes, and the model has a single one; use `grad_cam`.")
        target = predicted(logits) if targets is None else targets
        distance = (
            jnp.abs(logits - jnp.take_along_axis(logits, target[:, None], 1)).at[jnp.arange(n), target].set(jnp.inf)
        )
        similar = jnp.argsort(distance, 1)[:, : min(num_classes, k - 1)]
        shares = jax.nn.softmax(jnp.take_along_axis(logits, similar, 1))
        contrasts = [score(logits, target) - alpha * score(logits, each) for each in similar.T]
        return jnp.sum(shares * jnp.stack(contrasts, 1))

    return finish(gradient_maps(_grad_cam, model, images, finer), images, raw)


def random_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    key: jax.Array | None = None,
) -> Maps:
    """Random CAM: channels weighted by chance, the baseline that a method has to beat.

    `map = sum_k w_k A_k` with `w_k` uniform in [-1, 1].

    `targets` and `score` change nothing. Arguments, result and errors are those of `grad_cam`, and:

    Args:
      key: of the weights, which are the same for every image; `None` means `jax.random.key(0)`.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.random_cam(model, images, key=jax.random.key(1))
    """
    key = jax.random.key(0) if key is None else key
    return activation_cam("random_cam", _random_cam, model, images, targets, raw, key)


def _random_cam(A, key):
    return jnp.sum(jax.random.uniform(key, A.shape[-1:], minval=-1, maxval=1) * A, -1)
