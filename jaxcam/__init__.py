"""jaxcam explains vision models in JAX.

>>> classifier = jaxcam.load("resnet18_cifar10")
>>> images = classifier.preprocess(jaxcam.sample())
>>> model = classifier.tap()
>>> heatmaps = jax.jit(jaxcam.grad_cam)(model, images)
"""

import importlib
from typing import TYPE_CHECKING

from jaxcam import influence, lrp_rules, metrics, regions, score, segments
from jaxcam._engine import config
from jaxcam.attribution import (
    METHODS,
    Craft,
    Tcav,
    ablation_cam,
    attention_relevance,
    attention_rollout,
    aug_smooth,
    blur_integrated_gradients,
    cam,
    craft,
    craft_maps,
    deconvnet,
    deep_feature_factorization,
    deep_lift,
    eigen_cam,
    eigen_grad_cam,
    eigen_smooth,
    expected_gradients,
    feature_ablation,
    fem,
    finer_cam,
    full_grad,
    grad_cam,
    grad_cam_elementwise,
    grad_cam_plus_plus,
    guided_backprop,
    guided_grad_cam,
    guided_integrated_gradients,
    heatmap,
    hires_cam,
    hsic,
    input_x_gradient,
    integrated_gradients,
    is_cam,
    kernel_shap,
    kpca_cam,
    layer_cam,
    le_grad,
    lime,
    lrp,
    occlusion,
    random_cam,
    refine_cam,
    rise,
    saliency,
    score_cam,
    shapley_cam,
    shapley_sampling,
    smooth_grad,
    smooth_grad_cam_plus_plus,
    smooth_grad_squared,
    sobol,
    ss_cam,
    tcav,
    var_grad,
    x_grad_cam,
    xrai,
)
from jaxcam.compare import Comparison, compare
from jaxcam.explain import explain
from jaxcam.export import export, exported_weights
from jaxcam.image import sample
from jaxcam.models import Classifier, load
from jaxcam.taps import Tap, Tokens, layers, tap, tokens

if TYPE_CHECKING:
    from jaxcam import app, data, dataset, plot, train

_SUBMODULES = ("app", "data", "dataset", "plot", "train")  # what they need is heavy, so they are imported at first use


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"jaxcam.{name}")
    raise AttributeError(f"module 'jaxcam' has no attribute {name!r}")


__all__ = [
    "Classifier",
    "Comparison",
    "Craft",
    "METHODS",
    "Tap",
    "Tcav",
    "Tokens",
    "ablation_cam",
    "app",
    "attention_relevance",
    "attention_rollout",
    "aug_smooth",
    "blur_integrated_gradients",
    "cam",
    "compare",
    "config",
    "craft",
    "craft_maps",
    "data",
    "dataset",
    "deconvnet",
    "deep_feature_factorization",
    "deep_lift",
    "eigen_cam",
    "eigen_grad_cam",
    "eigen_smooth",
    "expected_gradients",
    "explain",
    "export",
    "exported_weights",
    "feature_ablation",
    "fem",
    "finer_cam",
    "full_grad",
    "grad_cam",
    "grad_cam_elementwise",
    "grad_cam_plus_plus",
    "guided_backprop",
    "guided_grad_cam",
    "guided_integrated_gradients",
    "heatmap",
    "hires_cam",
    "hsic",
    "influence",
    "input_x_gradient",
    "integrated_gradients",
    "is_cam",
    "kernel_shap",
    "kpca_cam",
    "layer_cam",
    "layers",
    "le_grad",
    "lime",
    "load",
    "lrp",
    "lrp_rules",
    "metrics",
    "occlusion",
    "plot",
    "random_cam",
    "refine_cam",
    "regions",
    "rise",
    "saliency",
    "sample",
    "score",
    "score_cam",
    "segments",
    "shapley_cam",
    "shapley_sampling",
    "smooth_grad",
    "smooth_grad_cam_plus_plus",
    "smooth_grad_squared",
    "sobol",
    "ss_cam",
    "tap",
    "tcav",
    "tokens",
    "train",
    "var_grad",
    "x_grad_cam",
    "xrai",
]
