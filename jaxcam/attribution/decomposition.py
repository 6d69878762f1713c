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

from jaxcam._array import ROUNDING, normalise, resize
from jaxcam._cam import activation_cam, checked, gradient_cam, spatial
from jaxcam._errors import unknown
from jaxcam._inputs import engine, positive, predicted
from jaxcam._loops import chunked_map
from jaxcam._typing import Images, Maps, Score, Targets
from jaxcam.score import logit
from jaxcam.tap import Tap

_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def eigen_cam(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """Eigen-CAM: the activations' first principal component.

    `map = (A - mean_hw(A)) v`, where `v[k]` is the direction of the channels along which the cells vary most.

    The sign of `v` is that with which the map correlates positively with the mean activation; pytorch-grad-cam leaves
    it to chance. `targets` and `score` change nothing. Arguments, result and errors are those of `grad_cam`.

    Reference: Muhammad and Yeasin 2020, Eigen-CAM: Class Activation Map using Principal Components,
    https://arxiv.org/abs/2008.00299

    Example:
      >>> heatmaps = jaxcam.eigen_cam(model, images)
    """
    return activation_cam("eigen_cam", _principal_map, model, images, targets, raw)


def eigen_grad_cam(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False
) -> Maps:
    """Eigen-Grad-CAM: the first principal component of activations times gradients; Eigen-CAM with a class.

    `map = (B - mean_hw(B)) v` with `B = G A`, where `v[k]` is the direction along which the cells vary most.

    The sign of `v` is that with which the map correlates positively with `sum_k B`, the map of HiResCAM;
    pytorch-grad-cam leaves it to chance. Arguments, result and errors are those of `grad_cam`.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.eigen_grad_cam(model, images)
    """
    return gradient_cam(_eigen_grad_cam, model, images, targets, score, raw)


def _eigen_grad_cam(A, G):
    return _principal_map(G * A)


def _principal_map(B):
    """The cells of `B[h, w, k]` projected on their first principal direction, positive where `sum_k B` is large."""
    X = _centred_cells(B)
    # The direction does not depend on the scale, and the squares of tiny gradients would be zero.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(X)))
    X = X / jnp.where(scale == 0, 1, scale)
    if X.shape[0] < X.shape[1]:
        u = _top_eigenvector(_product(X, X.T))
        projected = u * _norm(_product(X.T, u))
    else:
        projected = _product(X, _top_eigenvector(_product(X.T, X)))
    sign = jnp.where(jnp.vdot(projected, X.sum(1)) < 0, -1, 1)
    return (scale * sign * projected).reshape(B.shape[:2])


def _centred_cells(B):
    cells = B.reshape(-1, B.shape[-1])
    mean = jnp.mean(cells, 0)
    centred = cells - mean
    # A channel without variation keeps the rounding of its mean, and of nothing but such channels PCA makes a picture.
    constant = jnp.max(jnp.abs(centred), 0) <= ROUNDING * jnp.max(jnp.abs(cells), 0)
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


def kpca_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    kernel: str = "sigmoid",
    gamma: float | int | None = None,
) -> Maps:
    """KPCA-CAM: the activations' first principal component under a kernel.

    `map = sqrt(lambda) u` with the largest eigenvalue `lambda` and its eigenvector `u` of the centred kernel matrix
    `K[i, j] = kernel(X_i, X_j)` of all cells `X = A - mean_hw(A)`.

    The sign is that of `eigen_cam`, which is the linear kernel. The matrix has one row for each cell: few in a late
    layer, 3,136 for each image in one of 56 x 56 cells. `targets` and `score` change nothing.
    Arguments, result and errors are those of `grad_cam`, and:

    Args:
      kernel: `"sigmoid"` is `tanh(gamma <x, y> + 1)`, `"rbf"` is `exp(-gamma |x - y|^2)`, `"linear"` is `<x, y>`.
      gamma: `None` means one over the number of channels.

    Raises:
      ValueError: as `grad_cam`; an unknown kernel.

    Reference: Karmani et al. 2024, KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA,
    https://arxiv.org/abs/2410.00267

    Example:
      >>> heatmaps = jaxcam.kpca_cam(model, images, kernel="rbf")
    """
    if kernel not in _KERNEL_MAPS:
        raise unknown("kernel", kernel, _KERNEL_MAPS)
    options = () if gamma is None else (gamma,)
    return activation_cam("kpca_cam", _KERNEL_MAPS[kernel], model, images, targets, raw, *options)


def _sigmoid(inner, gamma):
    return jnp.tanh(gamma * inner + 1)


def _rbf(inner, gamma):
    norms = jnp.diagonal(inner)
    return jnp.exp(-gamma * (norms[:, None] + norms - 2 * inner))


def _linear(inner, gamma):
    return inner


def _kernel_map(kernel, A, gamma=None):
    X = _centred_cells(A)
    K = kernel(_product(X, X.T), 1 / X.shape[1] if gamma is None else gamma)
    constant = jnp.max(K) - jnp.min(K) <= ROUNDING * jnp.max(jnp.abs(K))
    K = jnp.where(constant, 0, K - K.mean(0) - K.mean(1, keepdims=True) + K.mean())
    u = _top_eigenvector(K)
    value = jnp.maximum(jnp.vdot(u, _product(K, u)), 0)
    projected = u * jnp.where(value == 0, 0, jnp.sqrt(jnp.where(value == 0, 1, value)))
    sign = jnp.where(jnp.vdot(projected, X.sum(1)) < 0, -1, 1)
    return (sign * projected).reshape(A.shape[:2])


_KERNEL_MAPS = {
    name: partial(_kernel_map, k) for name, k in {"sigmoid": _sigmoid, "rbf": _rbf, "linear": _linear}.items()
}


def fem(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    deviations: float | int = 2,
) -> Maps:
    """FEM: channels weighted by how many of their cells stand out.

    `w_k = mean_hw(A > mean_hw(A) + deviations std_hw(A))`; `map = sum_k w_k A_k`.

    `targets` and `score` change nothing. Arguments, result and errors are those of `grad_cam`, and:

    Args:
      deviations: how many standard deviations above its channel's mean a cell stands out.

    Reference: Fuad et al. 2020, Features Understanding in 3D CNNs for Actions Recognition in Video,
    https://doi.org/10.1109/IPTA50016.2020.9286629

    Example:
      >>> heatmaps = jaxcam.fem(model, images)
    """
    return activation_cam("fem", _fem, model, images, targets, raw, deviations)


def _fem(A, deviations):
    X = _centred_cells(A)
    threshold = deviations * jnp.std(X, 0)
    weights = jnp.mean(threshold < X, 0)
    return jnp.sum(weights * A, -1)


def deep_feature_factorization(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    num_components: int = 5,
    num_steps: int = 100,
    chunk_size: int = 32,
) -> tuple[Float[Array, "n r a b"], Float[Array, "n r"]]:
    """Deep feature factorisation: the concepts of an image, where each one is, and how it scores.

    `A - min_hw(A) = H W` with `H[h', w', r] >= 0` and `W[r, k] >= 0`, by `num_steps` multiplicative updates that
    start at the cells which differ most from each other. A concept is `W_r + min_hw(A)`, scaled so that `H_r` is one
    where the concept is strongest; its score is that of the image with the concept in every cell, which after global
    average pooling is the dense layer's. Concepts are ordered by their part in the activations.

    Each image is factorised by itself, where pytorch-grad-cam factorises a batch, from a random start, which also
    decides the scale of its concepts.

    Args:
      model: a tap on one spatial layer.
      images, targets, score: as for `grad_cam`; they enter the concepts' scores, not their heatmaps.
      raw: return `H` itself, at the layer's resolution.
      num_components: concepts for each image, `r`.
      num_steps: updates of `H` and `W`.
      chunk_size: concepts in one forward pass.

    Returns:
      Heatmaps `float32[n, r, h, w]`, each in [0, 1], and scores `float32[n, r]`.

    Raises:
      ValueError: as `grad_cam`; a tap on several layers.
      TypeError: `model` is not a tap.

    Reference: Collins et al. 2018, Deep Feature Factorization for Concept Discovery, https://arxiv.org/abs/1806.10206

    Example:
      >>> heatmaps, scores = jaxcam.deep_feature_factorization(model, images, num_components=3)
    """
    positive(num_components=num_components, num_steps=num_steps, chunk_size=chunk_size)
    images, targets = checked("deep_feature_factorization", model, images, targets)
    if len(model.layers) > 1:
        raise ValueError(f"deep_feature_factorization explains one layer, and {len(model.layers)} are tapped.")
    static = {"num_components": num_components, "num_steps": num_steps, "chunk_size": chunk_size}
    return _factorization_engine(model, images, targets, score=score, raw=raw, **static)


@engine(static=("score", "raw", "num_components", "num_steps", "chunk_size"))
def _factorization_engine(model, images, targets, *, score, raw, num_components, num_steps, chunk_size):
    logits, activations = model.run(images)
    targets = predicted(logits) if targets is None else targets
    (A,) = spatial(model, activations)
    H, W = jax.vmap(partial(_concepts, count=num_components, num_steps=num_steps))(A)

    def scores(image, component):
        original = activations[0][image]
        concept = W[image, component].reshape(-1, *(1,) * (original.ndim - 2), W.shape[-1]).astype(original.dtype)
        return score(model.run(images[image], [concept - original])[0], targets[image])

    results = chunked_map(scores, H.shape[:2], chunk_size).astype(jnp.float32)
    return (H if raw else normalise(resize(normalise(H), images.shape[1:3]))), results


def _concepts(A, count, num_steps):
    """Heatmaps `[r, h', w']` and concepts `[r, k]` of one image."""
    cells = A.reshape(-1, A.shape[-1])
    offset = jnp.min(cells, 0)
    X = cells - offset
    scale = jnp.max(X)
    X = X / jnp.where(scale == 0, 1, scale)
    H, W = _factorise(X, *_start(X, count), num_steps)
    peak = jnp.max(H, 0)
    H, W = H / jnp.where(peak == 0, 1, peak), W * peak[:, None]
    order = jnp.argsort(-H.sum(0) * W.sum(1))
    return (H.T[order]).reshape(count, *A.shape[:2]), scale * W[order] + offset


def _start(X, count):
    """`W`: cells of `X`, each that which the others explain least (Gillis and Vavasis 2014); `H`: by least squares."""

    def pick(rest, _):
        square = jnp.sum(rest**2, 1)
        cell = jnp.argmax(square)
        along = rest[cell] / jnp.where(square[cell] == 0, 1, square[cell])
        return rest - _product(_product(rest, rest[cell])[:, None], along[None]), X[cell]

    W = jax.lax.scan(pick, X, None, length=count)[1] + 0.01  # an update never moves what is zero
    gram = _product(W, W.T)
    ridge = 1e-3 * jnp.trace(gram) / count * jnp.eye(count)
    return jax.nn.relu(jnp.linalg.solve(gram + ridge, _product(W, X.T)).T) + 0.01, W


def _factorise(X, H, W, num_steps: int):
    """Lee and Seung's multiplicative updates for `X = H W`: they keep both non-negative, and never fit worse."""

    def update(factors, _):
        H, W = factors
        H = H * _ratio(_product(X, W.T), _product(H, _product(W, W.T)))
        W = W * _ratio(_product(H.T, X), _product(_product(H.T, H), W))
        return (H, W), None

    return jax.lax.scan(update, (H, W), None, length=num_steps)[0]


def _ratio(above, below):
    return above / jnp.where(below == 0, ROUNDING, below)
