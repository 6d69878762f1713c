"""Metrics: how far a heatmap can be trusted. Each returns one number per image, `float32[n]`.

They take plain arrays, from any method of any library: similarity of two maps, faithfulness to the model, localisation
of a known object, sanity of the method, complexity of the map.
"""

from jaxcam.metrics.complexity import effective_area, entropy, gini
from jaxcam.metrics.faithfulness import average_drop, average_gain, average_increase, deletion, insertion
from jaxcam.metrics.fidelity import infidelity, max_sensitivity, mu_fidelity, occlusion_correlation
from jaxcam.metrics.localization import (
    box_to_mask,
    energy_pointing_game,
    iou_with_mask,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from jaxcam.metrics.road import road
from jaxcam.metrics.sanity import (
    cascading_randomisation,
    independent_randomisation,
    input_invariance,
    label_randomisation,
)
from jaxcam.metrics.similarity import cosine, iou_top, pearson, spearman, ssim

METRICS = {
    metric.__name__: metric
    for metric in (
        pearson,
        spearman,
        iou_top,
        ssim,
        cosine,
        deletion,
        insertion,
        road,
        average_drop,
        average_increase,
        average_gain,
        infidelity,
        max_sensitivity,
        mu_fidelity,
        occlusion_correlation,
        pointing_game,
        energy_pointing_game,
        relevance_rank_accuracy,
        relevance_mass_accuracy,
        iou_with_mask,
        cascading_randomisation,
        independent_randomisation,
        label_randomisation,
        input_invariance,
        gini,
        entropy,
        effective_area,
    )
}

__all__ = ["METRICS", "box_to_mask", *METRICS]
