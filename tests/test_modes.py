"""Every row of the registries in the modes that JAX can be in, and with the rewriting switched off."""

import gc
import inspect
from dataclasses import replace
from functools import cache, partial

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer import vit

import jaxcam
from jaxcam.metrics import METRICS

ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
IMAGES, TARGETS = helpers.images(2, 8, 12), jnp.array([2, 0], jnp.int32)
OPTIONS = {"occlusion": {"window": 4, "chunk_size": 4}}


class Plain(nn.Module):
    """What the modes allow: Flax's own average pooling promotes types."""

    pooled: bool

    @nn.compact
    def __call__(self, x):
        x = helpers.ConvRelu(6, 2, jnp.float32, name="late")(nn.relu(nn.Conv(5, (3, 3), name="early")(x)))
        if self.pooled:
            return nn.Dense(4, name="head")(x.mean((1, 2)))
        return nn.Dense(4, name="head")(nn.tanh(nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1))))


@cache
def tapped(pooled):
    module = Plain(pooled)
    return jaxcam.tap(module, module.init(jax.random.key(0), jnp.zeros((1, 8, 12, 3))), "late")


def call(method, model, images, targets=TARGETS):
    return method.function(model, images, targets, **{**method.options, **OPTIONS.get(method.name, {})})


# --- What is called: a name, `function(model, images, targets)`, and its model ----------------------------------------

transformer = cache(vit)
FEW = {"num_samples": 2, "num_steps": 4, "fractions": (0.2, 0.5), "chunk_size": 8}
OTHERS = {  # the rows that the table of methods leaves out
    "attention_rollout": (jaxcam.attention_rollout, transformer),
    "attention_relevance": (jaxcam.attention_relevance, transformer),
    "le_grad": (jaxcam.le_grad, transformer),
    "deep_feature_factorization": (
        partial(jaxcam.deep_feature_factorization, num_components=2),
        partial(tapped, False),
    ),
}


@jax.jit
def turned(variables):
    return jax.tree.map(lambda x: x[..., ::-1], variables)


@jax.jit
def made_of(images):
    """Maps, masks, and maps of eleven rows or more, which SSIM needs, in pairs."""
    maps = jaxcam.heatmap(images)
    tall = jnp.concatenate([maps, maps[:, ::-1]], 1)
    return maps, images[..., 1] > jnp.float32(0.5), (tall, tall[..., ::-1]), jnp.broadcast_to(maps[:1], maps.shape)


def measured(row, model, images, targets):
    """A metric of maps that are made of the images, so that they lie where these do."""
    options = {name: value for name, value in FEW.items() if name in inspect.signature(row.function).parameters}
    maps, masks, pair, alike = made_of(images)
    match row.needs:
        case "map":
            arguments = (maps,)
        case "maps":
            arguments = pair
        case "masks":
            arguments = maps, masks
        case "model":
            arguments = model, images, maps, None if row.on_host else targets
        case "batch":  # of maps that are alike: what has no peer is NaN, which `jax_debug_nans` rightly finds
            arguments = model, images, alike
        case "explain":
            arguments = (lambda x: jaxcam.grad_cam(model, x, targets)), images
        case "method":
            arguments = jaxcam.grad_cam, model, images, targets
        case "twin":
            other = replace(model, variables=turned(model.variables))
            arguments = jaxcam.grad_cam, model, other, images, targets
    return row.function(*arguments, **options)


CALLS = {each.name: (partial(call, each), partial(tapped, each.pooled)) for each in helpers.METHODS} | OTHERS
MEASURED = {f"metrics.{name}": (partial(measured, row), partial(tapped, True)) for name, row in METRICS.items()}
CALLS |= MEASURED


def every(names):
    return pytest.mark.parametrize(("function", "model"), [CALLS[name] for name in names], ids=names)


@cache
def images_for(model):
    return helpers.images(2) if model is transformer else IMAGES


OTHER = jax.devices()[3]


@cache
def elsewhere(function, model):
    """The result of arrays that lie on another device than the default one."""
    return function(*jax.device_put((model(), images_for(model), TARGETS), OTHER))


def as_it_is(function, model):
    return jax.tree.map(np.asarray, elsewhere(function, model))


# --- Modes ------------------------------------------------------------------------------------------------------------


@every(CALLS)
def test_modes_and_another_device(function, model):
    """On another device, where the result stays; and with no implicit promotion, transfer or NaN.

    Not all at once: a key that is made of a seed is on no device in particular, so JAX moves it to the images.
    """
    expected = elsewhere(function, model)
    for each in jax.tree.leaves(expected):
        assert each.devices() == {OTHER} and each.committed
    given = model(), images_for(model), TARGETS
    with jax.transfer_guard("disallow"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        found = function(*given)
    jax.tree.map(np.testing.assert_array_equal, found, as_it_is(function, model))


@every([name for name in CALLS if name not in MEASURED] + ["metrics.deletion", "metrics.max_sensitivity"])
def test_doubles_change_no_type(function, model):
    expected = as_it_is(function, model)
    with jax.enable_x64(True):
        found = jax.eval_shape(function, model(), images_for(model), TARGETS)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), found, expected)


# One of each engine: what leaks or overflows does so there, and JAX traces everything anew to look for leaks.
ENGINES = ["grad_cam", "score_cam", "saliency", "integrated_gradients", "lrp", "kernel_shap", "metrics.max_sensitivity"]
TOKENS = ["attention_rollout", "attention_relevance", "le_grad"]


@every(["grad_cam", "integrated_gradients", "lrp", "rise"])
def test_nothing_leaks(function, model):
    gc.freeze()  # JAX looks through all there is after each function: not through what is there already
    with jax.checking_leaks():
        jax.eval_shape(function, model(), images_for(model), TARGETS)


@every([*ENGINES, *TOKENS, "full_grad", "deep_lift", "guided_backprop", "metrics.deletion"])
def test_float16(function, model):
    """A float16 model explains what its float32 twin does, in float32.

    A number of eleven bits is rounded by 0.0005 of itself; sums over a layer and the division by a map's range make it
    a hundredth of the largest value.
    """
    expected = as_it_is(function, model)
    half, images = jax.tree.map(lambda x: x.astype(jnp.float16), (model(), images_for(model)))
    found = function(half, images, TARGETS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@every(TOKENS[1:])
def test_bfloat16_attention_is_found(function, model):
    """Its softmax sums in float32 and is rounded to eight bits, so maps are alike."""
    half, images = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (model(), images_for(model)))
    found = function(half, images, TARGETS)
    assert np.corrcoef(np.ravel(found), np.ravel(as_it_is(function, model)))[0, 1] > 0.98


@pytest.mark.parametrize("method", [jaxcam.integrated_gradients, jaxcam.rise], ids=lambda method: method.__name__)
def test_a_bare_function_stays_on_its_device(method):
    """Its loop runs where the arrays lie that the function closes over, not where the loop's counter does.

    `jax.transfer_guard` is not for these: they run as they are, an operation at a time, and JAX moves the 2 of `2 * x`
    to the device each time.
    """
    model, images = jax.device_put((tapped(False), IMAGES), OTHER)
    found = method(lambda images: model(images), images, 1, chunk_size=4)
    assert found.devices() == {OTHER}


# --- A NaN that is none, and one that is ------------------------------------------------------------------------------


@every(["cam", "metrics.spearman", "metrics.iou_top", "metrics.pointing_game", "metrics.top_k_intersection"])
def test_no_operation_makes_a_nan(function, model):
    """So an operation at a time finds none either; but `jax.scipy.special.entr` takes one away that it made itself."""
    with jax.disable_jit(), jax.debug_nans(True):
        jax.block_until_ready(function(model(), IMAGES, TARGETS))


def logarithm(images):
    return jnp.log(images)


@pytest.mark.parametrize("method", [jaxcam.grad_cam, jaxcam.saliency, jaxcam.deep_lift], ids=lambda each: each.__name__)
def test_a_models_own_nan_is_named(method):
    """When JAX looks for it, it runs the program as its author wrote it."""
    model = jaxcam.tap((lambda scale, x: scale * logarithm(x) ** 2, lambda scale, x: x.mean((1, 2))), jnp.ones(()))
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"nan.* encountered in log"):
        method(model, IMAGES, TARGETS)


@pytest.mark.parametrize(
    "name", ["grad_cam", "score_cam", "smooth_grad", "xrai", "lrp", "rise", "kernel_shap", "random_cam"]
)
def test_doubles_change_no_number(name):
    [method] = [each for each in helpers.METHODS if each.name == name]
    model = tapped(method.pooled)
    expected = np.asarray(call(method, model, IMAGES))
    with jax.enable_x64(True):
        found = call(method, model, IMAGES)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


REWRITTEN = [row for row in ROWS if row.values[0].name in (
    *("grad_cam", "score_cam", "ablation_cam", "full_grad", "saliency", "smooth_grad", "integrated_gradients"),
    *("guided_integrated_gradients", "guided_backprop", "lrp", "occlusion", "feature_ablation", "rise"),
)]  # fmt: skip


@pytest.mark.parametrize("method", REWRITTEN)
def test_without_rewriting(method):
    """The switch that leaves a user's program as it is changes no result."""
    model = tapped(method.pooled)
    expected = np.asarray(call(method, model, IMAGES))
    jaxcam.config.rewrite = False
    try:
        found = call(method, model, IMAGES)
    finally:
        jaxcam.config.rewrite = True
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
