"""Attribution methods, `method(model, images, targets=None, *, options)`, and their registry: one row for each.

A row says what a reader must know to choose a method, and what the command line, the documents, `explain`, the
leaderboard and the tests need to treat all alike. A new method is a function and a row.
"""

import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxcam.attribution.attention import attention_relevance, attention_rollout, le_grad
from jaxcam.attribution.cam import (
    cam,
    grad_cam,
    grad_cam_elementwise,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    random_cam,
    shapley_cam,
    smooth_grad_cam_plus_plus,
    x_grad_cam,
)
from jaxcam.attribution.concepts import Craft, Tcav, craft, craft_maps, tcav
from jaxcam.attribution.decomposition import deep_feature_factorization, eigen_cam, eigen_grad_cam, fem, kpca_cam
from jaxcam.attribution.deep_lift import deep_lift
from jaxcam.attribution.full_grad import full_grad
from jaxcam.attribution.gradient import heatmap, input_x_gradient, saliency
from jaxcam.attribution.guided_backprop import deconvnet, guided_backprop, guided_grad_cam
from jaxcam.attribution.guided_paths import guided_integrated_gradients
from jaxcam.attribution.lrp import lrp
from jaxcam.attribution.masking import ablation_cam, is_cam, score_cam, ss_cam
from jaxcam.attribution.noise import smooth_grad, smooth_grad_squared, var_grad
from jaxcam.attribution.occlusion import occlusion
from jaxcam.attribution.paths import blur_integrated_gradients, expected_gradients, integrated_gradients
from jaxcam.attribution.perturbation import feature_ablation, kernel_shap, lime, rise, shapley_sampling
from jaxcam.attribution.sensitivity import hsic, sobol
from jaxcam.attribution.wrappers import aug_smooth, eigen_smooth, finer_cam, refine_cam
from jaxcam.attribution.xrai import xrai


class Method(NamedTuple):
    """A row of the registry.

    Attributes:
      function: the method itself.
      family: the heading under which lists show it.
      needs: `"tap"`, `"tokens"` (a tap with `reshape`, on a transformer), or `"callable"`: any function of images.
      gives: `"heatmaps"` in [0, 1], signed `"attributions"`, or what is no map of an image: `"parts"` with scores,
        `"concepts"` of a class, and what the rows of `jaxcam.influence` and `jaxcam.regions` give.
      cost: in forward passes of the model, for its default options; `k` are the layer's channels, `d` the segments.
      draws: whether it draws random numbers, by `key`.
      sees_class: whether another target gives another map.
      on_host: the package by which it looks at images before anything is compiled; under `jit`, what it finds there
        is given as an option. `None` for methods that are JAX alone.
      signed: whether the sign of its attributions says for or against the class; that of a gradient says only whether
        a brighter pixel would be.
    """

    function: Callable
    family: str
    needs: str
    gives: str
    cost: str
    draws: bool = False
    sees_class: bool = True
    on_host: str | None = None
    signed: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def is_map(self) -> bool:
        """Whether it gives a map of each image, as panels, metrics and data sets take them."""
        return self.gives in ("heatmaps", "attributions")

    @property
    def title(self) -> str:
        """What people call it, "Grad-CAM++": the words before the colon of its docstring."""
        return (inspect.getdoc(self.function) or self.name).split(":")[0].split(" (")[0]

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return summary(self.function)

    @property
    def when(self) -> str:
        """When to use it, and when not."""
        return paragraph(self.function, "When")

    @property
    def reference(self) -> str:
        return paragraph(self.function, "References?")


def paragraph(function: Callable, label: str) -> str:
    """The paragraph of a docstring that begins with `label:`, in a line; empty where there is none."""
    found = re.search(rf"^{label}: (.+?)(?:\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def summary(function: Callable) -> str:
    """The first paragraph of a docstring in a line, without the name before the colon."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()).split(": ", 1)[-1]


GRADIENT, FORWARD = "CAM, one partial backward pass", "CAM, forward passes only"
AROUND, LAYERS, INPUT, PATHS = "around any CAM", "every layer at once", "gradient", "paths"
REWRITTEN, PERTURBATION, CONCEPTS = "rewritten backward pass", "perturbation", "concepts of a class"

ROWS = [
    Method(grad_cam, GRADIENT, "tap", "heatmaps", "1"),
    Method(grad_cam_plus_plus, GRADIENT, "tap", "heatmaps", "1"),
    Method(x_grad_cam, GRADIENT, "tap", "heatmaps", "1"),
    Method(hires_cam, GRADIENT, "tap", "heatmaps", "1"),
    Method(layer_cam, GRADIENT, "tap", "heatmaps", "1"),
    Method(grad_cam_elementwise, GRADIENT, "tap", "heatmaps", "1"),
    Method(cam, GRADIENT, "tap", "heatmaps", "1"),
    Method(shapley_cam, GRADIENT, "tap", "heatmaps", "1"),
    Method(eigen_grad_cam, GRADIENT, "tap", "heatmaps", "1"),
    Method(smooth_grad_cam_plus_plus, GRADIENT, "tap", "heatmaps", "1 + num_samples", draws=True),
    Method(score_cam, FORWARD, "tap", "heatmaps", "1 + k"),
    Method(ss_cam, FORWARD, "tap", "heatmaps", "1 + num_samples k", draws=True),
    Method(is_cam, FORWARD, "tap", "heatmaps", "1 + num_samples k"),
    Method(ablation_cam, FORWARD, "tap", "heatmaps", "1, and k above the layer"),
    Method(eigen_cam, FORWARD, "tap", "heatmaps", "1", sees_class=False),
    Method(kpca_cam, FORWARD, "tap", "heatmaps", "1", sees_class=False),
    Method(fem, FORWARD, "tap", "heatmaps", "1", sees_class=False),
    Method(random_cam, FORWARD, "tap", "heatmaps", "1", draws=True, sees_class=False),
    Method(deep_feature_factorization, FORWARD, "tap", "parts", "1, and num_components above the layer"),
    Method(finer_cam, AROUND, "tap", "heatmaps", "1"),
    Method(aug_smooth, AROUND, "tap", "heatmaps", "6"),
    Method(eigen_smooth, AROUND, "tap", "heatmaps", "1"),
    Method(refine_cam, AROUND, "tap", "heatmaps", "1"),
    Method(full_grad, LAYERS, "tap", "heatmaps", "3"),
    Method(attention_rollout, LAYERS, "tokens", "heatmaps", "1", sees_class=False),
    Method(attention_relevance, LAYERS, "tokens", "heatmaps", "3"),
    Method(le_grad, LAYERS, "tokens", "heatmaps", "3"),
    Method(saliency, INPUT, "callable", "attributions", "3"),
    Method(input_x_gradient, INPUT, "callable", "attributions", "3", signed=True),
    Method(smooth_grad, INPUT, "callable", "attributions", "3 num_samples", draws=True),
    Method(smooth_grad_squared, INPUT, "callable", "attributions", "3 num_samples", draws=True),
    Method(var_grad, INPUT, "callable", "attributions", "3 num_samples", draws=True),
    Method(integrated_gradients, PATHS, "callable", "attributions", "3 num_steps", signed=True),
    Method(expected_gradients, PATHS, "callable", "attributions", "3 num_samples", draws=True, signed=True),
    Method(blur_integrated_gradients, PATHS, "callable", "attributions", "3 num_steps", signed=True),
    Method(guided_integrated_gradients, PATHS, "callable", "attributions", "3 num_steps", signed=True),
    Method(xrai, PATHS, "callable", "attributions", "6 num_steps", on_host="skimage"),
    Method(guided_backprop, REWRITTEN, "callable", "attributions", "3"),
    Method(deconvnet, REWRITTEN, "callable", "attributions", "3"),
    Method(guided_grad_cam, REWRITTEN, "tap", "attributions", "3"),
    Method(deep_lift, REWRITTEN, "callable", "attributions", "4", signed=True),
    Method(lrp, REWRITTEN, "callable", "attributions", "3", signed=True),
    Method(occlusion, PERTURBATION, "callable", "attributions", "1 + windows", signed=True),
    Method(feature_ablation, PERTURBATION, "callable", "attributions", "1 + d", signed=True),
    Method(rise, PERTURBATION, "callable", "attributions", "num_samples", draws=True),
    Method(lime, PERTURBATION, "callable", "attributions", "num_samples", draws=True, signed=True),
    Method(kernel_shap, PERTURBATION, "callable", "attributions", "2 + num_samples", draws=True, signed=True),
    Method(
        shapley_sampling, PERTURBATION, "callable", "attributions", "2 + num_samples (d - 1)", draws=True, signed=True
    ),
    Method(sobol, PERTURBATION, "callable", "attributions", "num_samples (d + 2)", draws=True),
    Method(hsic, PERTURBATION, "callable", "attributions", "num_samples", draws=True),
    Method(tcav, CONCEPTS, "tap", "concepts", "3, and 1 for each example and random image"),
    Method(craft, CONCEPTS, "tap", "concepts", "2, crops, num_samples (num_components + 2)", draws=True),
]
METHODS = {row.name: row for row in ROWS}

__all__ = ["METHODS", "Craft", "Method", "Tcav", "craft_maps", "heatmap", "summary", *METHODS]  # pyright: ignore[reportUnsupportedDunderAll]
