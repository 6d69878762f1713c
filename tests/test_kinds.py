"""Every kind of model under methods of every family: each map is that of plain JAX, or of brute force.

A kind gives a tap and, without jaxcam, the same model as two functions: below the layer and above it.
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxcam

KEYS = jax.random.split(jax.random.key(0), 8)
IMAGES = jax.random.normal(KEYS[0], (2, 12, 10, 3))


class Kind(NamedTuple):
    tap: jaxcam.Tap
    images: jax.Array
    below: Callable  # images -> activations, channels last
    above: Callable  # activations -> output
    score: Callable = jaxcam.score.logit

    def scores(self, output):
        return self.score(output, jnp.ones(len(self.images), jnp.int32))

    def of_images(self, images):
        return self.scores(self.above(self.below(images)))


def linen_resnet() -> Kind:
    module = helpers.tiny_resnet()
    variables, images = helpers.random_variables(module), jax.random.normal(KEYS[0], (2, 16, 16, 3))

    def below(images):
        _, state = module.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
        return state["intermediates"]["layer4"]["__call__"][0]

    def above(activations):
        return activations.mean((1, 2)) @ variables["params"]["fc"]["kernel"] + variables["params"]["fc"]["bias"]

    return Kind(jaxcam.tap(module, variables, "layer4"), images, below, above)


class Residual(nnx.Module):
    def __init__(self, new, rngs):
        self.conv, self.again = (nnx.Conv(new, new, (3, 3), rngs=rngs) for _ in range(2))
        self.norm, self.drop = nnx.BatchNorm(new, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(x + self.again(self.drop(nnx.relu(self.norm(self.conv(x))))))


class NNXResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem, self.head = nnx.Conv(3, 5, (3, 3), 2, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)
        self.blocks = nnx.List([Residual(5, rngs) for _ in range(2)])

    def __call__(self, x):
        return self.above(self.below(x))

    def below(self, x):
        return self.blocks[0](nnx.relu(self.stem(x)))

    def above(self, x):
        return self.head(self.blocks[1](x).mean((1, 2)))


def nnx_resnet() -> Kind:
    net = NNXResNet(nnx.Rngs(0))
    net.eval()
    return Kind(jaxcam.tap(net, None, "blocks.0"), IMAGES, net.below, net.above)


def keras_mobilenet() -> Kind:
    """An inverted residual with a ReLU6, as in MobileNetV2."""
    keras = pytest.importorskip("keras")
    L = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((12, 10, 3))
    stem = L.ReLU(6.0)(L.BatchNormalization(momentum=0.0)(L.Conv2D(4, 3, 2, padding="same", use_bias=False)(x)))
    y = L.ReLU(6.0)(L.BatchNormalization(momentum=0.0)(L.Conv2D(8, 1, use_bias=False)(stem)))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = L.BatchNormalization(momentum=0.0)(L.Conv2D(4, 1, use_bias=False)(L.ReLU(6.0)(y)))
    y = L.Dense(4)(L.Dropout(0.5)(L.GlobalAveragePooling2D()(L.Add()([stem, y]))))
    model = keras.Model(x, y)
    return keras_kind(keras, model, "depthwise", IMAGES)


def keras_kind(keras, model, layer, images) -> Kind:
    model(images, training=True)  # statistics of the norms, whose momentum is zero
    cut = model.get_layer(layer).output
    skips = [each for each in model.layers if isinstance(each, keras.layers.Add)]

    def run(part, x):
        weights = [[each.value for each in some] for some in (part.trainable_variables, part.non_trainable_variables)]
        return part.stateless_call(*weights, x, training=False)[0]

    below = keras.Model(model.input, [cut, *(skip.input[0] for skip in skips)])
    above = keras.Model([cut, *(skip.input[0] for skip in skips)], model.output)
    kept = run(below, images)[1:]  # what bypasses the layer
    kind = Kind(jaxcam.tap(model, None, layer), images, lambda x: run(below, x)[0], lambda a: run(above, [a, *kept]))
    return Whole(*kind, lambda x: run(model, x))


class Whole(NamedTuple):
    """A kind whose head needs more than the activations: with the whole model besides."""

    tap: jaxcam.Tap
    images: jax.Array
    below: Callable
    above: Callable
    score: Callable
    whole: Callable

    scores = Kind.scores

    def of_images(self, images):
        return self.scores(self.whole(images))


def equinox_cnn() -> Kind:
    eqx = pytest.importorskip("equinox")
    parts = [
        eqx.nn.Conv2d(3, 5, 3, key=KEYS[1]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(5 * 5 * 4, 4, key=KEYS[2]),
    ]

    def below(images):
        return jnp.moveaxis(jax.vmap(lambda x: jax.nn.relu(parts[0](x)))(jnp.moveaxis(images, -1, 1)), 1, -1)

    def above(activations):
        return jax.vmap(eqx.nn.Sequential(parts[2:]))(jnp.moveaxis(activations, -1, 1))

    return Kind(jaxcam.tap(eqx.nn.Sequential(parts), None, "layers.1"), IMAGES, below, above)


def haiku_cnn() -> Kind:
    hk = pytest.importorskip("haiku")
    below = hk.without_apply_rng(hk.transform(lambda x: jax.nn.relu(hk.Conv2D(5, 3, 2)(x))))
    above = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(4)(jax.nn.relu(hk.Conv2D(5, 3)(x)).mean((1, 2)))))
    params = {"below": below.init(KEYS[1], IMAGES)}
    params["above"] = above.init(KEYS[2], below.apply(params["below"], IMAGES))

    def features(params, images):
        return below.apply(params["below"], images)

    def head(params, activations):
        return above.apply(params["above"], activations)

    tap = jaxcam.tap((features, head), params)
    return Kind(tap, IMAGES, lambda x: features(params, x), lambda a: head(params, a))


class Halves(nn.Module):
    """A chain of two halves, so that plain Flax can run each of them."""

    first: nn.Module
    second: nn.Module

    def __call__(self, x, *context):
        return self.second(self.first(x), *context)


class Convolved(nn.Module):
    rank: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(4, (3,) * self.rank, 2)(x))


class Pooled(nn.Module):
    rank: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3,) * self.rank)(x))
        return nn.Dense(4)(x.mean(tuple(range(1, 1 + self.rank))))


class Joined(nn.Module):
    @nn.compact
    def __call__(self, x, known):
        return nn.Dense(4)(nn.relu(nn.Dense(6)(jnp.concatenate([x.mean((1, 2)), known], 1))))


class Segmented(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.ConvTranspose(3, (4, 4), (2, 2))(nn.relu(nn.Conv(5, (3, 3))(x)))


class Detected(nn.Module):
    """Six candidates, each with a box, a number for each class, and one for whether it is something."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3))(x)).mean((1, 2))
        places = jnp.array([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8], [2, 2, 6, 6], [0, 0, 8, 8]])
        boxes = places + nn.Dense(24)(x).reshape(-1, 6, 4)
        return boxes, nn.relu(0.5 + nn.Dense(18)(x).reshape(-1, 6, 3)), nn.relu(0.5 + nn.Dense(6)(x))


def halves(first, second, images, *context, **options) -> Kind:
    module = Halves(first, second)
    variables = jax.jit(module.init)(KEYS[3], images, *context)
    score = options.pop("score", jaxcam.score.logit)
    tap = jaxcam.tap(module, variables, "first", context=context or None, **options)
    params = variables["params"]
    return Kind(
        tap,
        images,
        lambda images: first.apply({"params": params["first"]}, images),
        lambda activations: second.apply({"params": params["second"]}, activations, *context),
        score,
    )


def signals() -> Kind:
    return halves(Convolved(1), Pooled(1), jax.random.normal(KEYS[0], (2, 30, 2)))


def volumes() -> Kind:
    return halves(Convolved(3), Pooled(3), jax.random.normal(KEYS[0], (2, 6, 7, 8, 1)))


def two_inputs() -> Kind:
    return halves(Convolved(2), Joined(), IMAGES, jax.random.normal(KEYS[4], (2, 3)))


def segmentation() -> Kind:
    masks = jaxcam.score.Rows((jax.random.uniform(KEYS[4], (2, 12, 10)) > 0.5).astype(jnp.float32))
    return halves(Convolved(2), Segmented(), IMAGES, score=jaxcam.score.pixels(masks))


def detector() -> Kind:
    boxes = jnp.array([[0.5, 0, 4, 4.5], [1.5, 2, 7, 6]])
    return halves(Convolved(2), Detected(), IMAGES, score=jaxcam.score.box(boxes))


KINDS = [
    linen_resnet,
    nnx_resnet,
    keras_mobilenet,
    equinox_cnn,
    haiku_cnn,
    signals,
    volumes,
    two_inputs,
    segmentation,
    detector,
]


def grad_cam(kind):
    activations = kind.below(kind.images)
    gradients = jax.grad(lambda a: kind.scores(kind.above(a)).sum())(activations)
    weights = gradients.mean(tuple(range(1, gradients.ndim - 1)))
    expected = jnp.einsum("n...k,nk->n...", activations, weights)
    return jaxcam.grad_cam(kind.tap, kind.images, 1, score=kind.score, raw=True), expected


def score_cam(kind):
    activations, space = kind.below(kind.images), kind.images.shape[1:-1]
    masks = jnp.moveaxis(activations, -1, 1)
    for axis, size in enumerate(space, 2):  # linear, the corners aligned, an axis at a time
        places = np.linspace(0, masks.shape[axis] - 1, size)
        low = np.minimum(np.floor(places).astype(int), max(masks.shape[axis] - 2, 0))
        share = jnp.asarray(places - low, jnp.float32).reshape(-1, *(1,) * (masks.ndim - axis - 1))
        below, above = (jnp.take(masks, np.minimum(low + i, masks.shape[axis] - 1), axis) for i in range(2))
        masks = below * (1 - share) + above * share
    axes = tuple(range(2, masks.ndim))
    low, high = masks.min(axes, keepdims=True), masks.max(axes, keepdims=True)
    masks = jnp.where(high > low, (masks - low) / jnp.where(high > low, high - low, 1), 0)
    of_images = jax.jit(kind.of_images)
    scores = jnp.stack([of_images(kind.images * masks[:, k, ..., None]) for k in range(masks.shape[1])], 1)
    expected = jnp.einsum("n...k,nk->n...", activations, jax.nn.softmax(scores))
    return jaxcam.score_cam(kind.tap, kind.images, 1, score=kind.score, raw=True, chunk_size=5), expected


def gradient(kind, images):
    return jax.grad(lambda images: kind.of_images(images).sum())(images)


def saliency(kind):
    return jaxcam.saliency(kind.tap, kind.images, 1, score=kind.score), gradient(kind, kind.images)


def integrated_gradients(kind):
    nodes, weights = np.polynomial.legendre.leggauss(4)
    of_step = jax.jit(lambda place: gradient(kind, place * kind.images))
    expected = kind.images * sum(w / 2 * of_step((node + 1) / 2) for node, w in zip(nodes, weights, strict=True))
    options = {"score": kind.score, "num_steps": 4, "chunk_size": 5}
    return jaxcam.integrated_gradients(kind.tap, kind.images, 1, **options), expected


def occlusion(kind):
    images, space = np.asarray(kind.images), kind.images.shape[1:-1]
    window, of_images = tuple(-(-size // 2) for size in space), jax.jit(kind.of_images)
    stride = tuple(-(-size // 2) for size in window)
    whole, total, count = of_images(kind.images), np.zeros(images.shape[:-1]), np.zeros(space)
    starts = [range(0, size - side + step, step) for size, side, step in zip(space, window, stride, strict=True)]
    for corner in product(*starts):
        inside = tuple(slice(start, start + side) for start, side in zip(corner, window, strict=True))
        covered = images.copy()
        covered[(slice(None), *inside)] = 0
        total[(slice(None), *inside)] += np.asarray(whole - of_images(covered)).reshape(-1, *(1,) * len(space))
        count[inside] += 1
    options = {"score": kind.score, "window": window, "stride": stride, "chunk_size": 5}
    return jaxcam.occlusion(kind.tap, kind.images, 1, **options), total / count


def lrp(kind):
    """Layers joined by ReLU, maxima and sums hand the score back, without gamma, as the input times its gradient."""
    found = jaxcam.lrp(kind.tap, kind.images, 1, score=kind.score, composite="epsilon")
    return found, kind.images * gradient(kind, kind.images)


METHODS = [grad_cam, score_cam, saliency, integrated_gradients, occlusion, lrp]
made: Any = cache(lambda kind: kind())


def deviation(kind, method) -> float:
    """The largest difference of any pixel, as a share of the largest value."""
    found, expected = method(kind)
    assert found.shape == expected.shape
    assert found.dtype == jnp.float32
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_agrees_with_plain_jax(kind, method):
    assert deviation(made(kind), method) < (1e-3 if method is lrp else 1e-5)
