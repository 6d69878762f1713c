"""Metrics that alter images, against torch-cam, pytorch-grad-cam, Captum, Quantus, and cases with a known answer."""

import inspect
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam import metrics
from jaxcam.metrics.fidelity import _square
from jaxcam.metrics.road import _impute

GOLDEN = np.load(Path(__file__).parent / "golden" / "metrics.npz")
ALTERING = {
    metrics.deletion: {"num_steps": 8},
    metrics.insertion: {"num_steps": 8, "baseline": None},
    metrics.road: {"fractions": (0.8, 0.5, 0.1), "grain": 0.0},
    metrics.average_drop: {},
    metrics.average_gain: {},
    metrics.average_increase: {},
    metrics.infidelity: {"num_samples": 4},
    metrics.mu_fidelity: {"num_samples": 8, "cells": 4},
    metrics.occlusion_correlation: {"window": 4},
    metrics.selectivity: {"window": 4},
    metrics.region_perturbation: {"window": 4, "num_steps": 3},
    metrics.irof: {},
    metrics.monotonicity: {"num_steps": 2},
    metrics.monotonicity_correlation: {"num_steps": 4, "num_samples": 2},
    metrics.sensitivity_n: {"num_samples": 4, "cells": 4, "fractions": (0.3, 0.6)},
    metrics.completeness: {},
    metrics.non_sensitivity: {"window": 4, "negligible": 0.1},
}
ORDERING = (
    metrics.deletion,
    metrics.insertion,
    metrics.road,
    metrics.selectivity,
    metrics.region_perturbation,
    metrics.irof,
)  # of a map they see the order of its pixels alone
every_metric = pytest.mark.parametrize("metric", ALTERING, ids=lambda metric: metric.__name__)


class GoldenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3), padding="VALID", name="conv")(x))
        return nn.Dense(4, use_bias=False, name="dense")(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def model():
    params = {"conv": {"kernel": GOLDEN["conv"], "bias": GOLDEN["bias"]}, "dense": {"kernel": GOLDEN["dense"]}}
    return jaxcam.tap(GoldenModel(), {"params": jax.tree.map(jnp.asarray, params)}, "conv")


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(GOLDEN["images"])


@pytest.fixture(scope="module")
def heatmaps():
    return jnp.asarray(GOLDEN["heatmaps"])


@pytest.fixture(scope="module")
def targets():
    return jnp.argmax(GOLDEN["logits"], -1)


@pytest.fixture(scope="module")
def results(model, images, heatmaps, targets):
    """Each metric's value for the predicted classes, computed once."""
    with jax.default_matmul_precision("highest"):  # as in every test: else all would be compiled twice
        return {metric: metric(model, images, heatmaps, targets, **options) for metric, options in ALTERING.items()}


def test_the_model_is_the_golden_one(model, images):
    np.testing.assert_allclose(model(images), GOLDEN["logits"], atol=1e-5)


# What all of them promise


@every_metric
def test_one_number_per_image(metric, results):
    assert results[metric].shape == (3,) and results[metric].dtype == jnp.float32
    assert bool(jnp.isfinite(results[metric]).all())


@every_metric
def test_each_image_alone_in_any_chunk_under_jit(metric, model, images, heatmaps, results):
    """One compiled call on one image: no image, no chunk and no random number depends on its neighbours.

    Without targets it is the predicted class.
    """
    options = ALTERING[metric] | ({"chunk_size": 5} if "chunk_size" in inspect.signature(metric).parameters else {})
    alone = jax.jit(lambda model, a, b: metric(model, a, b, **options))(model, images[1:2], heatmaps[1:2])
    np.testing.assert_allclose(alone, results[metric][1:2], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("metric", [each for each in ALTERING if each is not metrics.monotonicity])  # one for both
def test_targets(metric, model, images, heatmaps, targets, results):
    others = metric(model, images, heatmaps, (targets + 1) % 4, **ALTERING[metric])
    assert not np.allclose(others, results[metric], rtol=0.001)


@every_metric
def test_constant_images_and_maps_give_no_nan(metric, model, targets):
    images, heatmaps = jnp.ones((3, 12, 16, 3)), jnp.zeros((3, 12, 16))
    says_so = (
        pytest.warns(UserWarning, match=r"Heatmap 0 \(and 2 more\) is zero") if metric in ORDERING else nullcontext()
    )
    with says_so:
        values = metric(model, images, heatmaps, targets, **ALTERING[metric])
    assert bool(jnp.isfinite(values).all())


def test_plain_callables_and_float16(model, images, heatmaps, results):
    def function(images):
        assert images.dtype == jnp.float16
        return model(images.astype(jnp.float32))

    value = metrics.deletion(function, images.astype(jnp.float16), heatmaps, num_steps=8)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, results[metrics.deletion], atol=2e-3)


# Deletion and insertion


def test_published_toy_number():
    """torch-cam: the image is its own map and the model sums it; two steps."""
    image = jnp.array([[[0.4, 0.3], [0.2, 0.1]]])
    options = {"score": lambda logits, _: logits[:, 0], "num_steps": 2, "baseline": None}

    def total(images):
        return images.sum((1, 2))

    np.testing.assert_allclose(metrics.deletion(total, image[..., None], image, 0, **options), 0.4, rtol=1e-6)
    np.testing.assert_allclose(metrics.insertion(total, image[..., None], image, 0, **options), 0.6, rtol=1e-6)


@pytest.mark.parametrize("metric", [metrics.deletion, metrics.insertion], ids=lambda metric: metric.__name__)
def test_deletion_and_insertion_agree_with_torchcam(metric, model, images, heatmaps, targets):
    for baseline in ("zero", "mean"):
        values = metric(model, images, heatmaps, targets, num_steps=8, baseline=baseline)
        np.testing.assert_allclose(values, GOLDEN[f"torchcam/{metric.__name__}_auc/{baseline}"], atol=1e-5)


def test_deletion_is_the_pixel_flipping_of_quantus(model, images, heatmaps, targets):
    def grey(images):
        return model(jnp.repeat(images, 3, -1))

    curve = metrics.deletion(grey, images[..., :1], heatmaps, targets, num_steps=8, curve=True)
    np.testing.assert_allclose(curve.scores[:, 1:], GOLDEN["quantus/PixelFlipping"], atol=1e-5)
    np.testing.assert_allclose(curve.fractions, np.arange(9) / 8)
    np.testing.assert_allclose(curve.value, np.trapezoid(curve.scores, curve.fractions), rtol=1e-5)


WEIGHTS = np.random.default_rng(5).standard_normal((6, 8)).astype(np.float32)
IMAGE = np.random.default_rng(6).standard_normal((1, 6, 8, 1)).astype(np.float32)


def linear(images):
    """Two classes, whose logits differ by a known weight at each pixel."""
    total = jnp.sum(images[..., 0] * WEIGHTS, (1, 2))
    return jnp.stack([total, -total], -1)


def test_the_perfect_explanation_is_optimal():
    """For a linear model the pixels' true effects are known; no other order deletes faster or inserts faster."""
    perfect = IMAGE[..., 0] * WEIGHTS
    others = [perfect[:, ::-1], -perfect, np.zeros_like(perfect), np.abs(perfect)]  # zeros: in reading order
    others += list(np.random.default_rng(7).standard_normal((8, 1, 6, 8)).astype(np.float32))
    maps = np.concatenate([perfect, *others])
    images = np.repeat(IMAGE, len(maps), 0)
    options = {"score": jaxcam.score.logit, "baseline": None}
    with pytest.warns(UserWarning, match="Heatmap 3 is zero everywhere"):
        deletions = metrics.deletion(linear, images, maps, 0, num_steps=16, **options)
        insertions = metrics.insertion(linear, images, maps, 0, num_steps=16, **options)
    assert deletions[0] < deletions[1:].min() and insertions[0] > insertions[1:].max()
    occlusion = metrics.occlusion_correlation(linear, images, maps, 0, window=2, **options)
    fidelity = metrics.mu_fidelity(linear, images, maps, 0, cells=6, num_samples=32, **options)
    for values in (occlusion, fidelity):  # the map's sums are the very drops
        np.testing.assert_allclose(values[0], 1, atol=1e-5)
        np.testing.assert_allclose(values[2], -1, atol=1e-5)
        np.testing.assert_array_equal(values[3], 0)
        assert values[1:].max() < 0.99


def test_baselines(model, images, heatmaps):
    def last(baseline, key=0):
        """What the model sees when everything is deleted."""
        options = {"score": jaxcam.score.logit, "num_steps": 1, "curve": True}
        return metrics.deletion(model, images, heatmaps, 1, baseline=baseline, key=key, **options).scores[:, 1]

    @jax.jit
    def sees(fill):
        return model(jnp.broadcast_to(fill, images.shape).astype(jnp.float32))[:, 1]

    numpy = np.asarray(images)
    np.testing.assert_allclose(last(None), sees(0.0), atol=1e-5)
    np.testing.assert_array_equal(last("zero"), last(None))
    np.testing.assert_allclose(last(0.5), sees(0.5), atol=1e-5)
    np.testing.assert_allclose(last(numpy[::-1]), sees(numpy[::-1]), atol=1e-5)
    np.testing.assert_allclose(last("mean"), sees(numpy.mean((1, 2), keepdims=True)), atol=1e-5)
    distances = [(np.arange(size)[:, None] - np.arange(size)) / (12 / 20) for size in (12, 16)]
    rows, columns = (np.exp(-(each**2) / 2) / np.exp(-(each**2) / 2).sum(1, keepdims=True) for each in distances)
    np.testing.assert_allclose(last("blur"), sees(np.einsum("Hh,nhwc,Ww->nHWc", rows, numpy, columns)), atol=1e-4)
    noise = last("noise", jax.random.key(1))
    np.testing.assert_array_equal(noise, last("noise", 1))
    assert not np.allclose(noise, last("noise", jax.random.key(2)))


# ROAD


def test_imputation_solves_the_sparse_system():
    """A hole of half the image and scattered pixels, against SciPy's direct solver by pytorch-grad-cam."""
    filled = jax.jit(_impute)(jnp.asarray(GOLDEN["picture"])[None, None], jnp.asarray(GOLDEN["hole"])[None, None])
    filled = filled[0, 0, ..., 0]
    np.testing.assert_allclose(filled, GOLDEN["gradcam/imputed"], atol=1e-4)
    np.testing.assert_allclose(filled[~GOLDEN["hole"]], GOLDEN["picture"][..., 0][~GOLDEN["hole"]], atol=1e-6)


@pytest.mark.parametrize("order", ["morf", "lerf", "combined"])
def test_road_agrees_with_pytorch_grad_cam(order, model, images, heatmaps, targets):
    options = ALTERING[metrics.road]  # there percentiles 20, 50 and 90 say what stays
    curve = metrics.road(model, images, heatmaps, targets, order=order, curve=True, **options)
    np.testing.assert_allclose(curve.value, GOLDEN[f"gradcam/{order}/heatmaps"], atol=1e-4)
    assert curve.scores.shape == (3, 3)
    if order == "morf":
        before = jax.nn.softmax(model(images)).max(-1)
        np.testing.assert_allclose(curve.scores.mean(-1) - before, curve.value, atol=1e-5)


def test_road_keeps_the_fraction_where_pytorch_grad_cam_removes_all_ties(model, images, targets):
    """Six tenths of this map are zero: there LeRF removes them all at once, at every fraction."""
    options = {"order": "lerf"} | ALTERING[metrics.road]
    ours = metrics.road(model, images, GOLDEN["sparse"], targets, **options)
    assert np.abs(ours - GOLDEN["gradcam/lerf/sparse"]).max() > 0.01
    distinct = GOLDEN["sparse"] - 1e-4 * np.arange(192, dtype=np.float32).reshape(12, 16)  # ties in reading order
    distinct = np.where(GOLDEN["sparse"] > 0, GOLDEN["sparse"], distinct)
    np.testing.assert_allclose(metrics.road(model, images, distinct, targets, **options), ours, atol=1e-5)


def test_road_adds_grain_from_the_key(model, images, heatmaps, targets, results):
    def noisy(seed):
        options = ALTERING[metrics.road] | {"grain": 0.5, "key": jax.random.key(seed)}
        return metrics.road(model, images, heatmaps, targets, **options)

    np.testing.assert_array_equal(noisy(1), noisy(1))
    assert not np.allclose(noisy(1), noisy(2), atol=1e-4)
    assert not np.allclose(noisy(1), results[metrics.road], atol=1e-4)


# Average drop, increase and gain


def test_drop_increase_and_gain_agree_with_the_libraries(model, images, heatmaps, targets, results):
    np.testing.assert_allclose(results[metrics.average_drop], GOLDEN["torchcam/avg_drop"], atol=1e-5)
    np.testing.assert_array_equal(results[metrics.average_increase], GOLDEN["torchcam/conf_increase"])  # zeros
    others = (targets + 1) % 4
    drops = metrics.average_drop(model, images, heatmaps, targets, form="absolute")
    probabilities = jax.nn.softmax(GOLDEN["logits"]).max(-1)
    np.testing.assert_allclose(drops, GOLDEN["torchcam/avg_drop"] * probabilities, atol=1e-5)
    drops = metrics.average_drop(model, images, heatmaps, others, form="absolute")
    np.testing.assert_allclose(drops, GOLDEN["gradcam/drop"], atol=1e-5)
    np.testing.assert_array_equal(metrics.average_increase(model, images, heatmaps, others), GOLDEN["gradcam/increase"])
    np.testing.assert_array_equal(GOLDEN["gradcam/increase"], 1)
    gains = metrics.average_gain(model, images, heatmaps, others, form="absolute")
    before, after = (
        np.take_along_axis(np.asarray(jax.nn.softmax(model(each))), np.asarray(others)[:, None], 1)[:, 0]
        for each in (images, images * heatmaps[..., None])
    )
    np.testing.assert_allclose(gains, np.maximum(after - before, 0), atol=1e-6)
    relative = metrics.average_gain(model, images, heatmaps, others)
    np.testing.assert_allclose(relative, np.maximum(after - before, 0) / (1 - before), atol=1e-6)


def test_showing_everything_changes_nothing(model, images, targets):
    shown = jnp.ones(images.shape[:3])
    for metric in (metrics.average_drop, metrics.average_gain, metrics.average_increase):
        np.testing.assert_allclose(metric(model, images, shown, targets), 0, atol=1e-6)
    # A score of zero or below has no share to lose.
    negative = metrics.average_drop(model, images, 0 * shown, 1, score=lambda logits, _: -jnp.abs(logits[:, 0]))
    np.testing.assert_array_equal(negative, 0)


# Infidelity and sensitivity


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_agrees_with_captum(normalize, model, images):
    """With Captum's perturbations: the key of each sample tells which one it is."""
    keys = jax.vmap(lambda sample: jax.random.key_data(jax.random.fold_in(jax.random.key(0), sample)))(jnp.arange(6))

    def given(key, image):
        sample = jnp.argmax((keys == jax.random.key_data(key)).all(-1))
        return jnp.asarray(GOLDEN["perturbations"])[sample]

    options = {"perturbation": given, "num_samples": 6, "normalize": normalize, "chunk_size": 5}
    values = metrics.infidelity(model, images, GOLDEN["attributions"], **options)
    np.testing.assert_allclose(values, GOLDEN[f"captum/infidelity/{normalize}"], rtol=1e-3)


def test_infidelity_of_a_linear_models_gradient_is_zero():
    images, scaled = np.repeat(IMAGE, 2, 0), np.stack([WEIGHTS, 1.1 * WEIGHTS])
    for options in ({"perturbation": "noise"}, {"perturbation": "square", "window": 3}):
        values = metrics.infidelity(linear, images, scaled, 0, num_samples=8, **options)
        np.testing.assert_allclose(values[0], 0, atol=1e-8)
        assert values[1] > 1e-4


def test_a_square_is_taken_away():
    image = 1 + jax.random.uniform(jax.random.key(0), (6, 8, 2))
    squares = jax.jit(jax.vmap(lambda key: _square(key, image, (3, 3))))(jax.random.split(jax.random.key(1), 500))
    inside = np.asarray(squares != 0)
    np.testing.assert_array_equal(inside.sum((1, 2, 3)), 9 * 2)
    np.testing.assert_array_equal(squares, np.where(inside, image, 0))
    assert inside.any((0, 3)).all() and len(np.unique(inside, axis=0)) == 4 * 6  # in time it covers all, edges included


def test_max_sensitivity_agrees_with_captum(model, images, targets, monkeypatch):
    """With Captum's changes of the image in place of the drawn ones."""
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 4))

    def given(key, shape, dtype, low, high):
        assert shape == (12, 16, 3) and (low, high) == (-0.02, 0.02)
        return jnp.asarray(GOLDEN["changes"])[jnp.argmax((keys == jax.random.key_data(key)).all(-1))]

    def explain(images):
        return jaxcam.saliency(model, images, targets)

    drawn = metrics.max_sensitivity(explain, images, num_samples=4)
    monkeypatch.setattr(jax.random, "uniform", given)
    values = metrics.max_sensitivity(explain, images, num_samples=4)
    np.testing.assert_allclose(values, GOLDEN["captum/sensitivity"], rtol=1e-3)
    assert not np.allclose(drawn, values, rtol=1e-3)


def test_max_sensitivity_of_what_does_not_change_is_zero(images):
    np.testing.assert_array_equal(metrics.max_sensitivity(jnp.zeros_like, images), 0)
    largest = metrics.max_sensitivity(lambda images: images, images, radius=0.1, num_samples=3)
    bound = 0.1 * (12 * 16 * 3) ** 0.5 / jnp.linalg.norm(images.reshape(3, -1), axis=-1)
    assert bool((largest > 0.5 * bound).all() and (largest < bound).all())


# Correlations


def test_occlusion_correlation_by_a_loop(model, images, heatmaps):
    """Windows of 5 with stride 4, the last ones cut; one class, the probability, mean colour."""

    @jax.jit
    def confidence(images):
        return jax.nn.softmax(model(images))[:, 2]

    drops, sums = [], []
    means = np.asarray(images).mean((1, 2), keepdims=True)
    for top in (0, 4, 8):
        for left in (0, 4, 8, 12):
            patch = np.s_[:, top : top + 5, left : left + 5]
            masked = np.array(images)
            masked[patch] = means
            drops.append(confidence(images) - confidence(masked))
            sums.append(np.asarray(heatmaps)[patch].sum((1, 2)))
    options = {"window": 5, "stride": 4, "baseline": "mean", "correlation": metrics.spearman}
    values = metrics.occlusion_correlation(model, images, heatmaps, 2, **options)
    np.testing.assert_allclose(values, metrics.spearman(np.stack(sums, 1), np.stack(drops, 1)), atol=1e-4)


@pytest.mark.usefixtures("as_user")
def test_errors_say_what_is_wrong(model, images, heatmaps):
    wrong = {
        "one map for each image": lambda: metrics.deletion(model, images, heatmaps[:, :6]),
        "jaxcam.heatmap": lambda: metrics.deletion(model, images, images),
        "Unknown baseline 'blurr'. Did you mean 'blur'": lambda: metrics.deletion(
            model, images, heatmaps, baseline="blurr"
        ),
        "baseline has shape": lambda: metrics.deletion(model, images, heatmaps, baseline=jnp.ones(5)),
        "num_steps is 0": lambda: metrics.insertion(model, images, heatmaps, num_steps=0),
        "out of range": lambda: metrics.insertion(model, images, heatmaps, 4),
        "Unknown order": lambda: metrics.road(model, images, heatmaps, order="first"),
        "above 0 and below 1": lambda: metrics.road(model, images, heatmaps, fractions=(0.5, 1.0)),
        r"ranges from .* to 254; it must be in \[0, 1\]": lambda: metrics.average_drop(model, images, 255 * heatmaps),
        "Unknown form": lambda: metrics.average_drop(model, images, heatmaps, form="percent"),
        "Unknown perturbation": lambda: metrics.infidelity(model, images, heatmaps, perturbation="circle"),
        "larger than the images": lambda: metrics.infidelity(model, images, heatmaps, perturbation="square", window=13),
        "does not fit images": lambda: metrics.infidelity(model, images, images[..., :2]),
        "one map per image is needed": lambda: metrics.max_sensitivity(lambda images: images[:1], images),
        "finer than the images": lambda: metrics.mu_fidelity(model, images, heatmaps, cells=13),
        "some must go": lambda: metrics.mu_fidelity(model, images, heatmaps, fraction=1.0),
        "one class for each": lambda: metrics.deletion(model, images, heatmaps, np.zeros((3, 2), int)),
        "grain is -1": lambda: metrics.road(model, images, heatmaps, grain=-1),
        "noise is -1": lambda: metrics.infidelity(model, images, heatmaps, noise=-1),
        "radius is -1": lambda: metrics.max_sensitivity(lambda images: images, images, radius=-1),
        "one for each of 2 axes": lambda: metrics.mu_fidelity(model, images, heatmaps, cells=(2, 2, 2)),
        "too large": lambda: metrics.occlusion_correlation(model, images, heatmaps, window=16),
    }
    for words, call in wrong.items():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="JAX cannot trace `explain`"):
        metrics.max_sensitivity(lambda images: np.asarray(images).mean(-1), images)


@pytest.mark.parametrize("metric", [metrics.deletion, metrics.insertion, metrics.road, metrics.average_increase])
def test_inside_jit_nan_stays_nan(metric, model, images, heatmaps, targets):
    """What orders or compares the values of a map would hide it."""
    options = {name: value for name, value in ALTERING[metric].items() if name != "num_steps"}
    values = jax.jit(lambda maps: metric(model, images, maps, targets, **options))(heatmaps.at[1, 2, 3].set(jnp.nan))
    assert np.isnan(values[1]) and np.isfinite(np.delete(values, 1)).all()


def test_road_keeps_the_images_dtype(images, heatmaps):
    seen = set()

    def model(images):
        seen.add(images.dtype)
        return images.mean((1, 2)).astype(jnp.float32)

    metrics.road(model, images.astype(jnp.bfloat16), heatmaps, fractions=np.array([0.3, 0.6]))
    assert seen == {jnp.dtype(jnp.bfloat16)}


def test_patches_are_made_inside_the_pass():
    """As many temporaries for forty times the patches."""
    images, maps = jnp.ones((1, 64, 64, 3)), jnp.ones((1, 64, 64))

    def temporaries(stride):
        def metric(images, maps):
            options = {"window": 8, "stride": stride, "chunk_size": 4}
            return metrics.occlusion_correlation(lambda images: images.mean((1, 2)), images, maps, 0, **options)

        return jax.jit(metric).lower(images, maps).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1) < 2 * temporaries(8)


# Any number of axes, any number of devices


def mixed(images):
    """A model of images with any axes of space, which sees the order of the pixels alone."""
    pixels = images.reshape(images.shape[0], -1)
    weights = np.sin(np.arange(4 * pixels.shape[1], dtype=np.float32)).reshape(-1, 4)
    return jnp.tanh(pixels @ weights) * 3


@every_metric
@pytest.mark.parametrize("axes", [1, 3])
def test_a_signal_is_an_image_of_one_row_and_an_image_a_volume_of_one_slice(metric, axes):
    space = (24,) if axes == 1 else (6, 5)
    images, maps = (
        jax.random.normal(jax.random.key(1), (2, *space, 2)),
        jax.random.uniform(jax.random.key(2), (2, *space)),
    )
    options = dict(ALTERING[metric])
    flat = metric(mixed, images, maps, 1, **options)
    for name in {"cells", "window"} & set(options):
        options[name] = (1, *(options[name],) * len(space))
    assert flat.shape == (2,) and flat.dtype == jnp.float32
    np.testing.assert_allclose(metric(mixed, images[:, None], maps[:, None], 1, **options), flat, rtol=1e-3, atol=1e-5)


def test_squares_along_any_number_of_axes():
    for space in ((9,), (4, 5, 6)):
        box = _square(jax.random.key(0), jnp.ones((*space, 2)), (2,) * len(space))
        assert box.sum() == 2 ** len(space) * 2


@pytest.mark.parametrize("metric", [metrics.deletion, metrics.road, metrics.occlusion_correlation, metrics.irof])
def test_every_device_does_its_own_images(metric, model):
    """An eighth of the work on each, and nothing is sent but single numbers."""
    n = 8
    mesh = jax.make_mesh((n,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, same = jax.NamedSharding(mesh, jax.P("n")), jax.NamedSharding(mesh, jax.P())
    images, maps = (
        jax.random.normal(jax.random.key(0), (n, 12, 16, 3)),
        jax.random.uniform(jax.random.key(1), (n, 12, 16)),
    )
    options = ALTERING[metric] | {"chunk_size": 1024}

    def measure(model, images, maps):
        return metric(model, images, maps, **options)

    whole = jax.jit(measure).lower(model, images, maps).compile()
    expected = whole(model, images, maps)
    given = jax.device_put(model, same), *jax.device_put((images, maps), spread)
    for run in (
        measure,
        jax.shard_map(measure, mesh=mesh, in_specs=(jax.P(), jax.P("n"), jax.P("n")), out_specs=jax.P("n")),
    ):
        compiled = jax.jit(run).lower(*given).compile()
        values = compiled(*given)
        np.testing.assert_allclose(values, expected, atol=1e-5)
        assert values.sharding.is_equivalent_to(spread, 1)
        assert compiled.cost_analysis()["flops"] < 0.14 * whole.cost_analysis()["flops"]
        sent = re.findall(r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute)", compiled.as_text())
        assert not [shape for shape in sent if re.search(r"\[\d", shape)]


@every_metric
def test_several_maps_share_the_passes_that_do_not_depend_on_them(metric, model, images, heatmaps, targets):
    """Under `vmap`, as the registry says of the metric; `jaxcam.compare` and the docs go by that."""
    maps = jnp.stack([heatmaps, heatmaps[::-1], 1 - heatmaps, heatmaps**2])

    def run(model, images, targets, maps):
        return metric(model, images, maps, targets, **ALTERING[metric])

    several, given = jax.jit(jax.vmap(run, (None, None, None, 0))), (model, images, targets)
    one, four = (
        each.lower(*given, of).cost_analysis()["flops"] for each, of in ((jax.jit(run), heatmaps), (several, maps))
    )
    assert four < 1.5 * one if metrics.METRICS[metric.__name__].shares else four > 2 * one
    np.testing.assert_allclose(several(*given, maps)[1], run(*given, maps[1]), rtol=1e-4, atol=1e-5)


@every_metric
def test_nothing_is_moved_between_host_and_device_in_secret(metric, model, images, heatmaps, targets):
    with jax.transfer_guard("disallow"):
        metric(model, images, heatmaps, targets, **ALTERING[metric])


class WithContext(nn.Module):
    @nn.compact
    def __call__(self, x, more):
        return nn.Dense(4)(nn.tanh(x.reshape(x.shape[0], -1))) * more


@every_metric
def test_context_and_rows_of_a_score_follow_the_images(metric, images, heatmaps):
    more, directions = (jax.random.normal(jax.random.key(seed), (3, 4)) for seed in (1, 2))
    variables = WithContext().init(jax.random.key(0), images, more)

    def measure(which):
        tap = jaxcam.tap(WithContext(), variables, "Dense_0", context=more[which])
        score = jaxcam.score.cosine_similarity(jaxcam.score.Rows(directions[which]))
        return metric(tap, images[which], heatmaps[which], 0, score=score, **ALTERING[metric])

    together = measure(slice(None))
    np.testing.assert_allclose(measure(slice(1, 2)), together[1:2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", ORDERING, ids=lambda metric: metric.__name__)
def test_a_map_of_zeros_is_told(metric, model, images, heatmaps):
    zeros = heatmaps.at[1].set(0)
    with pytest.warns(UserWarning, match="Heatmap 1 is zero everywhere, so the order of its pixels means nothing"):
        metric(model, images, zeros, **ALTERING[metric])
    jax.jit(partial(metric, **ALTERING[metric]))(model, images, zeros)  # warnings are errors here
