"""Perturbation methods and segmentations: Captum's numbers, axioms, and oracles in NumPy."""

import sys
from math import factorial
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter

import jaxcam
from jaxcam import segments
from jaxcam.attribution import perturbation, sensitivity
from jaxcam.attribution.occlusion import occlusion
from jaxcam.attribution.perturbation import (
    feature_ablation,
    kernel_shap,
    lime,
    rise,
    shapley_sampling,
)
from jaxcam.attribution.sensitivity import hsic, sobol

ON_SEGMENTS = [feature_ablation, lime, kernel_shap, shapley_sampling, sobol, hsic]
FIRST, SECOND = np.split(np.random.default_rng(9).normal(size=(12 * 16 * 3 + 4, 20)).astype(np.float32), [12 * 16 * 3])
by_name = {"ids": lambda each: getattr(each, "__name__", None)}


def model(images):
    """Two dense layers with a tanh between, for images of 12 x 16 pixels: quick to compile, and not linear."""
    return jnp.tanh(images.reshape(images.shape[0], -1) @ FIRST / 20) @ SECOND.T


def explain(method, images, targets=None, model=model, **options):
    """The method's result, compiled as a whole, which is quicker than step by step."""
    return jax.jit(lambda images: method(model, images, targets, **options))(images)


# --- Captum ---


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "perturbation.npz") as file:
        return dict(file)


# A method, the name of Captum's result, and what makes the two the same. "exact" is Captum's mean over all 6! orders.
CAPTUM = [
    (occlusion, "occlusion", {"window": (3, 4), "stride": (2, 3)}, 1e-5),
    (feature_ablation, "feature_ablation", {"segments": "scattered"}, 1e-5),
    (kernel_shap, "exact", {"segments": "scattered", "num_samples": 2**6 - 2}, 5e-6),
    (kernel_shap, "kernel_shap", {"segments": "blocks", "num_samples": 30}, 2e-4),
    (shapley_sampling, "shapley_sampling", {"segments": "blocks", "num_samples": 7}, 1e-5),
    (lime, "lime", {"segments": "blocks", "num_samples": 40}, 1e-4),
    (lime, "lime_lasso", {"segments": "blocks", "num_samples": 40, "alpha": 0.1}, 1e-5),
]


@pytest.mark.parametrize(("method", "name", "options", "tolerance"), CAPTUM, **by_name)
def test_captum(golden, method, name, options, tolerance):
    """The second image lacks the last of the scattered labels, which changes nothing for the others."""

    def model(images):
        features = jax.lax.conv_general_dilated(
            images, golden["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(features + golden["bias"]).reshape(len(images), -1) @ golden["dense"]

    if f"samples/{method.__name__}" in golden and name != "exact":
        options = options | {"key": jax.random.key(5)}
    if "segments" in options:
        options = options | {"segments": golden[options["segments"]]}
    images = jnp.asarray(golden["images"])
    result = explain(method, images, np.array([1, 4]), model, baseline=0.3, chunk_size=64, **options)
    expected = golden[f"map/{name}"]
    np.testing.assert_allclose(result, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", ["lime", "kernel_shap", "shapley_sampling"])
def test_the_samples_given_to_captum_are_drawn_again(golden, name):
    """Else the file of golden values must be made again, with `make_perturbation.py`."""
    design = {
        "lime": lambda *args: perturbation._local_linear_model(*args, 0.25, 0.0),
        "kernel_shap": perturbation._shapley_kernel,
        "shapley_sampling": perturbation._random_orders,
    }[name]
    num_samples = {"lime": 40, "kernel_shap": 30, "shapley_sampling": 7}[name]
    plan = design(jax.random.key(5), jnp.ones((1, 6)), num_samples)
    np.testing.assert_array_equal(plan.keep(jnp.arange(plan.num_samples)), golden[f"samples/{name}"])


@pytest.mark.parametrize(
    ("window", "stride", "baseline", "expected"),
    [(1, 1, 0, [80, 200, 120]), (2, 1, 10, [200, 220, 240]), (2, 2, 0, [280, 280, 120])],
)
def test_occlusion_published_numbers(window, stride, baseline, expected):
    """Captum's `BasicModel_MultiLayer` at (20, 50, 30): the last window of two with stride two covers one pixel."""

    def model(images):
        total = images.sum((1, 2, 3))[:, None]
        return jax.nn.relu(total + jnp.array([-10.0, 1, 1, 1])).sum(1, keepdims=True)

    image = jnp.array([20.0, 50, 30]).reshape(1, 1, 3, 1)
    options = {"window": (1, window), "stride": (1, stride), "baseline": baseline}
    np.testing.assert_allclose(explain(occlusion, image, 1, model, **options).ravel(), expected)


# --- A linear model: every method's answer is known ---


@pytest.fixture(scope="module")
def linear():
    """A model, images and a baseline, and what each segment contributes to the score, its part of `w (x - b)`."""
    weights = jax.random.normal(jax.random.key(0), (9, 12, 3))
    images, baseline = helpers.images(2, 9, 12), 0.2
    labels = segments.grid((9, 12), (3, 4))
    terms = (weights * (images - baseline)).sum(-1)
    contributions = np.stack([[(each * (labels == i)).sum() for i in range(9)] for each in terms])
    return lambda x: (weights * x).sum((1, 2, 3))[:, None] - 7, images, baseline, labels, contributions


# Ridge and rounding: lime fits with an intercept, kernel_shap under the constraint.
@pytest.mark.parametrize(
    ("method", "options", "tolerance"),
    [
        (feature_ablation, {}, 1e-5),
        (shapley_sampling, {"num_samples": 1}, 1e-5),
        (kernel_shap, {"num_samples": 60}, 3e-4),
        (lime, {"num_samples": 60}, 3e-4),
    ],
    **by_name,
)
def test_linear_model(linear, method, options, tolerance):
    model, images, baseline, labels, contributions = linear
    result = explain(method, images, 1, model, baseline=baseline, segments=labels, **options)
    expected = np.take(contributions, labels, axis=1)
    np.testing.assert_allclose(result, expected, atol=tolerance * np.abs(expected).max())


def test_sobol_of_a_linear_model_are_the_shares_of_the_variance(linear):
    model, images, baseline, labels, contributions = linear
    result = explain(sobol, images, 1, model, baseline=baseline, segments=labels, num_samples=512, chunk_size=512)
    shares = contributions**2 / (contributions**2).sum(1, keepdims=True)
    np.testing.assert_allclose(result, np.take(shares, labels, axis=1), atol=0.02)


def test_occlusion_of_a_linear_model(linear):
    """With windows side by side, each holds its own contribution, as with segments."""
    model, images, baseline, labels, contributions = linear
    result = explain(occlusion, images, 1, model, baseline=baseline, window=(3, 4), stride=(3, 4))
    np.testing.assert_allclose(result, np.take(contributions, labels, axis=1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", [lime, kernel_shap], **by_name)
def test_fewer_samples_than_segments_stay_finite(linear, method):
    """The least-squares problem has no unique solution then; the ridge picks a small one."""
    model, images, baseline, labels, contributions = linear
    result = explain(method, images, 1, model, baseline=baseline, segments=labels, num_samples=4)
    assert float(jnp.abs(result).max()) < 5 * np.abs(contributions).max()


# --- Games: a score for every set of eight features ---


def as_game(values):
    """A model that looks up the score of the set of pixels that are one, of two rows of four."""

    def model(images):
        shown = images.reshape(len(images), -1) > 0.5
        return jnp.asarray(values, jnp.float32)[(shown * 2 ** jnp.arange(8)).sum(1)][:, None]

    return model, jnp.ones((1, 2, 4, 1)), segments.grid((2, 4), 1)


def exact_shapley(values):
    """The Shapley value by its definition, over all sets without each feature."""
    result = np.zeros(8)
    for i in range(8):
        for without in (each for each in range(256) if not each >> i & 1):
            size = without.bit_count()
            share = factorial(size) * factorial(7 - size) / factorial(8)
            result[i] += share * (values[without | 1 << i] - values[without])
    return result


@pytest.fixture(scope="module")
def random_game():
    return np.random.default_rng(0).normal(size=256).astype(np.float32)


def test_kernel_shap_with_all_sets_is_exact(random_game):
    model, image, labels = as_game(random_game)
    result = explain(kernel_shap, image, 1, model, segments=labels, num_samples=254)
    np.testing.assert_allclose(result.ravel(), exact_shapley(random_game), atol=1e-6)


def test_shapley_sampling_converges_to_the_exact_value(random_game):
    """The error of 2,000 orders is within four standard errors, and far below that of 20."""
    model, image, labels = as_game(random_game)
    options = {"segments": labels, "chunk_size": 1000}
    exact = exact_shapley(random_game)
    error = np.abs(explain(shapley_sampling, image, 1, model, num_samples=2000, **options).ravel() - exact).max()
    coarse = np.abs(explain(shapley_sampling, image, 1, model, num_samples=20, **options).ravel() - exact).max()
    assert error < 4 * 1.5 / 2000**0.5 and error < coarse / 3


@pytest.mark.parametrize("method", [kernel_shap, shapley_sampling], **by_name)
@pytest.mark.parametrize("num_samples", [1, 2, 33])
def test_shapley_values_sum_to_the_difference(random_game, method, num_samples):
    """For any number of samples: for shapley_sampling, each single order does."""
    model, image, labels = as_game(random_game)
    result = explain(method, image, 1, model, segments=labels, num_samples=num_samples)
    np.testing.assert_allclose(result.sum(), random_game[-1] - random_game[0], rtol=1e-5)


@pytest.mark.parametrize("method", [kernel_shap, shapley_sampling], **by_name)
def test_an_order_and_its_reverse_are_exact_for_pairs(method):
    """So are sets and their complements: no error where no more than two features interact."""
    random = np.random.default_rng(1)
    pairs = random.normal(size=(8, 8))
    shown = np.arange(256)[:, None] >> np.arange(8) & 1
    values = np.einsum("si,ij,sj->s", shown, pairs, shown)
    model, image, labels = as_game(values)
    num_samples = 2 if method is shapley_sampling else 60
    result = explain(method, image, 1, model, segments=labels, num_samples=num_samples)
    np.testing.assert_allclose(result.ravel(), exact_shapley(values), atol=1e-3)


def test_sets_of_each_size_come_up_as_often_as_the_shapley_kernel_says():
    kept = perturbation._coalitions(jax.random.key(0), 10, 1000)
    sizes = np.arange(1, 10)
    expected = 1 / (sizes * (10 - sizes))
    counts = np.bincount(np.asarray(kept.sum(1), int), minlength=11)
    np.testing.assert_allclose(counts[1:10], 1000 * expected / expected.sum(), atol=3)
    np.testing.assert_allclose(kept[:500] + kept[500:], 1)
    np.testing.assert_allclose(kept.mean(0), 0.5, atol=1e-6)


# --- Sobol indices ---


def test_sobol_published_numbers():
    """The Ishigami function, whose total indices are 0.5576, 0.4424 and 0.2437 (Ishigami and Homma 1990)."""

    def model(images):
        first, second, third = images.reshape(len(images), 3).T
        return (jnp.sin(first) * (1 + 0.1 * third**4) + 7 * jnp.sin(second) ** 2)[:, None]

    image = jnp.full((1, 1, 3, 1), jnp.pi)  # with the baseline below, uniform from -pi to pi
    options = {"baseline": -jnp.pi, "segments": segments.grid((1, 3), 1), "num_samples": 1024, "chunk_size": 1024}
    np.testing.assert_allclose(explain(sobol, image, 1, model, **options).ravel(), [0.5576, 0.4424, 0.2437], atol=0.01)


def test_sobol_by_scipy():
    """SciPy's estimate from the scores of the same samples."""
    from scipy.stats import sobol_indices

    image, labels = helpers.images(1), segments.grid((12, 16), (6, 8))
    plan = sensitivity.total_indices(jax.random.key(2), jnp.ones((1, 4)), 16)
    masks = plan.keep(jnp.arange(plan.num_samples))[:, labels]
    scores = np.asarray(model(masks[..., None] * image)[:, 1], np.float64).reshape(16, 6).T
    expected = sobol_indices(func={"f_A": scores[:1], "f_B": scores[1:2], "f_AB": scores[2:, None]}, n=16).total_order
    result = explain(sobol, image, 1, segments=labels, num_samples=16, key=jax.random.key(2))[0, ::6, ::8]
    np.testing.assert_allclose(result.ravel(), expected.ravel(), rtol=1e-3)


@pytest.mark.parametrize("method", [sobol, hsic], **by_name)
def test_perturbations(method):
    """A mixture with the blurred image, and half a unit up or down, by the baselines that say the same."""
    images = helpers.images(2)

    def run(perturbation="baseline", images=images, **options):
        return explain(method, images, 1, num_samples=8, perturbation=perturbation, **options)

    ones, blurred = (
        gaussian_filter(each, (0, 0.6, 0.6, 0), mode="constant", truncate=9)
        for each in (np.ones(images.shape), np.asarray(images, np.float64))
    )
    blurred = jnp.asarray(blurred / ones, jnp.float32)
    np.testing.assert_allclose(run("blur"), run(baseline=blurred), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(run("amplitude"), run(images=images + 0.5, baseline=images - 0.5), rtol=2e-3, atol=1e-6)
    assert not np.allclose(run("blur"), run(), rtol=0.1)


# --- HSIC ---


def test_hsic_by_its_definition():
    """`tr(K H L H) / s^2` with the Dirac kernel of the authors, `1 / 2 - [m != m']`, segment by segment."""
    image, labels = helpers.images(1), segments.grid((12, 16), (6, 8))
    plan = sensitivity._dependence(jax.random.key(2), jnp.ones((1, 4)), 30)
    masks = np.asarray(plan.keep(jnp.arange(30)))
    scores = np.asarray(model(masks[:, labels][..., None] * image)[:, 1], np.float64)
    distances = np.abs(scores[:, None] - scores)
    L = np.exp(-((distances / np.median(distances)) ** 2) / 2)
    H = np.eye(30) - 1 / 30
    expected = [np.trace((0.5 - (m[:, None] != m)) @ H @ L @ H) / 30**2 for m in masks.T]
    result = explain(hsic, image, 1, segments=labels, num_samples=30, key=jax.random.key(2))[0, ::6, ::8]
    np.testing.assert_allclose(result.ravel(), expected, rtol=1e-4)
    np.testing.assert_array_equal(masks.sum(0), 15)


def test_hsic_sees_what_acts_only_together(random_game):
    """Two features that count only where they differ, beside six that do not: no constant added changes that."""
    values = (np.arange(256) >> 1 & 1) ^ (np.arange(256) & 1)
    model, image, labels = as_game(values + 3.0 * (np.arange(256) >> 2 & 1))
    found = explain(hsic, image, 1, model, segments=labels, num_samples=400).ravel()
    assert found.argmax() == 2 and found[3:].max() < 0.1 * found[2]
    shifted = explain(hsic, image, 1, lambda x: model(x) + 100, segments=labels, num_samples=400).ravel()
    np.testing.assert_allclose(shifted, found, atol=1e-4 * found.max())


def test_rounding_has_no_variance():
    """Of a score that is constant but for its last bits, there is nothing to share out."""

    def model(images):
        return 100 + 1e-5 * jnp.sign(images.sum((1, 2, 3)) * 1000 % 2 - 1)[:, None]

    np.testing.assert_array_equal(explain(sobol, helpers.images(2), 1, model, num_samples=4), 0)


def test_sobol_samples_fill_the_range_evenly():
    """Of 32 values of each segment, one lies in each 32nd, whatever the key; and the key matters."""
    plan, other = (sensitivity.total_indices(jax.random.key(i), jnp.ones((1, 20)), 32) for i in (1, 2))
    A = np.asarray(plan.keep(jnp.arange(32) * 22))
    assert not np.isin(A, other.keep(jnp.arange(32) * 22)).any()
    np.testing.assert_array_equal(np.sort(np.floor(A * 32), axis=0), np.arange(32)[:, None] + np.zeros(20))
    swapped = np.asarray(plan.keep(jnp.array([22 * 3 + 2 + 5])))[0]
    B = np.asarray(plan.keep(jnp.array([22 * 3 + 1])))[0]
    np.testing.assert_array_equal(swapped, np.where(np.arange(20) == 5, B, A[3]))


# --- RISE ---


def rise_masks(key, num_samples, cells, shape):
    """The paper's masks, by Pillow's bilinear upsampling of the same random cells."""
    grids, offsets = perturbation._rise_draws(key, 0.5, num_samples, cells, shape)
    sides = [(count + 1) * -(-side // count) for count, side in zip(cells, shape, strict=True)]
    for cell, (top, left) in zip(np.asarray(grids), np.asarray(offsets), strict=True):
        large = np.asarray(PIL.Image.fromarray(cell).resize(sides[::-1], PIL.Image.Resampling.BILINEAR))
        yield large[top : top + shape[0], left : left + shape[1]]


def test_rise_oracle():
    """The mean score of the masks that show a pixel, one mask at a time, but for a constant."""
    image, key = helpers.images(1), jax.random.key(3)
    masks = np.stack(list(rise_masks(key, 25, (3, 5), (12, 16))))
    scores = np.asarray(model(image * masks[..., None])[:, 1])
    expected = np.tensordot(scores, masks, 1) / masks.sum(0)
    result = explain(rise, image, 1, num_samples=25, cells=(3, 5), key=key, chunk_size=7)
    np.testing.assert_allclose(result[0], expected - expected.min(), atol=1e-5 * np.abs(scores).max())


def test_rise_tends_to_the_map_of_the_paper():
    """The paper's `sum_s score_s M_s / (E[M] S)`; where the score has an offset, that one shows the masks instead."""
    image = helpers.images(1)
    masks = np.stack(list(rise_masks(jax.random.key(0), 1000, (4, 4), (12, 16))))
    scores = np.asarray(jax.nn.softmax(model(image * masks[..., None]))[:, 1])

    def paper(scores):
        return np.tensordot(scores, masks, 1) / (0.5 * len(masks))

    def ours(offset):
        def score(logits, targets):
            return jax.nn.softmax(logits)[:, 1] + offset

        return explain(rise, image, 1, score=score, num_samples=1000, cells=4, chunk_size=500)[0]

    def correlation(a, b):
        return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]

    plain = ours(0)
    assert correlation(plain, paper(scores)) > 0.9
    np.testing.assert_allclose(ours(10), plain, atol=1e-3 * float(plain.max()))
    assert correlation(paper(scores + 10), masks.mean(0)) > 0.9 > correlation(plain, masks.mean(0)) + 0.4


def test_rise_finds_the_pixel():
    """A model that reads one pixel: the map is highest near it, and lowest far from it."""
    result = explain(rise, jnp.ones((1, 12, 16, 3)), 0, lambda x: x[:, 3, 12], num_samples=600, chunk_size=100)[0]
    y, x = np.unravel_index(result.argmax(), result.shape)
    assert abs(y - 3) <= 1 and abs(x - 12) <= 1
    assert float(result[9, 2]) < 0.2 * float(result[3, 12])


# --- The engine ---


@pytest.mark.parametrize("chunk_size", [1, 5])
def test_chunk_size_changes_nothing(chunk_size):
    images, options = helpers.images(2), {"num_samples": 6, "cells": 3}
    whole = explain(rise, images, 1, chunk_size=12, **options)
    np.testing.assert_allclose(explain(rise, images, 1, chunk_size=chunk_size, **options), whole, atol=1e-6)


@pytest.mark.parametrize("method", [rise, shapley_sampling], **by_name)
def test_memory_does_not_grow_with_the_samples(method):
    """Masked images are made chunk by chunk: 50 times the samples add less than one chunk of images."""
    labels = segments.grid((12, 16), 8)

    def temporaries(num_samples):
        options = {"num_samples": num_samples, "chunk_size": 8}
        options |= {"cells": 2} if method is rise else {"segments": labels}
        explain = jax.jit(lambda images: method(model, images, **options))
        return explain.lower(helpers.images(1)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(400) < temporaries(8) + 8 * 12 * 16 * 3 * 4


def test_the_class_predicted_for_the_whole_image_is_explained():
    """Covering part of the image may change the prediction, and must not change the question."""
    images = helpers.images(6)
    classes = jnp.argmax(model(images), -1)
    assert len(set(classes.tolist())) > 1
    result = explain(occlusion, images, window=12, stride=12)
    np.testing.assert_allclose(result, explain(occlusion, images, classes, window=12, stride=12), atol=1e-6)
    covered = jnp.argmax(model(images.at[:, :, :12].set(0)), -1)
    assert (covered != classes).any()


def test_a_baseline_may_be_an_image():
    """Replaced by itself, an image loses nothing; by another, something."""
    images = helpers.images(2)
    result = explain(feature_ablation, images, baseline=images[:1])
    np.testing.assert_allclose(result[0], 0, atol=1e-6)
    assert float(jnp.abs(result[1]).max()) > 1e-3


# --- Segments ---


@pytest.mark.parametrize("method", ON_SEGMENTS, **by_name)
def test_segments_of_its_own_for_each_image(method):
    """They give what each image alone gets, also where the labels are arguments of the compiled function."""
    images = helpers.images(2)
    labels = np.stack([segments.grid((12, 16), (6, 6)), segments.grid((12, 16), (4, 16))])
    options = {"num_segments": 6} | ({} if method is feature_ablation else {"num_samples": 4})
    traced = jax.jit(lambda images, labels: method(model, images, 1, segments=labels, **options))
    both = traced(images, labels)
    for index in range(2):
        alone = explain(method, images[index : index + 1], 1, segments=labels[index], **options)
        np.testing.assert_allclose(both[index], alone[0], atol=2e-5 * float(jnp.abs(alone).max()))
        for label in range(labels[index].max() + 1):
            assert np.ptp(np.asarray(both[index])[labels[index] == label]) == 0
    assert not np.allclose(both[0], traced(images, labels[::-1])[0])


@pytest.mark.parametrize("method", [lime, kernel_shap], **by_name)
def test_labels_that_do_not_occur_get_no_share(linear, method):
    """The nine patches under labels up to 14: the same contributions, which still sum to the difference."""
    model, images, baseline, labels, contributions = linear
    gaps = labels + labels // 2 + (labels > 6) * 2
    result = explain(method, images, 1, model, baseline=baseline, segments=gaps, num_samples=80)
    expected = np.take(contributions, labels, axis=1)
    np.testing.assert_allclose(result, expected, atol=3e-4 * np.abs(expected).max())


def test_labels_out_of_range_give_nan_under_jit():
    """There they cannot be checked, and a wrong picture would be worse."""
    images = helpers.images(1)
    explain = jax.jit(lambda labels: feature_ablation(model, images, 1, segments=labels, num_segments=4))
    labels = segments.grid((12, 16), (6, 8))
    assert bool(jnp.isfinite(explain(labels)).all())
    for shift in (1, -1):
        assert bool(jnp.isnan(explain(labels + shift)).all())


def test_grid():
    labels = segments.grid((5, 7), (2, 3))
    assert labels.dtype == np.int32
    expected = [[0, 0, 0, 1, 1, 1, 2]] * 2 + [[3, 3, 3, 4, 4, 4, 5]] * 2 + [[6, 6, 6, 7, 7, 7, 8]]
    np.testing.assert_array_equal(labels, expected)


def test_superpixels_follow_the_edges():
    """Two halves of different colours, at an odd place: no superpixel lies on both sides."""
    pytest.importorskip("skimage")
    images = np.array(0.05 * helpers.images(2, 24, 32))
    images[0, :, :13] += (2, -1, 0)
    images[1, 9:] += (0, 1, 2)
    labels = segments.superpixels(images, 8)
    assert labels.shape == (2, 24, 32) and labels.dtype == np.int32
    assert not set(labels[0, :, :13].flat) & set(labels[0, :, 13:].flat)
    assert not set(labels[1, :9].flat) & set(labels[1, 9:].flat)
    for each in labels:
        assert 4 <= each.max() + 1 <= 16 and set(each.flat) == set(range(each.max() + 1))
    np.testing.assert_array_equal(segments.superpixels(images[1:] * 3 + 5, 8)[0], labels[1])  # scale plays no part
    assert segments.superpixels(np.zeros((1, 8, 8, 3), np.float32), 4).shape == (1, 8, 8)
    result = explain(feature_ablation, jnp.asarray(images), 0, lambda x: x[:, 2, 3] ** 2, segments=labels)
    np.testing.assert_array_equal(result[0] != 0, labels[0] == labels[0, 2, 3])


def test_superpixels_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcam-xai\[superpixels\]'"):
        segments.superpixels(helpers.images(1))


# --- Errors ---


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (occlusion, {"window": 13}, r"window is \(13, 13\), which is larger than the images, \(12, 16\)"),
        (occlusion, {"window": 3, "stride": (3, 4)}, r"stride is \(3, 4\), which leaves pixels uncovered"),
        (occlusion, {"window": (2, 2, 3)}, "window is .* one whole number, or one for each of 2 axes"),
        (occlusion, {"stride": 0}, "stride is 0; it must be a whole number"),
        (occlusion, {"chunk_size": 0}, "chunk_size is 0"),
        (occlusion, {"baseline": np.zeros((5, 12, 16, 3), np.float32)}, "baseline has shape .5, 12, 16, 3."),
        (rise, {"fraction": 1}, "fraction is 1; it must be below 1"),
        (rise, {"num_samples": 2.5}, "num_samples is 2.5"),
        (rise, {"cells": (0, 3)}, "cells is 0"),
        (lime, {"kernel_width": 0}, "kernel_width is 0"),
        (lime, {"num_samples": 0}, "num_samples is 0"),
        (sobol, {"segments": np.zeros((12, 12), int)}, r"segments has shape \(12, 12\); for images \(1, 12, 16\)"),
        (sobol, {"segments": np.zeros((12, 16))}, "segments is of type float64; it must be an array of whole numbers"),
        (sobol, {"segments": [[0]]}, "segments is of type list"),
        (sobol, {"segments": np.full((12, 16), -1)}, "labels from -1 to -1; they must count from 0"),
        (
            sobol,
            {"segments": np.full((12, 16), 4), "num_segments": 4},
            "labels from 4 to 4; they must count from 0 to 3",
        ),
        (sobol, {"num_segments": 0}, "num_segments is 0"),
    ],
    **by_name,
)
def test_argument_errors(as_user, method, options, message):
    with pytest.raises(ValueError, match=message):
        method(model, helpers.images(1), 1, **options)


def test_traced_labels_need_their_number(as_user):
    images = helpers.images(1)
    with pytest.raises(ValueError, match="not known while jit traces, so their number must be given"):
        jax.jit(lambda labels: lime(model, images, segments=labels))(segments.grid((12, 16), 4))


def test_segments_errors(as_user):
    with pytest.raises(ValueError, match="window is 0"):
        segments.grid((4, 4), 0)
    with pytest.raises(ValueError, match="num_segments is 0"):
        segments.superpixels(helpers.images(1), 0)
    with pytest.raises(ValueError, match="compactness is 0"):
        segments.superpixels(helpers.images(1), compactness=0)


@pytest.mark.parametrize("method", [feature_ablation, shapley_sampling, kernel_shap])
def test_a_single_segment_is_the_whole_difference(method):
    images = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    maps = method(lambda images: images.sum((1, 2)), images, 1, segments=np.zeros((8, 6), int))
    expected = np.broadcast_to(images.sum((1, 2))[:, 1, None, None], (2, 8, 6))
    np.testing.assert_allclose(maps, expected, rtol=1e-4)


# --- Any number of axes of space ---

PERTURBATIONS = [occlusion, rise, *ON_SEGMENTS]
FEW = {occlusion: {}, feature_ablation: {}, rise: {"num_samples": 8, "cells": 2}, shapley_sampling: {"num_samples": 2}}


def few(method):
    return FEW.get(method, {"num_samples": 6})


def in_any_space(images):
    """A model that tells every pixel from every other, of images of any shape."""
    flat = images.reshape(len(images), -1)
    return jnp.tanh(jnp.stack([jnp.sin(flat * k).sum(1) for k in range(1, 5)], 1) / 10)


@pytest.mark.parametrize(
    "space", [(1,), (3,), (17,), (1, 1), (3, 3), (1, 20), (1, 1, 1), (3, 3, 3), (4, 5, 6)], ids=str
)
@pytest.mark.parametrize("method", PERTURBATIONS, **by_name)
def test_signals_volumes_and_images_of_a_few_pixels(method, space):
    images = jax.random.normal(jax.random.key(0), (2, *space, 3))
    result = explain(method, images, 1, in_any_space, **few(method))
    assert result.shape == (2, *space) and result.dtype == jnp.float32
    assert bool(jnp.isfinite(result).all()) and (float(jnp.abs(result).max()) > 0 or method is rise)


@pytest.mark.parametrize("method", [occlusion, *ON_SEGMENTS], **by_name)
def test_a_signal_is_an_image_of_one_row(method):
    """And a volume of one row and one layer."""
    signals = jax.random.normal(jax.random.key(0), (2, 24, 3))
    expected = explain(method, signals, 1, in_any_space, **few(method))
    for shape in ((2, 1, 24, 3), (2, 1, 24, 1, 3)):
        result = explain(method, signals.reshape(shape), 1, in_any_space, **few(method))
        np.testing.assert_allclose(result.reshape(2, 24), expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_rise_finds_the_sample_of_a_signal_and_the_voxel_of_a_volume():
    for space, place in (((40,), (30,)), ((8, 10, 12), (2, 7, 9))):
        options = {"num_samples": 800, "chunk_size": 400, "cells": 4}
        result = explain(rise, jnp.ones((1, *space, 2)), 0, lambda x, place=place: x[(slice(None), *place)], **options)
        found = np.unravel_index(result[0].argmax(), space)
        assert max(abs(a - b) for a, b in zip(found, place, strict=True)) <= 1


def test_rise_shows_the_given_fraction():
    grids, _ = perturbation._rise_draws(jax.random.key(0), 0.2, 500, (3, 4), (12, 16))
    assert abs(float(grids.mean()) - 0.2) < 0.02


@pytest.mark.parametrize("method", [rise, lime, kernel_shap, shapley_sampling, sobol, hsic], **by_name)
def test_a_key_is_a_seed(method):
    images = helpers.images(1)
    results = [explain(method, images, 1, key=key, **few(method)) for key in (3, jax.random.key(3), 4)]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
@pytest.mark.parametrize("method", PERTURBATIONS, **by_name)
def test_strict_promotion_and_x64(method, x64):
    """The same numbers, in float32."""
    images = helpers.images(2)
    model = jaxcam.tap(lambda weights, images: jnp.tanh(images.reshape(len(images), -1) @ weights), jnp.asarray(FIRST))
    expected = method(model, images, 1, **few(method))
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64), jax.transfer_guard("disallow"):
        for labels in (None,) if method in (occlusion, rise) else (None, LABELS, LABELS_OF_EACH):
            options = few(method) if labels is None else few(method) | {"segments": labels}
            result = method(model, images, TARGET, **options)
            assert result.dtype == jnp.float32
            if labels is None:
                np.testing.assert_allclose(result, expected, atol=1e-5 * float(np.abs(np.asarray(expected)).max()))


TARGET = jnp.ones(2, jnp.int32)
LABELS = jnp.asarray(segments.grid((12, 16), 6))
LABELS_OF_EACH = jnp.stack([LABELS, LABELS[::-1]])


@pytest.mark.parametrize("method", PERTURBATIONS, **by_name)
def test_several_targets_and_an_unknown_number_of_images(method):
    images, targets = helpers.images(2), jnp.array([[0, 3, 1], [2, 0, 3]])
    several = explain(method, images, targets, **few(method))
    for index in range(3):
        alone = explain(method, images, targets[:, index], **few(method))
        np.testing.assert_allclose(several[:, index], alone, atol=1e-5 * float(jnp.abs(alone).max()))
    (n,) = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, 12, 16, 3), jnp.float32)
    exported = jax.export.export(jax.jit(lambda images: method(model, images, 3, **few(method))))(shape)
    expected = explain(method, images, 3, **few(method))
    np.testing.assert_allclose(exported.call(images), expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("method", ON_SEGMENTS, **by_name)
def test_segments_of_each_image_are_sharded_with_it(method):
    images, labels = helpers.images(8), jnp.stack([jnp.roll(LABELS, i, 1) for i in range(8)])
    run = jax.jit(lambda images, labels: method(model, images, 1, segments=labels, num_segments=6, **few(method)))
    expected = run(images, labels)
    for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        mesh = jax.make_mesh((8,), ("n",), axis_types=(kind,))
        spread = jax.device_put((images, labels), jax.NamedSharding(mesh, jax.P("n")))
        compiled = run.lower(*spread).compile()
        assert not any(name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))
        result = compiled(*spread)
        assert result.sharding.spec[0] == "n"
        np.testing.assert_allclose(result, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_grid_of_any_number_of_axes():
    np.testing.assert_array_equal(segments.grid((7,), 3), [0, 0, 0, 1, 1, 1, 2])
    volume = segments.grid((4, 5, 7), (4, 2, 3))
    np.testing.assert_array_equal(volume[3], segments.grid((5, 7), (2, 3)))
    assert segments.grid((4, 4, 4), 2).max() == 7


def test_supervoxels_and_signals(as_user):
    pytest.importorskip("skimage")
    volumes = np.array(0.05 * jax.random.normal(jax.random.key(0), (1, 8, 10, 12, 1)))
    volumes[:, :3] += 3
    labels = segments.superpixels(volumes, 12, compactness=1)
    assert labels.shape == (1, 8, 10, 12) and labels.dtype == np.int32
    assert not set(labels[0, :3].flat) & set(labels[0, 3:].flat)
    with pytest.raises(ValueError, match=r"superpixels cut images of two or three axes of space.*segments.grid"):
        segments.superpixels(np.ones((2, 20, 3), np.float32))
