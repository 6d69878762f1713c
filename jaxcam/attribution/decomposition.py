"""CAM methods that take a layer's activations apart: principal components, factors, unusual values.

A layer is read as a matrix of cells by channels, and the coarse map is its projection on what explains it best. The
principal component comes from the eigenvectors of the smaller of the two Gram matrices, in float32, with its derivative
by perturbation theory, so that these methods are as fast, as static and as differentiable as the others. Their maps do
not depend on the class, except that of Eigen-Grad-CAM.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcam._array import EXACT, ROUNDING, normalize, resize
from jaxcam._checks import choice
from jaxcam._engine import chunked_map
from jaxcam._scores import predicted
from jaxcam._typing import Images, Maps, Raw, Score, Targets
from jaxcam.attribution._cam import activation_cam, cells, check_one_layer, gradient_cam, scores_with
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap

_product = partial(jnp.matmul, precision=EXACT)


@as_method
def eigen_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """Eigen-CAM: the activations' first principal component.

    `map = (A - mean_hw(A)) v`, where `v[k]` is the direction of the channels along which the cells vary most.

    The sign of `v` is that with which the map correlates positively with the mean activation, or, where that is the
    same in all cells (as after a LayerNorm), with which its largest value is positive; pytorch-grad-cam leaves it to
    chance. `targets` and `score` change nothing.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers).

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: one dominant object, with no class, no gradient and no head at all, such as in detectors and embeddings. Not
    where there are several objects: it does not know the class.

    Reference: Muhammad and Yeasin 2020, Eigen-CAM: Class Activation Map using Principal Components,
    https://arxiv.org/abs/2008.00299

    Example:
      >>> heatmaps = jaxcam.eigen_cam(model, images)
    """
    return activation_cam(principal_map, model, images, raw)


def eigen_grad_cam(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False
) -> Maps:
    """Eigen-Grad-CAM: the first principal component of activations times gradients; Eigen-CAM with a class.

    `map = (B - mean_hw(B)) v` with `B = G A`, where `v[k]` is the direction along which the cells vary most.

    The sign of `v` is that with which the map correlates positively with `sum_k B`, the map of HiResCAM;
    pytorch-grad-cam leaves it to chance.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers).

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: a cleaner Grad-CAM where many channels disagree. Not where two separate regions matter: one component can show
    only one pattern.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.eigen_grad_cam(model, images)
    """
    return gradient_cam(_eigen_grad_cam, model, images, targets, score, raw)


def _eigen_grad_cam(A, G):
    return principal_map(G * A)


def principal_map(B):
    """The cells of `B[p, k]` projected on their first principal direction, positive where `sum_k B` is large."""
    X = _centred(B)
    # The direction does not depend on the scale, and the squares of tiny gradients would be zero.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(X)))
    X = X / jnp.where(scale == 0, 1, scale)
    if X.shape[0] < X.shape[1]:
        u = _top_eigenvector(_product(X, X.T))
        projected = u * _norm(_product(X.T, u))
    else:
        projected = _product(X, _top_eigenvector(_product(X.T, X)))
    return scale * _signed(projected, X)


def _signed(projected, X):
    """As it correlates positively with the sum of the channels, or, where that is constant, with its largest value."""
    agreement = jnp.vdot(projected, X.sum(1))
    is_constant = jnp.abs(agreement) <= ROUNDING * jnp.vdot(jnp.abs(projected), jnp.abs(X).sum(1))
    largest = projected[jnp.argmax(jnp.abs(projected))]
    return projected * jnp.where(jnp.where(is_constant, largest, agreement) < 0, -1, 1)


def _centred(B):
    centred = B - jnp.mean(B, 0)
    # A channel without variation keeps the rounding of its mean, and of nothing but such channels PCA makes a picture.
    constant = jnp.max(jnp.abs(centred), 0) <= ROUNDING * jnp.max(jnp.abs(B), 0)
    return jnp.where(constant, 0, centred)


def _norm(x):
    """The Euclidean norm, whose gradient at zero is zero."""
    square = jnp.sum(x**2)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


@jax.custom_jvp
def _top_eigenvector(matrix):
    """The unit eigenvector of the largest eigenvalue of a symmetric matrix."""
    return jnp.linalg.eigh(matrix)[1][:, -1]


@_top_eigenvector.defjvp
def _top_eigenvector_jvp(primals, tangents):
    """First-order perturbation theory for this one vector: equal eigenvalues elsewhere, as zeros are, do no harm."""
    (matrix,), (change,) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    top, gaps = vectors[:, -1], values[-1] - values
    shares = jnp.where(gaps > ROUNDING * values[-1], 1 / jnp.where(gaps == 0, 1, gaps), 0)
    return top, _product(vectors, shares * _product(vectors.T, _product(change, top)))


@as_method
def kpca_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    kernel: str = "sigmoid",
    kernel_scale: float | int | None = None,
) -> Maps:
    """KPCA-CAM: the activations' first principal component under a kernel.

    `map = sqrt(lambda) u` with the largest eigenvalue `lambda` and its eigenvector `u` of the centred kernel matrix
    `K[i, j] = kernel(X_i, X_j)` of all cells `X = A - mean_hw(A)`.

    The sign is that of `eigen_cam`, which is the linear kernel. The matrix has one row for each cell: few in a late
    layer, 3,136 for each image in one of 56 x 56 cells. `targets` and `score` change nothing.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers).
      kernel: `"sigmoid"` is `tanh(s <x, y> + 1)`, `"rbf"` is `exp(-s |x - y|^2)`, `"linear"` is `<x, y>`.
      kernel_scale: `s`, the gamma of scikit-learn; `None` means one over the number of channels.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; an unknown kernel;
        `kernel_scale` not above zero.

    When: as `eigen_cam`, where the pattern is no straight direction. Not where there are several objects, nor at early
    layers with thousands of cells.

    Reference: Karmani et al. 2024, KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA,
    https://arxiv.org/abs/2410.00267

    Example:
      >>> heatmaps = jaxcam.kpca_cam(model, images, kernel="rbf")
    """
    choice(KERNELS, kernel=kernel)
    return activation_cam(partial(_kpca_cam, kernel=KERNELS[kernel], scale=kernel_scale), model, images, raw)


def _sigmoid(inner, scale):
    return jnp.tanh(scale * inner + 1)


def _rbf(inner, scale):
    norms = jnp.diagonal(inner)
    return jnp.exp(-scale * (norms[:, None] + norms - 2 * inner))


def _linear(inner, scale):
    return inner


KERNELS = {"sigmoid": _sigmoid, "rbf": _rbf, "linear": _linear}


def _kpca_cam(A, kernel, scale):
    X = _centred(A)
    K = kernel(_product(X, X.T), 1 / X.shape[1] if scale is None else scale)
    constant = jnp.max(K) - jnp.min(K) <= ROUNDING * jnp.max(jnp.abs(K))
    K = jnp.where(constant, 0, K - K.mean(0) - K.mean(1, keepdims=True) + K.mean())
    u = _top_eigenvector(K)
    value = jnp.maximum(jnp.vdot(u, _product(K, u)), 0)
    projected = u * jnp.where(value == 0, 0, jnp.sqrt(jnp.where(value == 0, 1, value)))
    return _signed(projected, X)


@as_method
def fem(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    deviations: float | int = 2,
) -> Maps:
    """FEM: channels weighted by how many of their cells stand out.

    `w_k = mean_hw(A > mean_hw(A) + deviations std_hw(A))`; `map = sum_k w_k A_k`.

    `targets` and `score` change nothing.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      deviations: how many standard deviations above its channel's mean a cell stands out.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: what stands out to the network, without a class. Not as the explanation of a prediction.

    Reference: Fuad et al. 2020, Features Understanding in 3D CNNs for Actions Recognition in Video,
    https://doi.org/10.1109/IPTA50016.2020.9286629

    Example:
      >>> heatmaps = jaxcam.fem(model, images)
    """
    return activation_cam(partial(_fem, deviations=deviations), model, images, raw)


def _fem(A, deviations):
    X = _centred(A)
    threshold = deviations * jnp.std(X, 0)
    weights = jnp.mean(threshold < X, 0, dtype=jnp.float32)
    return weights * A


@as_method
def deep_feature_factorization(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    num_components: int = 5,
    num_iterations: int = 100,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "n *r_cells"], Float[Array, "n *r"]]:
    """Deep feature factorisation: the concepts of an image, where each one is, and how it scores.

    `A - min_p(A) = H W` with `H[p, r] >= 0` and `W[r, k] >= 0`, by `num_iterations` rounds of coordinate descent that
    start at the cells which differ most from each other. A concept is `W_r + min_p(A)`, scaled so that `H_r` is one
    where the concept is strongest; its score is that of the image with the concept in every cell, which after global
    average pooling is the dense layer's. Concepts are ordered by their part in the activations.

    Each image is factorised by itself, where pytorch-grad-cam factorises a batch, from a random start, which also
    decides the scale of its concepts.

    Args:
      model: a tap on one spatial layer.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return `H` itself, `[n, r, *cells]`, at the layer's resolution.
      num_components: concepts for each image, `r`.
      num_iterations: rounds in which each column of `H` and each row of `W` is made better once.
      chunk_size: concepts in one pass of what follows the layer; by default what suits the device.

    Returns:
      Heatmaps `float32[n, r, *space]`, each in [0, 1], and scores `float32[n, r]`; for several targets an image, the
      axis `t` follows `n` in both.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; a tap on
        several layers.
      TypeError: `model` is not a tap.

    When: which parts an image is made of and what each would be called. Not for the one reason of one class.

    Reference: Collins et al. 2018, Deep Feature Factorization for Concept Discovery, https://arxiv.org/abs/1806.10206

    Example:
      >>> heatmaps, scores = jaxcam.deep_feature_factorization(model, images, num_components=3)
    """
    check_one_layer("deep_feature_factorization", model)
    output, (activation,) = model.run(images)
    targets = predicted(output) if targets is None else targets
    (A,) = cells(model, [activation], images)
    H, W = jax.vmap(partial(_concepts, count=num_components, num_iterations=num_iterations))(A.values)
    H = H.reshape(*H.shape[:2], *A.space)

    def concept_scores(components):
        concepts = jnp.expand_dims(jnp.take(W, components, axis=1), range(2, activation.ndim))
        everywhere = jnp.broadcast_to(concepts, (*concepts.shape[:2], *activation.shape[1:]))
        return scores_with(model, model.layers[0], images, everywhere, targets, score)

    results = chunked_map(concept_scores, num_components, activation, chunk_size)
    return (H if raw else normalize(resize(normalize(H, 2), images.shape[1:-1]), 2)), results


def _concepts(A, count, num_iterations):
    """Where the concepts of one image's cells `A[p, k]` are, `H[r, p]`, and the concepts themselves, `W[r, k]`."""
    offset = jnp.min(A, 0)
    H, W = factorised(A - offset, count, num_iterations)
    order = jnp.argsort(-H.sum(0) * W.sum(1))
    return H.T[order], W[order] + offset


def factorised(X, count: int, num_iterations: int, W=None):
    """`X[p, k] ~ H[p, r] W[r, k]`, nothing negative: of `count` factors, scaled so that each is one where it is most.

    `W` that is given stays as it is.
    """
    scale = jnp.max(X)
    scale = jnp.where(scale == 0, 1, scale)
    X, given = X / scale, W is not None
    W = _apart(X, count) if W is None else W / scale
    H, W = _updated(X, _least_squares(X, W), W, num_iterations, given)
    if given:
        return H, scale * W
    peak = jnp.max(H, 0)
    return H / jnp.where(peak == 0, 1, peak), scale * W * peak[:, None]


def _updated(X, H, W, num_iterations: int, keep_w: bool = False):
    """Coordinate descent for `X = H W`: column after column of `H` becomes the best that is not negative, then of `W`.

    It never fits worse, and 100 rounds come about as close as thousands of multiplicative updates.
    """

    def improved(H, products, gram):  # products = X W^T, gram = W W^T

        def one(column, H):
            curvature = gram[column, column]
            gradient = _product(H, gram[column]) - products[:, column]
            step = gradient / jnp.where(curvature == 0, 1, curvature)
            return H.at[:, column].set(jax.nn.relu(H[:, column] - step))

        return jax.lax.fori_loop(0, H.shape[1], one, H)

    def update(factors, _):
        H, W = factors
        H = improved(H, _product(X, W.T), _product(W, W.T))
        if not keep_w:
            W = improved(W.T, _product(X.T, H), _product(H.T, H)).T
        return (H, W), None

    return jax.lax.scan(update, (H, W), None, length=num_iterations)[0]


def _apart(X, count: int):
    """Rows of `X`, each that which the others explain least (Gillis and Vavasis 2014)."""

    def pick(rest, _):
        square = jnp.sum(rest**2, 1)
        cell = jnp.argmax(square)
        along = rest[cell] / jnp.where(square[cell] == 0, 1, square[cell])
        return rest - _product(_product(rest, rest[cell])[:, None], along[None]), X[cell]

    return jax.lax.scan(pick, X, None, length=count)[1] + 0.01  # an update never moves what is zero


def _least_squares(X, W):
    gram = _product(W, W.T)
    ridge = 1e-3 * jnp.trace(gram) / len(W) * jnp.eye(len(W), dtype=jnp.float32)
    return jax.nn.relu(jnp.linalg.solve(gram + ridge, _product(W, X.T)).T)
