"""Attribution methods, `method(model, images, targets=None, *, options)`: one file for each idea."""

from jaxcam.attribution.cam import (
    cam,
    finer_cam,
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
from jaxcam.attribution.decomposition import deep_feature_factorization, eigen_cam, eigen_grad_cam, fem, kpca_cam
from jaxcam.attribution.every_layer import attention_rollout, full_grad
from jaxcam.attribution.gradient import heatmap, input_x_gradient, saliency
from jaxcam.attribution.masking import ablation_cam, is_cam, score_cam, ss_cam
from jaxcam.attribution.noise import smooth_grad, smooth_grad_squared, var_grad
from jaxcam.attribution.paths import (
    blur_integrated_gradients,
    expected_gradients,
    guided_integrated_gradients,
    integrated_gradients,
)
from jaxcam.attribution.perturbation import (
    feature_ablation,
    kernel_shap,
    lime,
    occlusion,
    rise,
    shapley_sampling,
    sobol,
)
from jaxcam.attribution.regions import xrai
from jaxcam.attribution.relevance import lrp
from jaxcam.attribution.rules import deconvnet, deep_lift, guided_backprop, guided_grad_cam

METHODS = {
    method.__name__: method
    for method in (
        cam,
        grad_cam,
        grad_cam_plus_plus,
        x_grad_cam,
        hires_cam,
        layer_cam,
        grad_cam_elementwise,
        smooth_grad_cam_plus_plus,
        shapley_cam,
        finer_cam,
        random_cam,
        score_cam,
        ss_cam,
        is_cam,
        ablation_cam,
        eigen_cam,
        eigen_grad_cam,
        kpca_cam,
        fem,
        full_grad,
        attention_rollout,
        saliency,
        input_x_gradient,
        smooth_grad,
        smooth_grad_squared,
        var_grad,
        integrated_gradients,
        expected_gradients,
        blur_integrated_gradients,
        guided_integrated_gradients,
        xrai,
        guided_backprop,
        deconvnet,
        guided_grad_cam,
        deep_lift,
        lrp,
        occlusion,
        feature_ablation,
        rise,
        lime,
        kernel_shap,
        shapley_sampling,
        sobol,
    )
}

GIVES_PARTS = {"deep_feature_factorization": deep_feature_factorization}  # several maps and scores, no one heatmap
FOR_TRANSFORMERS = ("attention_rollout",)  # these read attention weights, and a network without any has no map

__all__ = ["FOR_TRANSFORMERS", "GIVES_PARTS", "METHODS", "heatmap", *METHODS, *GIVES_PARTS]
