"""The CAM family against pytorch-grad-cam, torch-cam and scikit-learn, and against identities and NumPy oracles."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam.attribution import decomposition
from jaxcam.attribution.cam import (
    cam,
    grad_cam,
    grad_cam_elementwise,
    grad_cam_plus_plus,
    random_cam,
    shapley_cam,
    smooth_grad_cam_plus_plus,
)
from jaxcam.attribution.decomposition import (
    deep_feature_factorization,
    eigen_cam,
    eigen_grad_cam,
    fem,
    kpca_cam,
)
from jaxcam.attribution.full_grad import full_grad
from jaxcam.attribution.masking import ablation_cam, is_cam, score_cam, ss_cam
from jaxcam.attribution.wrappers import finer_cam
from jaxcam.models.resnet import BasicBlock, ResNet

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "cam_family.npz"))
TARGETS = np.array([2, 0, 1])
PREDICTED = GOLDEN["predicted"].astype(int)


class Tiny(nn.Module):
    """The model of `golden/make_cam_family.py`."""

    hidden: bool

    @nn.compact
    def __call__(self, x):
        padding = ((1, 1), (1, 1))
        x = nn.Conv(6, (3, 3), padding=padding, name="conv1")(x)
        x = helpers.Relu(name="early")(nn.BatchNorm(True, name="bn1")(x))
        x = nn.Conv(8, (3, 3), 2, padding=padding, use_bias=False, name="conv2")(x)
        x = helpers.Relu(name="late")(nn.BatchNorm(True, name="bn2")(x)).mean((1, 2))
        return nn.Dense(5, name="fc")(jnp.tanh(nn.Dense(7, name="hidden")(x)) if self.hidden else x)


def tiny(layer, name="deep"):
    variables = {"params": {}, "batch_stats": {}}
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for path, value in GOLDEN.items():
        model, _, rest = path.partition("/")
        if model != name or "." not in rest:
            continue
        module, leaf = rest.split(".")
        tree = variables["batch_stats" if leaf.startswith("running") else "params"].setdefault(module, {})
        tree["kernel" if value.ndim > 1 else names[leaf]] = value.T if value.ndim == 2 else value
        if value.ndim == 4:
            tree["kernel"] = value.transpose(2, 3, 1, 0)
    return jaxcam.tap(Tiny(name == "deep"), variables, layer)


def rest(logits, targets):
    return jaxcam.score.logit(logits, targets) + jaxcam.score.log_probability(logits, targets)


BOTH = ("late", "early")
PYTORCH_GRAD_CAM = [
    ("grad_cam_elementwise", grad_cam_elementwise, BOTH, TARGETS, {}),
    ("ablation_cam", ablation_cam, "late", PREDICTED, {"chunk_size": 3}),
    ("shapley_cam", shapley_cam, "late", TARGETS, {"score": rest}),
    ("finer_cam", finer_cam, "late", None, {}),
    ("finer_cam_half", finer_cam, BOTH, None, {"alpha": 0.5, "num_classes": 2}),
    ("fem", fem, BOTH, None, {}),
    ("full_grad", full_grad, "late", TARGETS, {}),
]


@pytest.mark.parametrize(
    ("name", "method", "layer", "targets", "options"), PYTORCH_GRAD_CAM, ids=[each[0] for each in PYTORCH_GRAD_CAM]
)
def test_heatmaps_are_pytorch_grad_cams(name, method, layer, targets, options):
    found = method(tiny(layer), GOLDEN["images"], targets, **options)
    np.testing.assert_allclose(found, GOLDEN[name], atol=2e-4)
    assert not np.allclose(found, grad_cam(tiny(layer), GOLDEN["images"], targets), atol=0.02)


TORCH_CAM = [
    ("cam", cam, "late", "plain", {}),
    ("ss_cam", ss_cam, "early", "deep", {"num_samples": 3, "mask_noise": 0.5, "chunk_size": 11}),
    ("is_cam", is_cam, "early", "deep", {"num_samples": 3, "chunk_size": 11}),
    ("smooth_grad_cam_plus_plus", smooth_grad_cam_plus_plus, "late", "deep", {"num_samples": 1, "deviation": 0.5}),
]


@pytest.mark.parametrize(("name", "method", "layer", "head", "options"), TORCH_CAM, ids=[each[0] for each in TORCH_CAM])
def test_raw_maps_are_torch_cams(name, method, layer, head, options):
    found = method(tiny(layer, head), GOLDEN["images"], TARGETS, raw=True, **options)
    np.testing.assert_allclose(found, GOLDEN[name], rtol=5e-4, atol=5e-4 * np.abs(GOLDEN[name]).max())


PROJECTIONS = [
    ("eigen_cam", eigen_cam, {}),
    ("eigen_grad_cam", eigen_grad_cam, {}),
    ("kpca_cam_sigmoid", kpca_cam, {}),
    ("kpca_cam_rbf", kpca_cam, {"kernel": "rbf"}),
    ("kpca_cam_gamma", kpca_cam, {"kernel": "rbf", "kernel_scale": 0.3}),
    ("kpca_cam_linear", kpca_cam, {"kernel": "linear"}),
]


@pytest.mark.parametrize(("name", "method", "options"), PROJECTIONS, ids=[each[0] for each in PROJECTIONS])
def test_projections_are_pytorch_grad_cams_with_the_sign_fixed(name, method, options):
    """The library's sign is chance; here the map is large where the mean activation (times gradient) is."""
    model, images, expected = tiny("late"), GOLDEN["images"], GOLDEN[name]
    found = np.asarray(method(model, images, TARGETS, raw=True, **options))
    signs = np.sign((found * expected).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(found, signs * expected, atol=2e-4 * np.abs(expected).max())
    _, (A,), (G,) = model.gradients(images, lambda logits: jaxcam.score.logit(logits, TARGETS).sum())
    for each, mean in zip(found, ((G * A) if method is eigen_grad_cam else A).sum(-1), strict=True):
        assert np.corrcoef(each.ravel(), np.ravel(mean))[0, 1] > 0.05


def test_the_sign_of_a_library_is_not_ours_for_some_image():
    """So that the test above does compare signs."""
    found = np.asarray(eigen_grad_cam(tiny("late"), GOLDEN["images"], TARGETS, raw=True))
    others = (np.asarray(eigen_cam(tiny("late"), GOLDEN["images"], raw=True)) * GOLDEN["eigen_cam"]).sum((1, 2))
    assert ((found * GOLDEN["eigen_grad_cam"]).sum((1, 2)) < 0).any() or (others < 0).any()


def test_factors_are_scikit_learns():
    """The same start and the same updates give the same factors."""
    X, H, W = (jnp.asarray(GOLDEN[f"nmf/{name}"]) for name in "XHW")
    found = jax.jit(decomposition._updated, static_argnums=3)(X, H, W, 60)
    np.testing.assert_allclose(found[0], GOLDEN["nmf/H_end"], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(found[1], GOLDEN["nmf/W_end"], rtol=2e-3, atol=1e-4)


# --- identities ---


def test_cam_is_the_dense_layer_over_space():
    model = tiny("late", "plain")
    weights = model.variables["params"]["fc"]["kernel"][:, TARGETS].T
    expected = np.einsum("nhwk,nk->nhw", model.features(GOLDEN["images"]), weights)
    np.testing.assert_allclose(cam(model, GOLDEN["images"], TARGETS, raw=True), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        cam(model, GOLDEN["images"], TARGETS), grad_cam(model, GOLDEN["images"], TARGETS), atol=1e-5
    )


def test_cam_says_where_it_is_not_defined():
    images = helpers.images()
    with pytest.raises(ValueError, match="'late' is not followed by global average pooling and a dense layer"):
        cam(helpers.small("late"), images)
    assert bool(jnp.isnan(jax.jit(cam)(helpers.small("late"), images)).all())
    with pytest.raises(ValueError, match="'early' is not followed"):
        cam(tiny(BOTH, "plain"), GOLDEN["images"])


def test_smooth_grad_cam_plus_plus_without_noise_is_grad_cam_plus_plus():
    model = helpers.small()
    found = smooth_grad_cam_plus_plus(model, helpers.images(), 1, raw=True, noise=0, num_samples=3, chunk_size=4)
    expected = grad_cam_plus_plus(model, helpers.images(), 1, raw=True)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_smooth_grad_cam_plus_plus_oracle():
    """Written out in NumPy, one noisy image at a time: the mean gradient, where torch-cam takes the last one's."""
    model, images, key = helpers.small(), helpers.images(2), jax.random.key(8)
    A = np.asarray(model.features(images))
    gradients = jax.jit(lambda images: model.gradients(images, lambda logits: logits[:, 1].sum())[2][0])
    powers = []
    for sample in range(3):
        noisy = images + 0.7 * jax.random.normal(jax.random.fold_in(key, sample), images.shape[1:])
        G = np.asarray(gradients(noisy))
        powers.append((G, G**2, G**3))
    first, second, third = np.mean(powers, 0)
    below = 2 * second + A.sum((1, 2), keepdims=True) * third + 1e-6
    weights = (np.where(second != 0, second / below, 0) * np.maximum(first, 0)).sum((1, 2))
    expected = np.einsum("nhwk,nk->nhw", A, weights)
    options = {"raw": True, "deviation": 0.7, "num_samples": 3, "key": key}
    found = smooth_grad_cam_plus_plus(model, images, 1, chunk_size=4, **options)  # the last chunk is padded
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_shapley_cam_of_a_linear_head_is_grad_cam_and_of_a_quadratic_score_is_exact():
    model, images = tiny("late", "plain"), GOLDEN["images"]
    plain = grad_cam(model, images, TARGETS, raw=True)
    np.testing.assert_allclose(shapley_cam(model, images, TARGETS, raw=True), plain, atol=1e-5)
    # S = logit^2 / 2: with g = d logit / d A, the gradient is logit g and the Hessian g g', so H A = (g . A) g, and
    # g . A is the logit less its bias.
    logits = np.asarray(model(images))[np.arange(3), TARGETS]
    bias = np.asarray(model.variables["params"]["fc"]["bias"])[TARGETS]
    squared = shapley_cam(model, images, TARGETS, score=lambda o, t: jaxcam.score.logit(o, t) ** 2 / 2, raw=True)
    factor = (logits - (logits - bias) / 2)[:, None, None]
    np.testing.assert_allclose(squared, factor * plain, rtol=1e-3, atol=1e-4)


def test_finer_cam_without_comparison_is_grad_cam():
    model, images = helpers.small(), helpers.images()
    np.testing.assert_allclose(finer_cam(model, images, alpha=0), grad_cam(model, images), atol=1e-5)
    many = finer_cam(model, images, num_classes=99)
    np.testing.assert_array_equal(many, finer_cam(model, images, num_classes=3))


def test_random_cam_oracle():
    model, images = helpers.small(), helpers.images()
    weights = jax.random.uniform(jax.random.key(5), (6,), minval=-1, maxval=1)
    expected = np.einsum("nhwk,k->nhw", model.features(images), weights)
    np.testing.assert_allclose(random_cam(model, images, raw=True, key=jax.random.key(5)), expected, atol=1e-5)
    assert not np.allclose(random_cam(model, images, raw=True), expected, atol=1e-2)


def test_ablation_cam_of_a_linear_head():
    """What a channel adds to the score is its weight times its mean; a negative score does not turn the map around."""
    model, images = tiny("late", "plain"), GOLDEN["images"]
    A, kernel = np.asarray(model.features(images)), np.asarray(model.variables["params"]["fc"]["kernel"])
    logits = np.asarray(model(images))
    for target in (int(logits[0].argmax()), int(logits[0].argmin())):
        scores = logits[:, target]
        weights = A.mean((1, 2)) * kernel[:, target] / np.abs(scores)[:, None]
        expected = np.einsum("nhwk,nk->nhw", A, weights)
        found = ablation_cam(model, images, target, raw=True, chunk_size=3)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert logits[0].argmin() != logits[0].argmax() and logits[0].min() < 0
    zero = ablation_cam(model, images, 0, score=lambda logits, targets: logits[:, 0] - logits[:, 0])
    np.testing.assert_array_equal(zero, 0)


def test_ablation_cam_computes_the_layers_below_once_for_a_chunk():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.relu(nn.Conv(16, (3, 3))(x))
            x = nn.relu(nn.Conv(16, (1, 1), 4, name="late")(x))
            return nn.Dense(4)(x.mean((1, 2)))

    module, images = Deep(), helpers.images(1, 24, 24)
    model = jaxcam.tap(module, module.init(jax.random.key(0), images), "late")

    def flops(function):
        return jax.jit(function).lower(model, images).compile().cost_analysis()["flops"]

    # The count has one turn of the loop: one forward pass before it, one below the layer for the 16 channels in it.
    whole = flops(lambda model, images: model(images))
    assert flops(lambda model, images: ablation_cam(model, images, 1, chunk_size=16)) < 3 * whole


def test_full_grad_accounts_for_the_whole_score():
    model, images = tiny("late", "plain"), GOLDEN["images"]
    contributions = full_grad(model, images, TARGETS, raw=True)
    # The image, then conv1, bn1, bn2 and fc; conv2 has no bias.
    assert [each.shape for each in contributions] == [(3, 12, 16), (3, 12, 16), (3, 12, 16), (3, 6, 8), (3, 1, 1)]
    total = sum(each.sum((1, 2)) for each in contributions)
    np.testing.assert_allclose(total, np.asarray(model(images))[np.arange(3), TARGETS], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(contributions[-1].ravel(), model.variables["params"]["fc"]["bias"][TARGETS], rtol=1e-5)


def test_full_grad_of_a_resnet_accounts_for_the_score():
    module = ResNet((1, 1), BasicBlock, num_classes=10, width=4, stem="cifar")
    model = jaxcam.tap(module, helpers.random_variables(module), "layer2")
    images = helpers.images(2, 16, 16)
    contributions = full_grad(model, images, 3, raw=True)
    assert len(contributions) == 1 + 1 + 2 * 2 + 1 + 1  # image, stem, two BatchNorms a block, one shortcut, head
    total = sum(each.sum((1, 2)) for each in contributions)
    np.testing.assert_allclose(total, jax.jit(model)(images)[:, 3], rtol=1e-3, atol=1e-4)


# --- channels and masks ---


def test_max_channels_keeps_those_with_the_largest_mean():
    model, images = helpers.small("late"), helpers.images(2)
    A = np.asarray(model.features(images))
    everything = np.asarray(score_cam(model, images, 1, raw=True))
    np.testing.assert_array_equal(score_cam(model, images, 1, raw=True, max_channels=6), everything)
    # All scores but those of the kept channels are dropped before the softmax.
    found = score_cam(model, images, 1, raw=True, max_channels=2)
    for image in range(2):
        kept = np.argsort(-A[image].mean((0, 1)))[:2]
        scores = []
        for channel in kept:
            mask = jaxcam._array.resize(A[image, ..., channel], (12, 16), align_corners=True)
            mask = jaxcam._array.normalize(mask, 0)
            scores.append(float(model(images[image : image + 1] * mask[..., None])[0, 1]))
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(found[image], A[image][..., kept] @ weights, atol=1e-5)


def test_what_takes_very_long_says_so_before_it_starts():
    model, images = helpers.small(), helpers.images(1)
    message = "is_cam takes 6,000 forward passes for each image, 1000 for each of 6 channels; with fewer of both"
    with pytest.warns(UserWarning, match=message):
        jax.eval_shape(lambda model, images: is_cam(model, images, 1, num_samples=1000), model, images)


def test_masking_methods_reduce_to_score_cam():
    model, images = helpers.small(), helpers.images()
    expected = score_cam(model, images, 1)
    np.testing.assert_allclose(ss_cam(model, images, 1, mask_noise=0, num_samples=2), expected, atol=1e-5)
    np.testing.assert_allclose(is_cam(model, images, 1, num_samples=1), expected, atol=1e-5)
    one = ss_cam(model, images, 1, num_samples=2)
    assert not np.allclose(one, ss_cam(model, images, 1, num_samples=2, key=jax.random.key(1)), atol=1e-3)


# --- decompositions ---


def oracle(B):
    """The first principal component by NumPy's SVD, with the sign of the channels' sum."""
    X = B.reshape(-1, B.shape[-1]).astype(np.float64)
    X = X - X.mean(0)
    projected = X @ np.linalg.svd(X, full_matrices=False)[2][0]
    return (projected * np.sign(projected @ X.sum(1))).reshape(B.shape[:2])


@pytest.mark.parametrize("channels", [5, 40])
def test_principal_map_oracle(channels):
    """Both Gram matrices, tiny and large values, and channels that are dead or constant."""
    random = np.random.default_rng(0)
    B = random.normal(size=(4, 5, channels)).astype(np.float32) ** 2
    B[..., 1], B[..., 2] = 0, 7
    for scale in (1, 1e-18, 1e12):
        found = decomposition.principal_map(jnp.asarray(B * np.float32(scale)).reshape(20, -1))
        np.testing.assert_allclose(found / scale, oracle(B).ravel(), atol=1e-4)


@pytest.mark.parametrize("channels", [5, 40])
def test_principal_map_gradient(channels):
    """The derivative of an eigenvector among equal (zero) eigenvalues, against finite differences in float64 NumPy."""
    random = np.random.default_rng(1)
    B, direction, weights = (random.normal(size=(3, 4, channels)) for _ in range(3))
    B[..., 3:] = 0  # most eigenvalues are zero
    weights = weights[..., 0]

    def projected(B):
        return jnp.vdot(weights.ravel(), decomposition.principal_map(B.reshape(12, -1)))

    gradient = jax.grad(projected)(jnp.asarray(B, jnp.float32))
    step = 1e-6
    finite = (weights * (oracle(B + step * direction) - oracle(B - step * direction))).sum() / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum(), finite, rtol=2e-3, atol=1e-3)


FORMULAS = {
    "eigen": decomposition.principal_map,
    **{
        name: partial(decomposition._kpca_cam, kernel=kernel, scale=None)
        for name, kernel in decomposition.KERNELS.items()
    },
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
@pytest.mark.parametrize("sign", [1, -1])
def test_where_the_channels_cancel_the_largest_value_is_positive(formula, sign):
    """As after a LayerNorm: their sum is rounding, which would leave the sign to the order of an addition."""
    B = sign * jax.random.normal(jax.random.key(3), (12, 5))
    B = B - B.mean(1, keepdims=True)
    for found in (formula(B), formula(B[::-1])[::-1], formula(B[:, ::-1])):
        np.testing.assert_allclose(found, formula(B), atol=1e-4)
        assert found.max() == jnp.abs(found).max()


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_maps_without_variation_are_zero_with_finite_gradients(formula):
    for B in (jnp.zeros((12, 5)), jnp.full((12, 5), 0.1), jnp.broadcast_to(jnp.arange(5.0) / 3, (12, 5))):
        np.testing.assert_array_equal(formula(B), 0)
        assert bool(jnp.isfinite(jax.grad(lambda B: formula(B).sum())(B)).all())


def test_fem_oracle():
    model, images = helpers.small("early"), helpers.images()
    A = np.asarray(model.features(images))
    threshold = A.mean((1, 2), keepdims=True) + 1.5 * A.std((1, 2), keepdims=True)
    above = threshold < A
    expected = np.einsum("nhwk,nk->nhw", A, above.mean((1, 2)))
    np.testing.assert_allclose(fem(model, images, raw=True, deviations=1.5), expected, atol=1e-5)


def test_kernel_name(as_user):
    with pytest.raises(ValueError, match="Unknown kernel 'sigmoyd'. Did you mean 'sigmoid'"):
        kpca_cam(helpers.small(), helpers.images(), kernel="sigmoyd")


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        (kpca_cam, {"kernel_scale": 0}, "kernel_scale is 0; it must be above 0"),
        (ss_cam, {"mask_noise": -1}, "mask_noise is -1; it must be at least 0"),
        (smooth_grad_cam_plus_plus, {"noise": -0.1}, "noise is -0.1; it must be at least 0"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_amounts_below_zero_mean_nothing(as_user, method, option, message):
    with pytest.raises(ValueError, match=message):
        method(tiny("late"), GOLDEN["images"], TARGETS, **option)


@pytest.mark.parametrize("method", [eigen_cam, kpca_cam, fem, random_cam])
def test_methods_without_a_class_ignore_it(method):
    model, images = helpers.small(), helpers.images()
    np.testing.assert_array_equal(method(model, images, 1), method(model, images, 2))


def test_factorization_finds_the_parts():
    """Activations that are a product of known parts: the heatmaps are those parts."""

    class Parts(nn.Module):
        """The image's channels are the places of three concepts, each an embedding of eight channels."""

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (1, 1), use_bias=False, name="features")(x)
            return nn.Dense(4, name="head")(x.mean((1, 2)))

    images = jnp.zeros((2, 6, 6, 3)).at[0, :2, :, 0].set(1).at[0, 2:4, :, 1].set(0.7).at[0, 4:, :3, 2].set(0.4)
    images = images.at[1].set(images[0].transpose(1, 0, 2)).at[1, 0, 0, 0].set(0.5)
    concepts = jnp.array([[3.0, 2, 0, 0, 0, 0, 1, 0], [0, 0, 2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 1, 3, 0, 0]])
    variables = Parts().init(jax.random.key(0), images)
    variables["params"]["features"]["kernel"] = concepts[None, None]
    model = jaxcam.tap(Parts(), variables, "features")
    options = {"num_components": 3}
    heatmaps, scores = deep_feature_factorization(model, images, 1, **options)
    assert heatmaps.shape == (2, 3, 6, 6) and scores.shape == (2, 3) and heatmaps.dtype == jnp.float32
    peaks = images.max((1, 2))
    expected = (images / peaks[:, None, None]).transpose(0, 3, 1, 2)  # the order is that of the parts' size
    np.testing.assert_allclose(heatmaps, expected, atol=1e-4)
    # Everywhere the concept at its strongest, through global average pooling: the dense layer of the concept.
    head = variables["params"]["head"]
    dense = jnp.einsum("nr,rk,k->nr", peaks, concepts, head["kernel"][:, 1]) + head["bias"][1]
    np.testing.assert_allclose(scores, dense, rtol=1e-3, atol=1e-3)
    alone = deep_feature_factorization(model, images[1:], 1, **options)
    np.testing.assert_allclose(alone[0][0], heatmaps[1], atol=1e-4)
    np.testing.assert_allclose(alone[1][0], scores[1], rtol=1e-4, atol=1e-4)
    coarse, _ = deep_feature_factorization(model, images, 1, raw=True, **options)
    np.testing.assert_allclose(coarse.max((2, 3)), 1, rtol=1e-6)


def test_factorization_of_nothing_and_of_several_layers():
    model, images = helpers.small(), helpers.images()
    dead = replace(model, variables=jax.tree.map(jnp.zeros_like, model.variables))
    heatmaps, scores = deep_feature_factorization(dead, images, 1, num_iterations=3)
    np.testing.assert_array_equal(heatmaps, 0)
    np.testing.assert_array_equal(scores, 0)
    with pytest.raises(ValueError, match="looks at one layer, and 2 are tapped"):
        deep_feature_factorization(helpers.small(("late", "early")), images)
