"""Rule-changing methods: published numbers, Captum's results, axioms, a NumPy oracle, and what must raise."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.sharding import AxisType, PartitionSpec

import jaxcam
from jaxcam import deconvnet, deep_lift, guided_backprop, guided_grad_cam, lrp
from jaxcam._engine import program as programs
from jaxcam.lrp_rules import (
    COMPOSITES,
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Layer,
    WSquare,
    ZBox,
    ZPlus,
)
from jaxcam.models.resnet import BasicBlock, ResNet

GOLDEN = np.load(Path(__file__).parent / "golden" / "rules.npz")


class Golden(nn.Module):
    """The network of golden/make_rules.py."""

    overlap: bool = False

    @nn.compact
    def __call__(self, x):
        same = ((1, 1), (1, 1))
        x = helpers.Relu(name="relu1")(nn.Conv(5, (3, 3), padding=same, name="conv1")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = helpers.Relu(name="relu2")(nn.Conv(6, (3, 3), padding=same, name="conv2")(x))
        x = nn.max_pool(x, (2, 2), (1, 1) if self.overlap else (2, 2))
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # channels first, as in torch
        return nn.Dense(4, name="fc2")(nn.relu(nn.Dense(7, name="fc1")(x)))


def golden_model(name="plain", conv_bias=1):
    params = {}
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        weight, bias = GOLDEN[f"{name}.{layer}.weight"], GOLDEN[f"{name}.{layer}.bias"]
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        params[layer] = {"kernel": kernel, "bias": bias * (conv_bias if weight.ndim == 4 else 1)}
    return jaxcam.tap(Golden(name == "overlap"), {"params": params}, "relu2")


def residual(*, bias=True, seed=0):
    """Max-pool, BatchNorm with scales of both signs, both kinds of skip connection; without bias, a linear scale."""
    module = ResNet((1, 1), BasicBlock, num_classes=5, width=6, stem="imagenet")
    images = helpers.images(2, 32, 24)
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        centre, spread = {
            "kernel": (0, np.sqrt(2 / np.prod(leaf.shape[:-1]))),
            "scale": (0.7, 1),
            "bias": (0, 0.5 * bias),
            "mean": (0, 0.5 * bias),
            "var": (1.5, 0.2),
        }[path[-1].key]
        return jnp.asarray(random.normal(centre, spread, leaf.shape), leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(module.init, jax.random.key(0), images))
    return jaxcam.tap(module, variables, "layer2"), images


def explain(method, model, images, target=1, **options):
    """Compiled, also for a plain callable: much faster than equation by equation."""
    return jax.jit(lambda images: method(model, images, target, **options))(images)


def close(actual, expected, rtol=1e-4):
    np.testing.assert_allclose(actual, expected, atol=rtol * float(np.abs(expected).max()))


def total(attributions):
    return attributions.sum((1, 2, 3))


# ------------------------------------------------------------------------------------------------ what others measured


def test_published_numbers():
    """Captum's tests on ConvNet_One_Conv."""
    module, variables, image = helpers.one_conv()
    model = jaxcam.tap(module, variables, "relu1")
    guided = [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]
    np.testing.assert_allclose(guided_backprop(model, image, 0)[0, :, :, 0], guided)
    deconvolution = [[2, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]]
    np.testing.assert_allclose(deconvnet(model, image, 0)[0, :, :, 0], deconvolution)
    product = [[0, 0, 4, 4], [0, 0, 12, 8], [28, 84, 97.5, 65], [28, 56, 65, 32.5]]
    np.testing.assert_allclose(guided_grad_cam(model, image, 0, interpolation="nearest")[0, :, :, 0], product)


@pytest.mark.parametrize(
    "name, function",
    {
        "guided_backprop": guided_backprop,
        "deconvnet": deconvnet,
        "guided_grad_cam": partial(guided_grad_cam, interpolation="nearest"),
        "deep_lift": deep_lift,
        "deep_lift_baseline": partial(deep_lift, baseline=GOLDEN["baseline"]),
        "lrp_epsilon": partial(lrp, composite="epsilon"),
        "lrp_gamma": partial(lrp, composite=Composite(Gamma(0.25))),
        "lrp_z_plus": partial(lrp, composite="epsilon_plus"),
    }.items(),
)
def test_captum(name, function):
    unbiased = name in ("lrp_gamma", "lrp_z_plus")  # with a bias, we favour its positive part too, and Captum does not
    model = golden_model(conv_bias=0 if unbiased else 1)
    close(function(model, GOLDEN["images"], GOLDEN["targets"]), GOLDEN[f"result.{name}"])


def test_deep_lift_is_complete_where_captum_is_not():
    """Of a cell that wins in several windows, Captum's unpooling keeps one."""
    model, images, targets = golden_model("overlap"), GOLDEN["images"], GOLDEN["targets"]
    difference = np.take_along_axis(model(images) - model(0 * images), targets[:, None], 1)[:, 0]
    close(total(deep_lift(model, images, targets)), difference)
    assert np.abs(total(GOLDEN["result.deep_lift_overlap"]) / difference - 1).min() > 0.01


# --------------------------------------------------------------------------------------------- a cut at every ReLU


def spelled(relu):
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    head = jax.random.normal(jax.random.key(2), (4, 3))

    def model(x):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return relu(x).mean((1, 2)) @ head

    return model


def scanned(x):
    return jax.lax.scan(lambda x, _: (jax.nn.relu(x), None), x, length=2)[0]


SPELLINGS = {
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, zeros first": lambda x: jnp.maximum(jnp.zeros_like(x), x),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where, other way round": lambda x: jnp.where(x <= 0, 0.0, x),
    "where, other way round twice": lambda x: jnp.where(x < 0, jnp.zeros_like(x), x),
    "mask": lambda x: x * (x > 0),
    "clip": lambda x: jnp.clip(x, 0),
    "jit": jax.jit(jax.nn.relu),
    "remat": jax.checkpoint(jax.nn.relu),
    "scan": scanned,
}


def with_relu(relu, images):
    """What the four methods say, and plain saliency."""
    methods = (guided_backprop, deconvnet, lrp, deep_lift, jaxcam.saliency)
    return jax.jit(lambda images: [method(spelled(relu), images, 1) for method in methods])(images)


@pytest.fixture(scope="module")
def usual():
    return with_relu(jax.nn.relu, helpers.images(2, 5, 6))


@pytest.mark.parametrize("relu", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_relu(relu, usual):
    results = with_relu(relu, helpers.images(2, 5, 6))
    for result, expected in zip(results, usual, strict=True):
        close(result, expected, 1e-5)
    for guided in results[:2]:
        assert not np.allclose(guided, results[-1], atol=0.01)


NOT_RELU = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,  # has max(x, 0) inside, but is none
    "leaky": jax.nn.leaky_relu,
    "nothing": lambda x: x,
    "other mask": lambda x: x * (x < 0),
    "other where": lambda x: jnp.where(x > 0, 0, x),
}


@pytest.mark.parametrize("function", NOT_RELU.values(), ids=NOT_RELU)
def test_without_relu_it_raises(function):
    for method in (guided_backprop, deconvnet):
        with pytest.raises(ValueError, match="no ReLU"):
            explain(method, spelled(function), helpers.images(1, 5, 6))


def test_a_relu_out_of_reach_raises():
    def looped(x):
        return jax.lax.cond(x.sum() > 0, jax.nn.relu, jnp.tanh, x)

    with pytest.raises(ValueError, match="inside 'cond' is out of reach"):
        guided_backprop(spelled(lambda x: jax.nn.relu(looped(x))), helpers.images(1, 5, 6), 1)


def test_only_a_relu_on_the_way_counts():
    """A ReLU in the score, or one whose result is not used, is no ReLU of the model."""
    images = helpers.images(1, 5, 6)
    with pytest.raises(ValueError, match="no ReLU"):
        guided_backprop(spelled(jnp.tanh), images, 1, score=lambda logits, _: jax.nn.relu(logits[:, 1]))
    with pytest.raises(ValueError, match="no ReLU"):
        guided_backprop(spelled(lambda x: (jax.nn.relu(x), jnp.tanh(x))[1]), images, 1)


def test_other_custom_derivatives_stay():
    """A straight-through estimator keeps its gradient beside a ReLU."""

    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    images = helpers.images(1, 5, 6)
    result = explain(guided_backprop, lambda x: spelled(jax.nn.relu)(straight_through(x)), images)
    assert float(jnp.abs(result).max()) > 0
    close(result, explain(guided_backprop, spelled(jax.nn.relu), jnp.round(images)), 1e-6)


def test_remat_and_nnx_models():
    images = helpers.images(2, 12, 16)
    plain = helpers.small()
    for method in (guided_backprop, deconvnet, deep_lift, lrp):
        remat = jaxcam.tap(nn.remat(helpers.Small)(), plain.variables, "late")
        close(method(remat, images, 1), method(plain, images, 1), 1e-5)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.head = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.conv(x)).mean((1, 2)))

    model = Model(nnx.Rngs(0))
    close(total(deep_lift(jaxcam.tap(model, None, "conv"), images, 1)), (model(images) - model(0 * images))[:, 1])
    assert float(jnp.abs(guided_grad_cam(jaxcam.tap(model, None, "conv"), images, 1)).max()) > 0


def test_guided_grad_cam_is_the_product():
    model, images = golden_model(), GOLDEN["images"]
    coarse = np.maximum(jaxcam.grad_cam(model, images, 2, raw=True), 0)
    by_hand = jax.image.resize(coarse, images.shape[:3], "bilinear")[..., None] * guided_backprop(model, images, 2)
    close(guided_grad_cam(model, images, 2), by_hand)
    double = jaxcam.tap(Golden(), model.variables, ("relu2", "relu2"))
    close(guided_grad_cam(double, images, 2), by_hand)


# ------------------------------------------------------------------------------------------------------------ DeepLIFT


@pytest.mark.parametrize("score", [jaxcam.score.logit, jaxcam.score.log_probability], ids=lambda each: each.__name__)
def test_deep_lift_completeness(score):
    model, images = residual()
    targets = jnp.array([1, 3])
    for baseline in (None, 0.3, helpers.images(2, 32, 24, seed=5)):
        start = jnp.broadcast_to(jnp.asarray(0.0 if baseline is None else baseline), images.shape)
        difference = score(model(images), targets) - score(model(start), targets)
        assert float(jnp.abs(difference).min()) > 0.01
        close(total(deep_lift(model, images, targets, score=score, baseline=baseline)), difference)


@pytest.mark.parametrize("score", [jaxcam.score.probability, jaxcam.score.log_probability], ids=lambda f: f.__name__)
def test_deep_lift_adds_up_where_logits_are_large(score):
    """To rounding of the score, not of logits of a million: the maximum that a softmax takes off is no part of it."""
    images = helpers.images(6, 4, 4)
    weights = 1e6 * jax.random.normal(jax.random.key(0), (48, 4))
    for baseline in (None, 0.1 * helpers.images(6, 4, 4, seed=2)):  # of equal logits, and of others

        def model(x):
            return jnp.tanh(x.reshape(len(x), -1)) @ weights

        every = jnp.broadcast_to(jnp.arange(4), (6, 4))
        attributions, delta = jax.jit(partial(deep_lift, model, score=score, baseline=baseline, return_delta=True))(
            images, every
        )
        np.testing.assert_allclose(delta / jnp.maximum(1, jnp.abs(attributions).max((2, 3, 4))), 0, atol=2e-6)


def attention(x):
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    return (nn.softmax(tokens @ tokens.swapaxes(1, 2) / 4) @ tokens).reshape(x.shape)


def pooled(x):
    """Max-pooling as a maximum of strided slices."""
    return jnp.maximum(jnp.maximum(x[:, ::2, ::2], x[:, 1::2, ::2]), jnp.maximum(x[:, ::2, 1::2], x[:, 1::2, 1::2]))


ACTIVATIONS = {
    "relu6": jax.nn.relu6,
    "gelu": jax.nn.gelu,
    "exact gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "leaky": jax.nn.leaky_relu,
    "hard swish": jax.nn.hard_swish,
    "step": lambda x: jnp.where((x > 0) & ~(x > 1), 1.0, x),
    "gate": lambda x: x * nn.sigmoid(x.mean((1, 2), keepdims=True)),
    "layer norm": lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3),
    "attention": attention,
    "pooled": pooled,
}


@pytest.mark.parametrize("function", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_deep_lift_completeness_of_anything(function):
    images, baseline = helpers.images(2, 6, 8), 0.5 * helpers.images(2, 6, 8, seed=8)
    model = spelled(function)
    difference = (model(images) - model(baseline))[:, 1]
    attributions = explain(deep_lift, model, images, baseline=baseline)
    close(total(attributions), difference)
    gradient = jaxcam.saliency(model, images, 1) * (images - baseline)
    assert not np.allclose(total(gradient), difference, rtol=0.01)  # so the tolerance means something


def test_deep_lift_slopes():
    """A function of one pixel has one complete answer, however it is written; at the baseline it is the derivative."""
    images = jnp.array([2.0, -1.0, 0.5, 0.25]).reshape(1, 2, 2, 1)
    weights = jnp.array([1.0, 2.0, 3.0, 4.0])
    for function in (jax.nn.gelu, jax.nn.silu, jax.nn.softplus, jax.nn.elu, jnp.tanh, lambda x: x**3 - jnp.sqrt(x + 9)):

        def model(x, function=function):
            return (function(x).reshape(len(x), -1) @ weights)[:, None]

        expected = weights * (function(images) - function(jnp.full_like(images, 0.5))).ravel()
        np.testing.assert_allclose(explain(deep_lift, model, images, baseline=0.5).ravel(), expected, atol=1e-5)

        multipliers = jax.jit(jax.grad(lambda x, m=model: deep_lift(m, x, 1, baseline=images).sum()))(images)
        close(multipliers, jaxcam.saliency(model, images, 1))


def test_deep_lift_raises_where_it_would_not_add_up(as_user):
    for function in (partial(jnp.sort, axis=-1), lambda x: jax.lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, x)):
        with pytest.raises(ValueError, match="deep_lift has no rule for the operation '(sort|cond)'"):
            deep_lift(spelled(function), helpers.images(1, 5, 6), 1)
    with pytest.raises(ValueError, match="baseline has shape"):
        deep_lift(spelled(jnp.tanh), helpers.images(1, 5, 6), 1, baseline=jnp.zeros((2, 5, 6, 3)))


# ----------------------------------------------------------------------------------------------------------------- LRP


ZENNIT = np.load(Path(__file__).parent / "golden" / "lrp.npz")
OWN = Composite(Gamma(0.6), Epsilon(0.1), first=WSquare())
ROUNDING = {"plain": 1e-6, "residual": 1e-3}  # a residual network cancels digits, theirs as ours


@pytest.mark.parametrize("network", ROUNDING)
@pytest.mark.parametrize("composite", sorted({name.partition(".")[2] for name in ZENNIT} - {""}))
def test_zennit(network, composite):
    model, images, targets = golden_model(), GOLDEN["images"], GOLDEN["targets"]
    if network == "residual":
        model, images, targets = jaxcam.load("resnet18_cifar10").tap(), ZENNIT["images"], ZENNIT["targets"]
    found = lrp(model, images, targets, composite=OWN if composite == "own" else composite)
    close(found, ZENNIT[f"{network}.{composite}"], ROUNDING[network])


def by_contributions(rule, x, w, b):
    """The share of each of a dense layer's inputs in each output, from its contributions one by one."""
    c = x[:, None] * w
    positive, negative = np.maximum(c, 0), np.minimum(c, 0)

    def share(c, b):
        total = c.sum(0) + b
        return c / (total + np.where(total < 0, -1, 1) * rule[-1])

    def epsilon():
        return share(c, b)

    def gamma():
        up = share(c + rule.gamma * positive, b + rule.gamma * relu(b))
        down = share(c + rule.gamma * negative, b - rule.gamma * relu(-b))
        return np.where(c.sum(0) + b > 0, up, down)

    def relu(b):
        return np.maximum(b, 0)

    return {
        "Epsilon": epsilon,
        "Gamma": gamma,
        "ZPlus": lambda: share(positive, relu(b)),
        "AlphaBeta": lambda: rule.alpha * share(positive, relu(b)) - rule.beta * share(negative, -relu(-b)),
        "WSquare": lambda: share(w**2, b**2),
        "Flat": lambda: share(np.ones_like(w), 0),
        "ZBox": lambda: share(c - rule.low * np.maximum(w, 0) - rule.high * np.minimum(w, 0), 0),
    }[type(rule).__name__]()


FIRST = [
    *(Epsilon(0.1), Gamma(0.25, 0.1), ZPlus(0.1), AlphaBeta(3.0, 2.0, 0.1), WSquare(0.1), Flat(0.1)),
    ZBox(-4.0, 3.0, 0.1),
]


@pytest.mark.parametrize("first", FIRST, ids=lambda rule: type(rule).__name__)
def test_lrp_oracle(first):
    """1x1 convolutions on one pixel, and dense layers; the first one with its BatchNorm folded in by hand."""
    random = np.random.default_rng(2)
    sizes = [(5, 9), (9, 8), (8, 7), (7, 3)]
    weights = [(random.normal(size=size), random.normal(size=size[1])) for size in sizes]
    scale, shift = random.normal(size=9), random.normal(size=9)
    image = random.normal(size=5)

    def model(x):
        for index, (w, b) in enumerate(weights):
            if index == 0:
                x = jnp.einsum("nhwc,cd->nhwd", x, w) + b  # a matrix product on every cell: a convolution
                x = (x - shift) / (1 / scale)
            elif index == 1:
                x = jax.lax.conv_general_dilated(
                    x, jnp.float32(w)[None, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = (x + b).reshape(len(x), -1)
            else:
                x = (jnp.float32(w).T.dot(x.T) + b[:, None]).T  # weights first
            x = jnp.tanh(x) if index < 3 else x  # inputs of both signs
        return x

    composite = Composite(Gamma(0.5, 0.1), Epsilon(0.1), first)
    folded = [(weights[0][0] * scale, (weights[0][1] - shift) * scale), *weights[1:]]
    inputs = [image]
    for w, b in folded:
        inputs.append(np.tanh(inputs[-1] @ w + b))
    logits = inputs[3] @ folded[3][0] + folded[3][1]
    relevance = np.eye(3)[1] * logits
    for index, rule in reversed(list(enumerate((first, composite.convolution, Epsilon(0.1), Epsilon(0.1))))):
        relevance = by_contributions(rule, inputs[index], *folded[index]) @ relevance
    result = explain(lrp, model, jnp.float32(image).reshape(1, 1, 1, 5), composite=composite)
    close(result.ravel(), relevance)


def test_the_gamma_rule_behind_a_skip_connection():
    """By hand: `z = 4 x_0 - 5 x_1 = -1` is favoured where it is negative, so that nothing divides by zero.

    Added to `3 x_0` it gives the logit 2, of which the sum hands back -1 to the layer and 3 to `x_0`. The layer's
    contributions 4 and -5 become 4 and -6.25 of -2.25.
    """
    kernel = jnp.asarray([4.0, -5.0]).reshape(1, 1, 2, 1)

    def model(x):
        z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (z + 3 * x[..., :1]).reshape(len(x), 1)

    found = explain(lrp, model, jnp.ones((1, 1, 1, 2)), composite=Composite(Gamma(0.25)))
    np.testing.assert_allclose(found.ravel(), [3 + 4 / 2.25, -6.25 / 2.25], rtol=1e-5)


@pytest.mark.parametrize("composite", ["epsilon", Composite(Gamma(0.25)), "epsilon_alpha2_beta1_flat"], ids=str)
def test_lrp_conserves_the_score(composite):
    model, images = residual(bias=False)
    contrast = {"score": lambda logits, targets: logits[:, 1] - 2 * logits[:, 4]}
    expected = contrast["score"](model(images), None)
    relevance = lrp(model, images, 1, composite=composite, **contrast)
    exact = composite != "epsilon_alpha2_beta1_flat"  # which loses what arrives where nothing contributes
    close(total(relevance), expected, 1e-3 if exact else 0.5)
    by_gradient = images * jaxcam.saliency(model, images, 1, **contrast)  # what epsilon comes to, without biases
    assert np.allclose(relevance, by_gradient, atol=1e-3 * np.abs(by_gradient).max()) == (composite == "epsilon")


def test_a_composite_of_ones_own():
    """It sees every layer once, by its name in the model, and what it says counts."""
    seen = {}

    def composite(layer):
        seen[layer.name] = layer
        return Epsilon() if layer.name == "layer1.0.conv2" else COMPOSITES["epsilon_plus"](layer)

    model, images = residual()
    found = lrp(model, images, 1, composite=composite)
    blocks = {f"layer{i}.0.conv{j}" for i in (1, 2) for j in (1, 2)}
    assert set(seen) == blocks | {"conv1", "layer2.0.downsample.0", "fc"}
    assert {name for name, layer in seen.items() if layer.first} == {"conv1"}
    assert {name for name, layer in seen.items() if layer.kind == "dense"} == {"fc"}
    assert seen["conv1"] == Layer("conv1", "convolution", 0, True, (7, 7, 3, 6))
    assert not np.allclose(found, lrp(model, images, 1), atol=1e-3 * float(jnp.abs(found).max()))
    with pytest.raises(TypeError, match="The composite returns 'gamma' for fc; it must return a rule"):
        lrp(model, images, 1, composite=lambda layer: "gamma")


def test_a_factor_that_is_no_feature_is_not_folded():
    """A weight of each place, after the product, is a step of its own, which passes relevance on."""
    kernel, images = jax.random.normal(jax.random.key(1), (1, 1, 3, 4)), helpers.images(1, 4, 5)
    places = np.arange(1.0, 21, dtype=np.float32).reshape(4, 5, 1)

    def model(x):
        z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (z * jnp.sqrt(jnp.square(places)) + 3).sum((1, 2))

    found = explain(lrp, model, images, composite="epsilon_plus")
    (z,) = (np.maximum(np.asarray(images)[..., :, None] * kernel[0, 0], 0),)
    final = np.einsum("nhwc,cd->nhwd", images, kernel[0, 0])[..., 1] * places[..., 0]  # the 3 is absorbed
    close(found, z[..., 1] / np.maximum(z[..., 1].sum(-1, keepdims=True), 1e-9) * final[..., None], 1e-3)


def test_inputs_of_both_signs():
    """A sum is positive only if all of it is: here half of the cells contribute by negative weights."""
    random = np.random.default_rng(0)
    x, w, b = random.normal(size=6), random.normal(size=(6, 4)), random.normal(size=4)
    w[x < 0] = -1

    def model(images):
        return (images + jax.nn.relu(images)).reshape(1, 1, 1, 6) @ jnp.float32(w) + jnp.float32(b)

    def flat(images):
        return model(images).reshape(1, 4)

    y = x + np.maximum(x, 0)
    expected = by_contributions(ZPlus(), y, w, b)[:, 1] * (y @ w + b)[1]
    found = explain(lrp, flat, jnp.float32(x).reshape(1, 1, 1, 6), composite="epsilon_plus")
    close(found.ravel(), expected, 1e-3)


def test_lrp_z_plus():
    """What arrives where nothing contributes positively is lost, but only behind a skip connection."""
    model, images = residual(bias=False)
    relevance = lrp(model, images, 1)
    np.testing.assert_allclose(total(relevance), model(images)[:, 1], rtol=0.1)
    model = spelled(jax.nn.relu)
    relevance = explain(lrp, model, images)
    close(total(relevance), model(images)[:, 1])


def test_lrp_absorbs():
    """A larger epsilon leaves less relevance."""

    def uniform(epsilon):
        return Composite(Epsilon(epsilon), Epsilon(epsilon))

    model, images = golden_model(), GOLDEN["images"]
    left = [float(jnp.abs(lrp(model, images, 2, composite=uniform(e))).sum()) for e in (1e-6, 0.1, 1.0)]
    assert left[0] > 1.1 * left[1] > 1.2 * left[2]


@pytest.mark.parametrize("name", ["gelu", "exact gelu", "silu", "softplus", "elu", "leaky", "relu6", "pooled"])
def test_lrp_passes_activations(name):
    """They hand relevance on as it is: all of it arrives, where there is no bias."""
    images, model = helpers.images(2, 6, 8), spelled(ACTIVATIONS[name])
    close(total(explain(lrp, model, images)), model(images)[:, 1], 1e-3)


class Halved(nn.Module):
    """A transformer whose products give half of their gradient to each factor, and whose norms are constants.

    The input times its gradient is then AttnLRP with the epsilon rule, up to epsilon (Achtibat et al. 2024).
    """

    plain: bool = True

    @nn.compact
    def __call__(self, x):
        halved = (lambda each: each) if self.plain else (lambda each: (each + jax.lax.stop_gradient(each)) / 2)
        constant = (lambda each: each) if self.plain else jax.lax.stop_gradient

        def norm(x, name):
            scale = self.param(name, nn.initializers.normal(1.0), x.shape[-1:])
            x = x - x.mean(-1, keepdims=True)
            return x * constant(jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-3)) * scale

        x = nn.Conv(8, (4, 4), (4, 4), use_bias=False, name="patches")(x).reshape(len(x), -1, 8)
        y = norm(x, "first")
        q, k, v = (nn.Dense(8, use_bias=False, name=name)(y).reshape(*y.shape[:2], 2, 4) for name in "qkv")
        weights = nn.softmax(jnp.einsum("nqhc,nkhc->nhqk", halved(q), halved(k)) / 2)
        mixed = jnp.einsum("nhqk,nkhc->nqhc", halved(weights), halved(v)).reshape(y.shape)
        x = x + nn.Dense(8, use_bias=False, name="out")(mixed)
        y = nn.Dense(16, use_bias=False, name="up")(norm(x, "second"))
        y = y * constant(nn.sigmoid(y))  # silu
        x = x + nn.Dense(8, use_bias=False, name="down")(y)
        return nn.Dense(5, use_bias=False, name="head")(x.mean(1))


def test_lrp_of_a_transformer():
    images, module = helpers.images(2, 8, 12), Halved()
    variables = module.init(jax.random.key(0), images)
    halved = partial(Halved(plain=False).apply, variables)
    expected = images * jax.grad(lambda images: halved(images)[:, 1].sum())(images)
    model = jaxcam.tap(module, variables, "patches")
    # What is halved above is the value too, `(each + constant) / 2`, so that halves of both factors are counted.
    close(lrp(model, images, 1, composite="epsilon"), expected, 1e-3)
    gradient = images * jaxcam.saliency(model, images, 1)
    assert not np.allclose(gradient, expected, atol=0.05 * float(jnp.abs(expected).max()))
    assert np.isfinite(lrp(model, images, 1, composite="attn_lrp")).all()


def test_a_masked_softmax_passes_nothing_to_what_is_hidden():
    def model(x):
        x = x.reshape(len(x), -1)
        return nn.softmax(x + jnp.where(jnp.arange(x.shape[1]) < 4, 0, -jnp.inf)) @ jnp.eye(x.shape[1])

    images = jax.random.normal(jax.random.key(1), (2, 2, 4, 1))
    x = np.asarray(images).reshape(2, 8)[:, :4]
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    expected = np.pad(x * (np.eye(4)[1] - p) * p[:, 1:2], ((0, 0), (0, 4)))
    close(explain(lrp, model, images).reshape(2, 8), expected)


def test_lrp_raises():
    images = helpers.images(1, 6, 8)
    with pytest.raises(ValueError, match="lrp has no rule for the operation 'sort'"):
        explain(lrp, spelled(jnp.sort), images)


@pytest.mark.parametrize(
    "method, options, message",
    [
        (lrp, {"composite": "epsilon plus"}, "Unknown composite 'epsilon plus'. Did you mean 'epsilon_plus'"),
        (guided_grad_cam, {"interpolation": "cubic"}, "Unknown interpolation 'cubic'"),
    ],
)
def test_bad_options(method, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        method(helpers.small(), helpers.images(), **options)


def test_pixels_outside_of_the_box():
    images = helpers.images().at[0, 0, 0, 0].set(-4)
    with pytest.raises(ValueError, match=re.escape("takes pixels for values in [-3, 3], and these are in [-4, ")):
        lrp(helpers.small(), images, composite="epsilon_gamma_box")
    own = Composite(Gamma(), first=ZBox(jnp.full(3, -4.0), jnp.full(3, 4.0)))
    assert np.isfinite(lrp(helpers.small(), images, composite=own)).all()


def test_guided_grad_cam_needs_a_spatial_layer(as_user):
    with pytest.raises(ValueError, match=r"Layer 'hidden' returns \(3, 8\), which is not spatial"):
        guided_grad_cam(helpers.small("hidden"), helpers.images())
    with pytest.raises(TypeError, match="guided_grad_cam needs activations"):
        guided_grad_cam(lambda x: x, helpers.images())


# ------------------------------------------------------------------------------- any space, any output, any placement

METHODS = [guided_backprop, deconvnet, guided_grad_cam, deep_lift, lrp, partial(lrp, composite=Composite(Gamma()))]
IDS = ["guided_backprop", "deconvnet", "guided_grad_cam", "deep_lift", "lrp", "lrp gamma"]
of_each_method = pytest.mark.parametrize("method", METHODS, ids=IDS)


class Spatial(nn.Module):
    """A convolution, and a matrix product of every cell, on any number of axes; or on tokens."""

    rank: int
    flat: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3,) * self.rank, name="conv")(x))
        x = nn.pool(x, 0.0, jax.lax.add, (2,) * self.rank, (2,) * self.rank, "VALID") / 2.0**self.rank
        x = x.reshape(x.shape[0], -1, 4) if self.flat else x
        x = nn.relu(nn.Dense(5, name="cells")(x))
        return nn.Dense(3, name="head")(x.mean(range(1, x.ndim - 1)))


def spatial(*space, layer="cells", flat=False, **options):
    images = jax.random.normal(jax.random.key(1), (2, *space, 3))
    model = Spatial(len(space), flat)
    return jaxcam.tap(model, model.init(jax.random.key(0), images), layer, **options), images


@of_each_method
def test_a_signal_is_an_image_of_one_row(method):
    """And a volume of one layer: the kernels in the middle are all that such an image meets."""
    model, signals = spatial(12)
    params = model.variables["params"]

    def lifted(axes):
        kernel = jnp.zeros((*(3,) * axes, *params["conv"]["kernel"].shape))
        kernel = kernel.at[(1,) * axes].set(params["conv"]["kernel"])
        return {"params": {**params, "conv": {**params["conv"], "kernel": kernel}}}

    expected = method(model, signals, 1)
    assert expected.shape == signals.shape and float(jnp.abs(expected).max()) > 0
    for axes in (1, 2):
        space = (2,) * axes  # two equal rows, as the pooling of two takes their mean
        images = jnp.broadcast_to(signals.reshape(2, *(1,) * axes, 12, 3), (2, *space, 12, 3))
        module = Spatial(axes + 1)
        found = method(jaxcam.tap(module, lifted(axes), "cells"), images, 1)
        assert found.shape == images.shape
        close(found[(slice(None), *(0,) * axes)] * 2**axes, expected, 1e-5)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_guided_grad_cam_of_tokens(interpolation):
    """What a tap's `reshape` makes of them counts, not how they come."""
    maps, images = spatial(8, 12)
    tokens, _ = spatial(8, 12, flat=True, reshape=jaxcam.tokens((4, 6), drop=0))
    options = {"interpolation": interpolation}
    close(guided_grad_cam(tokens, images, 1, **options), guided_grad_cam(maps, images, 1, **options), 1e-5)
    with pytest.raises(ValueError, match="not spatial"):
        guided_grad_cam(spatial(8, 12, flat=True)[0], images, 1)


def test_lrp_favours_positive_contributions_in_the_cells_of_maps_alone():
    """Tokens of an image are dense layers to it, as those of a signal are cells."""
    maps, images = spatial(8, 12)
    tokens, _ = spatial(8, 12, flat=True)
    assert not np.allclose(lrp(maps, images, 1), lrp(tokens, images, 1), atol=1e-4)
    close(lrp(tokens, images, 1, composite="epsilon"), lrp(maps, images, 1, composite="epsilon"), 1e-5)


def test_guided_grad_cam_says_where_the_layer_plays_no_part():
    class Beside(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Conv(2, (1, 1), name="unused")(x)
            return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))

    images = helpers.images(2, 6, 8)
    model = jaxcam.tap(Beside(), Beside().init(jax.random.key(0), images), "unused")
    with pytest.warns(UserWarning, match="All gradients at 'unused' are zero"):
        assert not guided_grad_cam(model, images, 1).any()


@of_each_method
def test_several_targets(method):
    model, images, targets = helpers.small(), helpers.images(2), jnp.array([[1, 3], [0, 1]])
    found = method(model, images, targets)
    for i in range(2):
        close(found[:, i], method(model, images, targets[:, i]), 1e-5)


class Several(nn.Module):
    """Of what it returns, the score picks the logits; the rest would have no rule in `lrp`, or no derivative."""

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3), name="conv")(x)).mean((1, 2)))
        return {"logits": logits, "shares": (nn.softmax(logits), jnp.sort(x, axis=1)), "classes": logits.argmax(-1)}


@of_each_method
def test_outputs_that_only_a_score_can_read(method):
    images = helpers.images(2, 6, 8)
    variables = Several().init(jax.random.key(0), images)
    model, logits = (jaxcam.tap(Several(), variables, "conv", output=output) for output in (None, "logits"))
    found = method(model, images, 1, score=lambda output, targets: jaxcam.score.logit(output["logits"], targets))
    close(found, method(logits, images, 1), 1e-5)


@of_each_method
def test_shards_and_an_unknown_number_of_images(method):
    """Every device does its own images' part: an eighth of the work, and nothing to wait for."""
    model, images = helpers.small(), helpers.images(8)

    def explained(model, images):
        return method(model, images)

    single = jax.jit(explained).lower(model, images).compile()
    expected, work = single(model, images), single.cost_analysis()["flops"]
    mesh, split = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,)), PartitionSpec("devices")
    everywhere = jax.device_put(model, jax.NamedSharding(mesh, PartitionSpec()))
    spread = jax.device_put(images, jax.NamedSharding(mesh, split))
    by_hand = jax.shard_map(explained, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split)
    for function in (explained, by_hand):
        sharded = jax.jit(function).lower(everywhere, spread).compile()
        found = sharded(everywhere, spread)
        close(found, expected, 1e-5)
        assert found.sharding.spec[0] == "devices"
        assert sharded.cost_analysis()["flops"] <= 0.14 * work
        assert not re.search(r" (all-|collective-|reduce-scatter)", sharded.as_text())

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)
    unknown = jax.ShapeDtypeStruct(export.symbolic_shape("b, 12, 16, 3"), jnp.float32)
    exported = export.export(jax.jit(explained))(shapes, unknown)
    close(exported.call(model, images[:3]), expected[:3], 1e-5)


@of_each_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_strict_types(method, dtype):
    model, images = spatial(8, 12)
    expected = method(model, images, 1)
    model, images = jax.tree.map(lambda leaf: leaf.astype(dtype), (model, images))
    with jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"):
        found = method(model, images, jax.device_put(np.ones(2, np.int32)))
    assert found.dtype == jnp.float32
    close(found, expected, 1e-5 if dtype == jnp.float32 else 0.2)


def test_deconvnet_that_reads_no_value_is_sharded_as_its_images():
    """Without pooling its result depends on no image."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    images = jax.device_put(helpers.images(8, 6, 8), jax.NamedSharding(mesh, PartitionSpec("devices")))
    found = jax.jit(lambda images: deconvnet(spelled(jax.nn.relu), images, 1))(images)
    assert found.sharding.spec[0] == "devices"


# --------------------------------------------------------------------------------------------------------- the rewrite


def test_the_rewritten_program_is_the_model():
    model, images = residual()
    program = programs.trace(model, images)
    np.testing.assert_allclose(program.output(program.run(images)), model(images), rtol=1e-6, atol=1e-6)
    inside = {equation.primitive.name for equation in program.equations}
    assert inside.isdisjoint({"jit", "custom_jvp_call"}) and {"conv_general_dilated", "reduce_window_max"} <= inside


def test_the_ordinary_rule_gives_the_gradient():
    model, images = residual()
    program = programs.trace(model, images)
    values = program.run(images)
    weights = jax.random.normal(jax.random.key(0), (2, 5))
    result = programs.backward(program, [weights], partial(programs.gradient, program, values))
    close(result, jax.grad(lambda x: jnp.vdot(model(x), weights))(images), 1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_unrolled(reverse):
    """Carry, constants, stacked inputs and outputs, in either direction."""
    stack, images = jax.random.normal(jax.random.key(0), (4, 3)), helpers.images(2, 4, 5)

    def model(x):
        def step(carry, each):
            scale, stacked = each
            carry = jnp.tanh(carry * scale + x)
            return carry, (carry + stacked, 2 * carry)

        last, (first, second) = jax.lax.scan(step, x, (stack, jnp.stack([x] * 4)), reverse=reverse)
        return jnp.stack([last, first[1], second[2]], -1).sum((1, 2, 3))

    program = programs.trace(model, images)
    assert "scan" not in {equation.primitive.name for equation in program.equations}
    np.testing.assert_allclose(program.output(program.run(images)), model(images), rtol=1e-5)
    close(total(explain(deep_lift, model, images, 2)), (model(images) - model(0 * images))[:, 2])


@pytest.mark.parametrize("method", [guided_backprop, guided_grad_cam, deep_lift, lrp], ids=lambda each: each.__name__)
def test_weights_are_arguments(method):
    """The compiled program holds no weights: it serves another model of the same kind."""
    images, first, second = helpers.images(), helpers.small(seed=0), helpers.small(seed=1)
    compiled = jax.jit(lambda model, images: method(model, images, 1)).lower(first, images).compile()
    close(compiled(second, images), method(second, images, 1), 1e-5)
    assert not np.allclose(compiled(first, images), compiled(second, images))


class Normalised(nn.Module):
    norm: type
    fast: bool
    activation: Callable

    @nn.compact
    def __call__(self, x):
        norm = self.norm(use_fast_variance=self.fast, **({"num_groups": 2} if self.norm is nn.GroupNorm else {}))
        return nn.Dense(3)(self.activation(norm(nn.Conv(4, (3, 3))(x))).mean((1, 2)))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.GroupNorm])
def test_the_clamp_of_a_variance_is_no_relu(norm):
    """Flax computes it as `max(0, mean(x^2) - mean(x)^2)`, or in two passes without the maximum."""
    images = helpers.images(2, 8, 8)
    variables = Normalised(norm, True, nn.relu).init(jax.random.key(0), images)

    def explain(fast, activation):
        module = Normalised(norm, fast, activation)
        return guided_backprop(lambda images: module.apply(variables, images), images, 1)

    close(explain(True, nn.relu), explain(False, nn.relu))
    with pytest.raises(ValueError, match="There is no ReLU"):
        explain(True, nn.gelu)
