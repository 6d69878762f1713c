"""What every method promises, tested for each row of the registry.

Most tests ask for the same compiled program, `method(model, images[3], targets[3])`, with other contents: that keeps
the table cheap, and shows on the way that contents do not compile again. A second program holds all variants of a call.
"""

import gc
import re
from dataclasses import replace

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jaxcam
from jaxcam.cli.listings import every_method as every_row

ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
every_method = pytest.mark.parametrize("method", ROWS)


def those(condition):
    return pytest.mark.parametrize("method", [row for row in ROWS if condition(row.values[0])])


ENGINES = ("grad_cam", "score_cam", "saliency", "integrated_gradients")  # one of each kind of engine
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


def explain(method, model, images, targets=TARGETS, **options):
    return method.function(model, images, targets, **method.options, **options)


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, atol=tolerance * float(jnp.abs(expected).max()))


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


def contrast(logits, targets):
    return logits[:, 1] - logits[:, 3]


@every_method
def test_variants_of_the_call(method, model, results):
    """Under `jit` and `vmap`, with one image at a time, predicted, several and single targets, and another score."""

    @jax.jit
    def variants(model, images, targets):
        several = jnp.stack([targets, (targets + 1) % 4], 1)
        return {
            "mapped": jax.vmap(lambda image, each: explain(method, model, image[None], each[None])[0])(images, targets),
            "predicted": explain(method, model, images, None),
            "several": explain(method, model, images, several),
            "score": explain(method, model, images, targets, score=contrast),
        }

    found, expected = variants(model, IMAGES, TARGETS), results[method.name]
    close(found["mapped"], expected)
    close(found["predicted"], explain(method, model, IMAGES, jnp.argmax(model(IMAGES), -1).astype(jnp.int32)))
    close(found["several"][:, 0], expected)
    other = explain(method, model, IMAGES, (TARGETS + 1) % 4)
    close(found["several"][:, 1], other)
    one = explain(method, model, IMAGES, 2)
    close(one[0], expected[0])
    np.testing.assert_array_equal(one, explain(method, model, IMAGES, np.array([2, 2, 2])))
    if method.sees_class:
        for different in (other, found["score"]):
            assert not np.allclose(different, expected, atol=1e-3 * float(jnp.abs(expected).max()))


@those(lambda method: method.name in ENGINES)
def test_without_any_jit(method, model, results):
    with jax.disable_jit():
        close(explain(method, model, IMAGES), results[method.name])


@every_method
def test_no_image_sees_its_neighbours(method, model, results):
    order, others = jnp.array([2, 0, 1]), IMAGES.at[1:].multiply(-3)
    close(explain(method, model, IMAGES[order], TARGETS[order]), results[method.name][order])
    close(explain(method, model, others)[0], results[method.name][0])


@those(lambda method: method.differentiable)
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


@pytest.mark.filterwarnings("ignore:All gradients")
@every_method
def test_images_and_models_without_contrast(method, model):
    """Constant images give no NaN, and a model that ignores the image gives zeros."""
    for value in (0.0, 1.0):
        assert bool(jnp.isfinite(explain(method, model, jnp.full((3, 12, 16, 3), value))).all())
    dead = replace(model, variables=jax.tree.map(jnp.zeros_like, model.variables))
    np.testing.assert_array_equal(explain(method, dead, IMAGES), 0)


@pytest.mark.filterwarnings("ignore:All gradients")
@every_method
@given(st.sampled_from([1e-38, 1e-20, 1e-3, 30.0, 1e6, 1e15]), st.sampled_from(["scaled", "constant", "one pixel"]))
@settings(max_examples=6, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
def test_tiny_and_huge_values(method, scale, kind):
    """Finite maps, and heatmaps in [0, 1], of images that are as dark, as bright or as flat as they can be."""
    images = {"scaled": IMAGES / jnp.abs(IMAGES).max(), "constant": jnp.ones_like(IMAGES)}.get(kind)
    images = jnp.zeros_like(IMAGES).at[:, 3, 4, 1].set(1) if images is None else images
    result = np.asarray(explain(method, method.model(), scale * images))
    assert np.isfinite(result).all()
    if method.is_cam:
        assert result.min() >= 0 and result.max() <= 1


@every_method
def test_calls_leave_nothing_behind_and_compile_nothing_new(method, model, results, caplog):
    """What every call leaves is seen after five as well as after a hundred."""
    results[method.name]  # what a first call keeps is no leak
    images, targets = 0.5 * IMAGES[::-1], (TARGETS + 1) % 4
    explain(method, model, images, targets).block_until_ready()
    gc.freeze()  # what is there already is not looked through again
    before = len(jax.live_arrays())
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for _ in range(50 if method.name in ENGINES else 3):
            explain(method, model, images, targets).block_until_ready()
    gc.collect()
    assert len(jax.live_arrays()) <= before
    assert "Finished XLA compilation" not in caplog.text


@every_method
def test_nothing_leaves_the_device(method, model):
    """Inside `jit`, a method is one program that never asks the host."""
    program = jax.make_jaxpr(lambda model, images: explain(method, model, images))(model, IMAGES)
    assert not re.search("callback|infeed|outfeed|device_put.*memory", str(program))


@those(lambda method: not method.needs_tap)
def test_plain_callable(method, model, results):
    """Methods that need no activations take any function; one that changes is never served from a stale copy."""
    factor, forward = [1.0], jax.jit(lambda model, images: model(images))

    def function(images):
        return factor[0] * forward(model, images)

    close(explain(method, function, IMAGES), results[method.name], 1e-4)
    factor[0] = 0.0
    np.testing.assert_array_equal(explain(method, function, IMAGES), 0)


@those(lambda method: method.is_cam and method.name not in ("cam", "full_grad", "aug_smooth", "refine_cam"))
def test_cam_methods_fuse_layers_and_give_raw_maps(method):
    """The mean of what the layers give, normalised again."""

    @jax.jit
    def maps(both, late):
        coarse = method.function(both, IMAGES, TARGETS, raw=True, **method.options)
        return coarse, explain(method, both, IMAGES), method.function(late, IMAGES, TARGETS, raw=True, **method.options)

    raw, both, alone = maps(helpers.small(("late", "early")), helpers.small("late"))
    assert [each.shape for each in raw] == [(3, 3, 4), (3, 12, 16)]
    np.testing.assert_allclose(alone, raw[0], atol=1e-5 * float(jnp.abs(alone).max()))
    mean = _single(raw[0]) + _single(raw[1])
    expected = (mean - mean.min((1, 2), keepdims=True)) / np.ptp(mean, (1, 2), keepdims=True)
    np.testing.assert_allclose(both, expected, atol=1e-4)


def _single(raw):
    """The published steps after the weighted sum, in NumPy: ReLU, scale, resize (by an independent bilinear)."""
    maps = np.maximum(np.asarray(raw), 0)
    maps = (maps - maps.min((1, 2), keepdims=True)) / np.ptp(maps, (1, 2), keepdims=True)
    return np.stack([PIL.Image.fromarray(each).resize((16, 12), PIL.Image.Resampling.BILINEAR) for each in maps])


# --- What gives no maps -----------------------------------------------------------------------------------------------

OTHERS = helpers.images(6, seed=4)
ANSWERS = {  # one call of each row of the registry that gives something else than a map of each image
    "deep_feature_factorization": lambda model, images: jaxcam.deep_feature_factorization(
        model, images, 1, num_components=2, num_iterations=5
    ),
    "tcav": lambda model, images: jaxcam.tcav(
        model, images, 1, concept=OTHERS, random_sets=helpers.images(12, seed=3).reshape(3, 4, 12, 16, 3)
    ),
    "craft": lambda model, images: jaxcam.craft(
        model, images, 1, num_components=2, num_iterations=5, num_samples=2, window=0.5
    ),
    "tracin": lambda model, images: jaxcam.influence.tracin(
        model, images, 1, training=(OTHERS, jnp.arange(6) % 4), num_images=2
    ),
    "similar": lambda model, images: jaxcam.influence.similar(model, images, training=OTHERS, num_images=2),
    "heatmap_to_mask": lambda model, images: jaxcam.regions.heatmap_to_mask(jaxcam.grad_cam(model, images)),
    "mask_to_box": lambda model, images: jaxcam.regions.mask_to_box(jaxcam.grad_cam(model, images) > 0.5),
}


@pytest.mark.parametrize("name", [name for name, row in every_row().items() if not row.is_map])
def test_answers_that_are_no_maps(name):
    """Numbers of one meaning, under `jit` as without, the same again, and none of what are no images."""
    call, model = ANSWERS[name], helpers.small("early")
    found = call(model, IMAGES)
    for compiled in (call(model, IMAGES), jax.jit(call)(model, IMAGES)):
        for each, expected in zip(jax.tree.leaves(compiled), jax.tree.leaves(found), strict=True):
            assert getattr(each, "dtype", int) in (jnp.float32, jnp.int32, bool, int) and np.isfinite(each).all()
            np.testing.assert_allclose(each, expected, atol=1e-4 * float(np.abs(expected).max()))
    assert any(np.any(each) for each in jax.tree.leaves(found))
    with pytest.raises(ValueError, match=r"shape \(12, 16\)"):
        call(model, IMAGES[0, ..., 0])
