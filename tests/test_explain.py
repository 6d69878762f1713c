"""Several methods at once: the maps of each alone, for little more than the work of one."""

from functools import partial

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

IMAGES, TARGETS = helpers.images(), jnp.array([2, 0, 1], jnp.int32)
CAMS = ["grad_cam", "grad_cam_plus_plus", "x_grad_cam", "layer_cam"]


def test_each_map_is_that_of_the_method_alone():
    model = helpers.small("late")
    found = jaxcam.explain(model, IMAGES, TARGETS, methods=["grad_cam", "saliency"])
    assert list(found) == ["grad_cam", "saliency"]
    np.testing.assert_allclose(found["grad_cam"], jaxcam.grad_cam(model, IMAGES, TARGETS), atol=1e-5)
    saliency = jaxcam.saliency(model, IMAGES, TARGETS)
    np.testing.assert_allclose(found["saliency"], jaxcam.heatmap(saliency, percentile=99), atol=1e-5)
    cut = jaxcam.explain(model, IMAGES, TARGETS, methods=["saliency"], percentile=80)["saliency"]
    expected = jaxcam.heatmap(jaxcam.saliency(model, IMAGES, TARGETS), percentile=80)
    np.testing.assert_allclose(cut, expected, atol=1e-5)


def test_functions_and_options_of_ones_own():
    model, steps = helpers.small("late"), partial(jaxcam.integrated_gradients, num_steps=3)
    found = jaxcam.explain(model, IMAGES, methods={"three steps": steps})["three steps"]
    np.testing.assert_allclose(found, jaxcam.heatmap(steps(model, IMAGES)), atol=1e-5)
    factor = [1.0]  # a plain callable is never served from a stale copy

    def function(images):
        return factor[0] * model(images)

    assert float(jaxcam.explain(function, IMAGES, methods=["saliency"])["saliency"].max()) == 1
    factor[0] = 0.0
    assert float(jaxcam.explain(function, IMAGES, methods=["saliency"])["saliency"].max()) == 0


def test_a_score_for_all_and_options_for_each():
    model, score = helpers.small("late"), jaxcam.score.margin
    methods = {"integrated_gradients": {"num_steps": 3}, "grad_cam": {}}
    found = jaxcam.explain(model, IMAGES, TARGETS, methods=methods, score=score)
    expected = jaxcam.integrated_gradients(model, IMAGES, TARGETS, score=score, num_steps=3)
    np.testing.assert_allclose(found["integrated_gradients"], jaxcam.heatmap(expected), atol=1e-5)
    expected = jaxcam.grad_cam(model, IMAGES, TARGETS, score=score)
    np.testing.assert_allclose(found["grad_cam"], expected, atol=1e-5)


def test_several_targets_an_image():
    targets = jnp.stack([TARGETS, (TARGETS + 1) % 4], 1)
    found = jaxcam.explain(helpers.small("late"), IMAGES, targets, methods=["grad_cam", "saliency"])
    for index in range(2):
        alone = jaxcam.explain(helpers.small("late"), IMAGES, targets[:, index], methods=["grad_cam", "saliency"])
        for name, heatmaps in alone.items():
            np.testing.assert_allclose(found[name][:, index], heatmaps, atol=1e-5)


def test_what_the_methods_have_in_common_is_computed_once():
    """Operations of the compiled programs: four CAMs cost hardly more than one, and saliency pays for Grad-CAM."""
    module = helpers.tiny_resnet(stem="cifar")
    images = jnp.ones((2, 32, 32, 3))
    model = jaxcam.tap(module, helpers.random_variables(module, (32, 32)), "layer3")

    def operations(*methods):
        compiled = jax.jit(lambda model, images: jaxcam.explain(model, images, methods=methods))
        return compiled.lower(model, images).compile().cost_analysis()["flops"]

    assert operations(*CAMS) < 1.1 * operations("grad_cam")
    assert operations("grad_cam", "saliency") < 1.1 * operations("saliency")


def test_it_is_compiled_once(caplog):
    model = helpers.small("late")
    jaxcam.explain(model, IMAGES, TARGETS, methods=CAMS)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        jaxcam.explain(model, IMAGES + 1, TARGETS, methods=CAMS)
    assert "_explain_engine" not in caplog.text


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("grad_cam", r"methods is 'grad_cam'; it must be a list of methods, such as \['grad_cam', 'saliency'\]"),
        (jaxcam.grad_cam, "methods is a function; it must be a list of methods"),
        ([], "No methods are given; choose some of grad_cam, grad_cam_plus_plus"),
        (["gradcam"], "Unknown method 'gradcam'. Did you mean 'grad_cam'"),
        ({"a": "grad_cam"}, "The method 'a' is 'grad_cam'; it must be a function"),
        ({"a": {}}, "Unknown method 'a'"),
        ({"rise": {"num_sample": 3}}, "Unknown option of rise 'num_sample'. Did you mean 'num_samples'"),
        (["deep_feature_factorization"], "gives parts, and no heatmap"),
        ({"a": ["grad_cam"]}, "The method 'a' is .'grad_cam'.; it must be a function"),
        (["saliency", jaxcam.saliency], "Two of the methods have the same name; pass a dict"),
        ({"a": partial(jaxcam.full_grad, raw=True)}, "The method 'a' has raw=True, and a raw map is not a heatmap"),
    ],
)
def test_errors(as_user, methods, message):
    with pytest.raises((TypeError, ValueError), match=message):
        jaxcam.explain(helpers.small("late"), IMAGES, methods=methods)


def test_cams_are_recognised_as_functions_and_partials():
    """They are heatmaps already: the percentile is for attributions."""
    model = helpers.small("late")
    methods = {"a": jaxcam.grad_cam, "b": partial(partial(jaxcam.grad_cam), score=jaxcam.score.logit)}
    found = jaxcam.explain(model, IMAGES, TARGETS, methods=methods, percentile=50)
    expected = jaxcam.explain(model, IMAGES, TARGETS, methods=[jaxcam.grad_cam])["grad_cam"]
    for heatmaps in found.values():
        np.testing.assert_allclose(heatmaps, expected, atol=1e-6)
    np.testing.assert_allclose(expected, jaxcam.grad_cam(model, IMAGES, TARGETS), atol=1e-5)


def test_cam_says_why_it_is_not_defined():
    module = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, lambda x: x.reshape(len(x), -1), nn.Dense(3)])
    images = helpers.images(2, 8, 8)
    model = jaxcam.tap(module, module.init(jax.random.key(0), images), "layers_0")
    with pytest.raises(ValueError, match="not followed by global average pooling"):
        jaxcam.explain(model, images, 0, methods=["grad_cam", "cam"])
    assert np.isnan(jax.jit(lambda images: jaxcam.explain(model, images, 0, methods=["cam"])["cam"])(images)).all()
