"""What goes around any CAM: pytorch-grad-cam's numbers, and each by its definition."""

from functools import partial
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cam_family import BOTH, TARGETS, tiny
from test_cam_family import GOLDEN as MODEL

import jaxcam

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "wrappers.npz"))
IMAGES = MODEL["images"]
METHODS = {"GradCAM": jaxcam.grad_cam, "LayerCAM": jaxcam.layer_cam, "GradCAMPlusPlus": jaxcam.grad_cam_plus_plus}
AROUND = {
    "aug_smooth": (jaxcam.aug_smooth, BOTH, {"chunk_size": 7}),
    "refine_cam": (jaxcam.refine_cam, BOTH, {}),
    "finer_cam": (jaxcam.finer_cam, "early", {"classes": [3, 4], "alpha": 0.7}),
    "eigen_smooth": (jaxcam.eigen_smooth, "early", {"raw": True}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_pytorch_grad_cam(name):
    """Its own mean over augmentations is not scaled again, and the sign of its projections is chance."""
    function, layers, options = AROUND[name.split("/")[0]]
    method = METHODS[name.split("/")[1]]
    found, plain = (f(tiny(layers), IMAGES, TARGETS) for f in (partial(function, method=method, **options), method))
    expected = GOLDEN[name]
    if function is jaxcam.aug_smooth:
        assert expected.max() < 1
        low, high = (each(expected, (1, 2), keepdims=True) for each in (np.min, np.max))
        expected = (expected - low) / (high - low)
    if function is jaxcam.eigen_smooth:
        signs = np.sign((found * expected).sum((1, 2), keepdims=True))
        np.testing.assert_allclose(found, signs * expected, atol=2e-4 * np.abs(expected).max())
    else:
        np.testing.assert_allclose(found, expected, atol=2e-4)
        assert np.abs(found - plain).max() > 0.02


@pytest.mark.parametrize(
    "method", [each for each in helpers.METHODS if each.row.family.startswith("CAM")], ids=lambda each: each.name
)
def test_channels_sum_to_the_map(method):
    """For every CAM that weighs channels; the others say so."""
    model = method.model(layer=("late", "early")) if not method.pooled else method.model(layer="late")
    explain = partial(method.function, model, helpers.images(), TARGETS, **method.options)
    if method.name in ("eigen_cam", "eigen_grad_cam", "kpca_cam"):
        with pytest.raises((ValueError, TypeError), match="channels|raw"):
            explain(raw="channels")
        return
    terms, maps = explain(raw="channels"), explain(raw=True)
    for term, each in zip(*((x if isinstance(x, tuple) else (x,)) for x in (terms, maps)), strict=True):
        assert term.shape[-1] in (5, 6) and term.shape[:-1] == each.shape
        np.testing.assert_allclose(term.sum(-1), each, atol=1e-5 * np.abs(each).max())


def test_aug_smooth_by_its_definition():
    """One copy at a time; each copy explains what the image itself is taken for."""
    model, images = helpers.small(), helpers.images(2)
    found = jaxcam.aug_smooth(model, images, method=jaxcam.hires_cam, factors=(1.0, 0.5))
    targets, total = jnp.argmax(model(images), -1), 0
    for factor in (1.0, 0.5):
        total += jaxcam.hires_cam(model, factor * images, targets)
        total += jaxcam.hires_cam(model, factor * images[:, :, ::-1], targets)[:, :, ::-1]
    low, high = (each(total, (1, 2), keepdims=True) for each in (jnp.min, jnp.max))
    np.testing.assert_allclose(found, (total - low) / (high - low), atol=1e-5)


def test_refine_cam_is_a_product_of_layers():
    images, taps = helpers.images(2), [helpers.small(each) for each in (("early", "late"), "early", "late")]
    both, early, late = (jaxcam.refine_cam(each, images, 1, method=jaxcam.layer_cam) for each in taps)
    product = np.asarray(early * late)
    low, high = (each(product, (1, 2), keepdims=True) for each in (np.min, np.max))
    np.testing.assert_allclose(both, (product - low) / (high - low), atol=1e-5)
    np.testing.assert_allclose(early, jaxcam.layer_cam(taps[1], images, 1), atol=1e-6)


def test_eigen_smooth_of_products_is_eigen_grad_cam():
    model, images = helpers.small(), helpers.images(2)
    found = jaxcam.eigen_smooth(model, images, 1, method=jaxcam.hires_cam)
    np.testing.assert_allclose(found, jaxcam.eigen_grad_cam(model, images, 1), atol=1e-5)


def test_finer_cam_compares_with_the_classes_that_are_chosen():
    """One class alone is a contrast, whichever the method; each image may have its own; the nearest are the default."""
    model, images, targets = helpers.small(), helpers.images(), jnp.array([2, 0, 1])
    for method in (jaxcam.layer_cam, partial(jaxcam.score_cam, chunk_size=5)):
        found = jaxcam.finer_cam(model, images, targets, classes=[3], method=method)
        np.testing.assert_allclose(found, method(model, images, targets, score=jaxcam.score.contrast(3)), atol=2e-5)
    own = jnp.array([[3, 1], [2, 1], [0, 3]])
    together = jaxcam.finer_cam(model, images, targets, classes=own, raw=True)
    for i in range(3):
        alone = jaxcam.finer_cam(model, images[i : i + 1], targets[i : i + 1], classes=own[i : i + 1], raw=True)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)
    logits = model(images)
    order = jnp.argsort(jnp.abs(logits - jnp.take_along_axis(logits, targets[:, None], 1)), 1)
    nearest = jaxcam.finer_cam(model, images, targets, num_classes=2)
    np.testing.assert_allclose(jaxcam.finer_cam(model, images, targets, classes=order[:, 1:3]), nearest, atol=1e-5)


def test_they_go_around_each_other():
    model, images = helpers.small(), helpers.images(2)
    finer = partial(jaxcam.finer_cam, num_classes=2)
    found = jax.jit(partial(jaxcam.aug_smooth, method=partial(jaxcam.eigen_smooth, method=finer)))(model, images)
    assert found.shape == (2, 12, 16) and bool(jnp.isfinite(found).all()) and found.max() == 1


def test_errors(as_user):
    model, images = helpers.small(), helpers.images()
    with pytest.raises(ValueError, match="method returned an array float32 .*; aug_smooth takes methods"):
        jaxcam.aug_smooth(model, images, method=jaxcam.saliency)
    with pytest.raises(ValueError, match=r"factors is \(\); it must hold one number or more"):
        jaxcam.aug_smooth(model, images, factors=())
    with pytest.raises(TypeError, match="factors is '1'; it must be a number"):
        jaxcam.aug_smooth(model, images, factors=("1",))
    for wrong in (jnp.array([[1], [2]]), jnp.array([0.5]), []):
        with pytest.raises(ValueError, match="classes is an array"):
            jaxcam.finer_cam(model, images, classes=wrong)
    with pytest.raises(TypeError, match="raw is 'channel'; it must be True or False, or 'channels'"):
        jaxcam.grad_cam(model, images, raw="channel")
