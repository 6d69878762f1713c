"""Metrics: how far a heatmap can be trusted, and their registry: one row for each.

They take plain arrays, from any method of any library: similarity of two maps, faithfulness to the model, robustness,
localization of a known object, sanity of the method, complexity of the map. Each returns one number per image,
`float32[n]`, or a dict of these, one for each layer.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxcam.attribution import paragraph, summary
from jaxcam.metrics._altered import Curve
from jaxcam.metrics.alike import consistency, strongest_cell, sufficiency
from jaxcam.metrics.axioms import completeness, non_sensitivity
from jaxcam.metrics.boxes import max_box_acc
from jaxcam.metrics.coherency import adcc, arcc, coherency, l1_complexity
from jaxcam.metrics.complexity import effective_area, entropy, gini, histogram_entropy
from jaxcam.metrics.faithfulness import average_drop, average_gain, average_increase, deletion, insertion
from jaxcam.metrics.fidelity import infidelity, mu_fidelity, occlusion_correlation, sensitivity_n
from jaxcam.metrics.information import accuracy_information_curve, softmax_information_curve
from jaxcam.metrics.localization import (
    box_to_mask,
    energy_pointing_game,
    iou_with_mask,
    mask_auc,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    top_k_intersection,
)
from jaxcam.metrics.monotonicity import monotonicity, monotonicity_correlation
from jaxcam.metrics.mosaic import focus
from jaxcam.metrics.randomization import efficient_mprt, random_logit, smooth_mprt
from jaxcam.metrics.regions import irof, region_perturbation, selectivity
from jaxcam.metrics.road import road
from jaxcam.metrics.robustness import average_sensitivity, continuity, local_lipschitz, max_sensitivity
from jaxcam.metrics.sanity import (
    cascading_randomization,
    independent_randomization,
    input_invariance,
    label_randomization,
)
from jaxcam.metrics.similarity import cosine, iou_top, pearson, spearman, ssim
from jaxcam.metrics.stability import (
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)


class Metric(NamedTuple):
    """A row of the registry.

    Attributes:
      function: the metric itself.
      family: the heading under which lists show it.
      needs: what it is called with, all options aside: `"map"` is `(maps)`, `"maps"` two of them `(a, b)`, `"masks"`
        `(heatmaps, masks)`, `"model"` `(model, images, heatmaps, targets)`, `"batch"` `(model, images, heatmaps)` of
        all images that are compared, `"explain"` `(images -> maps, images)`, `"method"` `(method, model, images,
        targets)`, and `"twin"` the same with a second model after the first.
      better: `"high"`, `"low"`, `"near zero"`, or `"describes"` where it tells maps apart and judges none.
      cost: in forward passes of the model for its default options, or in `explanations`.
      draws: whether it draws random numbers for its default options, by `key`.
      gives: `"values"` `float32[n]`, or `"layers"`, a dict with such an array for each layer.
      on_host: whether it must see the values of its arrays, and so cannot be called inside of `jit`.
      shares: whether its forward passes are the same for every map, so that `jax.vmap` over maps computes them once.
    """

    function: Callable
    family: str
    needs: str
    better: str
    cost: str = "0"
    draws: bool = False
    gives: str = "values"
    on_host: bool = False
    shares: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return summary(self.function)

    @property
    def reference(self) -> str:
        return paragraph(self.function, "References?")


SIMILARITY, FAITHFULNESS, ROBUSTNESS = "similarity", "faithfulness", "robustness"
LOCALIZATION, SANITY, COMPLEXITY = "localization", "sanity", "complexity"

ROWS = [
    Metric(pearson, SIMILARITY, "maps", "describes"),
    Metric(spearman, SIMILARITY, "maps", "describes"),
    Metric(iou_top, SIMILARITY, "maps", "describes"),
    Metric(ssim, SIMILARITY, "maps", "describes"),
    Metric(cosine, SIMILARITY, "maps", "describes"),
    Metric(deletion, FAITHFULNESS, "model", "low", "1 + num_steps"),
    Metric(insertion, FAITHFULNESS, "model", "high", "1 + num_steps"),
    Metric(selectivity, FAITHFULNESS, "model", "low", "1 + patches"),
    Metric(region_perturbation, FAITHFULNESS, "model", "high", "1 + num_steps"),
    Metric(irof, FAITHFULNESS, "model", "high", "1 + segments"),
    Metric(monotonicity, FAITHFULNESS, "model", "high", "num_steps"),
    Metric(softmax_information_curve, FAITHFULNESS, "model", "high", "2 + fractions", draws=True, on_host=True),
    Metric(accuracy_information_curve, FAITHFULNESS, "model", "high", "2 + fractions", draws=True, on_host=True),
    Metric(road, FAITHFULNESS, "model", "high", "1 + 2 fractions", draws=True),
    Metric(average_drop, FAITHFULNESS, "model", "low", "2"),
    Metric(average_increase, FAITHFULNESS, "model", "high", "2"),
    Metric(average_gain, FAITHFULNESS, "model", "high", "2"),
    Metric(infidelity, FAITHFULNESS, "model", "low", "1 + num_samples", draws=True, shares=True),
    Metric(mu_fidelity, FAITHFULNESS, "model", "high", "1 + num_samples", draws=True, shares=True),
    Metric(sensitivity_n, FAITHFULNESS, "model", "high", "1 + 8 num_samples", draws=True, shares=True),
    Metric(occlusion_correlation, FAITHFULNESS, "model", "high", "1 + windows", shares=True),
    Metric(monotonicity_correlation, FAITHFULNESS, "model", "high", "1 + num_steps num_samples", draws=True),
    Metric(completeness, FAITHFULNESS, "model", "low", "2", shares=True),
    Metric(non_sensitivity, FAITHFULNESS, "model", "low", "1 + patches", shares=True),
    Metric(sufficiency, FAITHFULNESS, "batch", "high", "1"),
    Metric(consistency, FAITHFULNESS, "batch", "high", "1"),
    Metric(coherency, FAITHFULNESS, "method", "high", "2 explanations"),
    Metric(adcc, FAITHFULNESS, "method", "high", "2 + 2 explanations"),
    Metric(arcc, FAITHFULNESS, "method", "high", "1 + 2 fractions + 2 explanations", draws=True),
    Metric(max_sensitivity, ROBUSTNESS, "explain", "low", "1 + num_samples explanations", draws=True),
    Metric(average_sensitivity, ROBUSTNESS, "explain", "low", "1 + num_samples explanations", draws=True),
    Metric(local_lipschitz, ROBUSTNESS, "explain", "low", "1 + num_samples explanations", draws=True),
    Metric(continuity, ROBUSTNESS, "explain", "low", "1 + num_steps explanations"),
    Metric(relative_input_stability, ROBUSTNESS, "method", "low", "1 + num_samples explanations", draws=True),
    Metric(relative_output_stability, ROBUSTNESS, "method", "low", "1 + num_samples explanations", draws=True),
    Metric(relative_representation_stability, ROBUSTNESS, "method", "low", "1 + num_samples explanations", draws=True),
    Metric(pointing_game, LOCALIZATION, "masks", "high"),
    Metric(energy_pointing_game, LOCALIZATION, "masks", "high"),
    Metric(relevance_rank_accuracy, LOCALIZATION, "masks", "high"),
    Metric(relevance_mass_accuracy, LOCALIZATION, "masks", "high"),
    Metric(top_k_intersection, LOCALIZATION, "masks", "high"),
    Metric(mask_auc, LOCALIZATION, "masks", "high"),
    Metric(iou_with_mask, LOCALIZATION, "masks", "high"),
    Metric(max_box_acc, LOCALIZATION, "masks", "high"),
    Metric(focus, LOCALIZATION, "method", "high", "1 explanation of 4 times the pixels", draws=True),
    Metric(cascading_randomization, SANITY, "method", "near zero", "1 + layers explanations", True, "layers"),
    Metric(independent_randomization, SANITY, "method", "near zero", "1 + layers explanations", True, "layers"),
    Metric(label_randomization, SANITY, "twin", "near zero", "2 explanations"),
    Metric(smooth_mprt, SANITY, "method", "near zero", "(1 + layers) num_samples explanations", True, "layers"),
    Metric(efficient_mprt, SANITY, "method", "high", "2 explanations", draws=True),
    Metric(random_logit, SANITY, "method", "near zero", "2 explanations", draws=True),
    Metric(input_invariance, SANITY, "method", "high", "2 explanations"),
    Metric(gini, COMPLEXITY, "map", "describes"),
    Metric(entropy, COMPLEXITY, "map", "describes"),
    Metric(effective_area, COMPLEXITY, "map", "describes"),
    Metric(l1_complexity, COMPLEXITY, "map", "describes"),
]
METRICS = {row.name: row for row in ROWS}

__all__ = ["METRICS", "Curve", "Metric", "box_to_mask", "histogram_entropy", "strongest_cell", *METRICS]  # pyright: ignore[reportUnsupportedDunderAll]
