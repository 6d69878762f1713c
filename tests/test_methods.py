"""What every method promises, tested for each row of the one table of methods.

Most tests ask for the same compiled program, `method(model, images[3], targets[3])`, with other contents: that keeps
the table cheap, and shows on the way that contents do not compile again.
"""

import gc
import re

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import jaxcam
from jaxcam.attribution import FOR_TRANSFORMERS, METHODS

every_method = pytest.mark.parametrize("method", helpers.METHODS, ids=lambda method: method.name)
CAM = [each for each in helpers.METHODS if each.is_cam and each.function is not jaxcam.full_grad]
other_methods = pytest.mark.parametrize(
    "method", [each for each in helpers.METHODS if not each.needs_tap], ids=lambda m: m.name
)
ENGINES = [
    each for each in helpers.METHODS if each.name in ("grad_cam", "score_cam", "saliency", "integrated_gradients")
]

IMAGES, TARGETS = helpers.images(), jnp.array([2, 0, 1], jnp.int32)


@pytest.fixture
def model(method):
    return method.model()


class Results(dict):
    def __missing__(self, name):
        [method] = [each for each in helpers.METHODS if each.name == name]
        self[name] = explain(method, method.model(), IMAGES)
        return self[name]


@pytest.fixture(scope="module")
def results():
    """Each method's result on the shared images and targets, computed once, when it is first asked for."""
    return Results()


def explain(method, model, images, targets=TARGETS):
    return method.function(model, images, targets, **method.options)


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, atol=tolerance * float(jnp.abs(expected).max()))


def test_the_table_is_complete():
    assert {method.name for method in helpers.METHODS} == set(METHODS) - set(FOR_TRANSFORMERS)


@every_method
def test_shape_dtype_range(method, results):
    """CAM methods give heatmaps in [0, 1]; the others signed attributions that `heatmap` turns into such."""
    result = results[method.name]
    assert result.dtype == jnp.float32
    assert result.shape[:3] == (3, 12, 16) and result.ndim in ((3,) if method.is_cam else (3, 4))
    assert float(jnp.abs(result).reshape(3, -1).max(1).min()) > 0
    heatmaps = result if method.is_cam else jaxcam.heatmap(result)
    np.testing.assert_allclose(heatmaps.min((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(heatmaps.max((1, 2)), 1, rtol=1e-6)


@every_method
def test_jit_equals_eager(method, model, results):
    jitted = jax.jit(lambda model, images, targets: explain(method, model, images, targets))
    close(jitted(model, IMAGES, TARGETS), results[method.name])


@pytest.mark.parametrize("method", ENGINES, ids=lambda method: method.name)
def test_without_any_jit(method, model, results):
    with jax.disable_jit():
        close(explain(method, model, IMAGES), results[method.name])


@every_method
def test_one_image_equals_its_row_in_the_batch(method, model, results):
    for index in range(3):
        alone = explain(method, model, IMAGES[index : index + 1], TARGETS[index : index + 1])
        close(alone[0], results[method.name][index])


@every_method
def test_vmap(method, model, results):
    mapped = jax.vmap(lambda image, target: explain(method, model, image[None], target[None])[0])(IMAGES, TARGETS)
    close(mapped, results[method.name])


@every_method
def test_permuting_the_batch_permutes_the_maps(method, model, results):
    order = jnp.array([2, 0, 1])
    close(explain(method, model, IMAGES[order], TARGETS[order]), results[method.name][order])


@every_method
def test_targets(method, model, results):
    """`None` is the predicted class, one integer is that class for all, and another class is another map."""
    predicted = jnp.argmax(model(IMAGES), -1).astype(jnp.int32)
    close(explain(method, model, IMAGES, None), explain(method, model, IMAGES, predicted))
    one = explain(method, model, IMAGES, 2)
    close(one[0], results[method.name][0])
    np.testing.assert_array_equal(one, explain(method, model, IMAGES, np.array([2, 2, 2])))
    if method.sees_class:
        assert not np.allclose(one[1], results[method.name][1], atol=1e-3 * float(jnp.abs(one[1]).max()))


def contrast(logits, targets):
    return logits[:, 1] - logits[:, 3]


@every_method
def test_score(method, model, results):
    """Another score than the target's logit is explained."""
    result = method.function(model, IMAGES, TARGETS, score=contrast, **method.options)
    different = not np.allclose(result, results[method.name], atol=1e-3 * float(jnp.abs(result).max()))
    assert different or not method.sees_class


@pytest.mark.parametrize("method", [each for each in helpers.METHODS if each.differentiable], ids=lambda m: m.name)
def test_differentiable(method, model):
    """The gradient of a heatmap with respect to the image agrees with finite differences."""
    images = helpers.images(1, seed=4)
    direction = jax.random.normal(jax.random.key(2), images.shape)
    direction /= jnp.linalg.norm(direction)
    weights = jax.random.uniform(jax.random.key(3), images.shape[1:3])

    def summary(images):
        result = method.function(model, images, 1, **method.options)
        result = result.sum(-1) if result.ndim == 4 else result
        return jnp.vdot(weights, result[0]) / (1 if method.is_cam else 0.02)  # of a size like a heatmap's

    value_and_gradient = jax.jit(jax.value_and_grad(summary))
    gradient = value_and_gradient(images)[1]
    assert bool(jnp.isfinite(gradient).all()) and float(jnp.abs(gradient).max()) > 0
    step = 1e-2
    ahead, behind = (value_and_gradient(images + sign * step * direction)[0] for sign in (1, -1))
    np.testing.assert_allclose(jnp.vdot(gradient, direction), (ahead - behind) / (2 * step), rtol=0.02, atol=2e-3)


@every_method
def test_bfloat16(method, results):
    """A bfloat16 model explains nearly what its float32 twin does, in float32."""
    half = explain(method, method.model(dtype=jnp.bfloat16), IMAGES.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert np.corrcoef(np.ravel(half), np.ravel(results[method.name]))[0, 1] > 0.95


@every_method
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images_give_no_nan(method, model, value):
    assert bool(jnp.isfinite(explain(method, model, jnp.full((3, 12, 16, 3), value))).all())


@every_method
def test_a_model_that_ignores_the_image_gives_zeros(method, model):
    """All-zero maps stay zero."""
    dead = jaxcam.tap(model.module, jax.tree.map(jnp.zeros_like, model.variables), "late")
    np.testing.assert_array_equal(explain(method, dead, IMAGES), 0)


@every_method
def test_repeated_calls_leave_no_arrays_behind(method, model, results):
    """What every call leaves is seen after five as well as after a hundred."""
    results[method.name]  # what a first call keeps is no leak
    gc.collect()
    before = len(jax.live_arrays())
    for _ in range(100 if method in ENGINES else 5):
        explain(method, model, IMAGES).block_until_ready()
    gc.collect()
    assert len(jax.live_arrays()) <= before


@every_method
def test_new_contents_compile_nothing(method, model, results, caplog):
    results[method.name]  # compiles
    images, targets = 0.5 * IMAGES[::-1], (TARGETS + 1) % 4
    with jax.log_compiles(), caplog.at_level("WARNING"):
        explain(method, model, images, targets)
    assert "Finished XLA compilation" not in caplog.text


@every_method
def test_nothing_leaves_the_device(method, model):
    """Inside `jit`, a method is one program that never asks the host."""
    program = jax.make_jaxpr(lambda model, images: explain(method, model, images))(model, IMAGES)
    assert not re.search("callback|infeed|outfeed|device_put.*memory", str(program))


@pytest.mark.parametrize("method", ENGINES, ids=lambda method: method.name)
def test_sharded_batch(method, model, results):
    """The batch spread over two devices gives what one device gives."""
    mesh = jax.make_mesh((2,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    images = jnp.concatenate([IMAGES, helpers.images(1, seed=9)])
    spread = jax.device_put(images, jax.NamedSharding(mesh, jax.P("n")))
    model = jax.device_put(model, jax.NamedSharding(mesh, jax.P()))
    close(explain(method, model, spread, jnp.append(TARGETS, 0))[:3], results[method.name])


@other_methods
def test_plain_callable(method, model, results):
    """Methods that need no activations take any function; one that changes is never served from a stale copy."""
    factor, forward = [1.0], jax.jit(lambda model, images: model(images))

    def function(images):
        return factor[0] * forward(model, images)

    close(explain(method, function, IMAGES), results[method.name], 1e-4)
    factor[0] = 0.0
    np.testing.assert_array_equal(explain(method, function, IMAGES), 0)


@pytest.mark.parametrize("method", [each for each in CAM if not each.pooled], ids=lambda m: m.name)
def test_cam_methods_fuse_layers_and_give_raw_maps(method):
    raw = method.function(helpers.small(("late", "early")), IMAGES, TARGETS, raw=True, **method.options)
    assert [each.shape for each in raw] == [(3, 3, 4), (3, 12, 16)]
    both = explain(method, helpers.small(("late", "early")), IMAGES)
    alone = method.function(helpers.small("late"), IMAGES, TARGETS, raw=True, **method.options)
    np.testing.assert_allclose(alone, raw[0], atol=1e-5 * float(jnp.abs(alone).max()))
    # The mean of what the layers give, normalised again.
    mean = _single(raw[0]) + _single(raw[1])
    expected = (mean - mean.min((1, 2), keepdims=True)) / np.ptp(mean, (1, 2), keepdims=True)
    np.testing.assert_allclose(both, expected, atol=1e-4)


def _single(raw):
    """The published steps after the weighted sum, in NumPy: ReLU, scale, resize (by an independent bilinear)."""
    maps = np.maximum(np.asarray(raw), 0)
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, (1, 2), keepdims=True)
    return np.stack([PIL.Image.fromarray(each).resize((16, 12), PIL.Image.Resampling.BILINEAR) for each in maps])
