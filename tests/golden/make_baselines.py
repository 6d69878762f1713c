"""Computes by Captum what has several baselines or noise, and the gradient times the input: `baselines.npz`.

    python -m pip install -e ".[torch]"
    python -m tests.golden.make_baselines          # from the root of the repository; seconds

The network and the images are those of `make_rules.py`, whose file holds them. Gradient SHAP is given the baselines and
the places between them and the image that jaxcam draws, and NoiseTunnel its noise.
"""

from importlib.metadata import version
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import torch
from captum.attr import DeepLift, DeepLiftShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from captum.attr._core.gradient_shap import InputBaselineXGradient

from jaxcam._noise import noisy_copies
from jaxcam.attribution import paths

from .make_rules import TARGETS, network

FOLDER = Path(__file__).parent
COUNT, NUM_SAMPLES, NUM_STEPS, DEVIATION = 4, 9, 20, 0.3
TUNNELS = {"smooth_grad": "smoothgrad", "smooth_grad_squared": "smoothgrad_sq", "var_grad": "vargrad"}


def gradient_shap(images, baselines, multiply: bool):
    """Captum's `GradientShap` without noise, with jaxcam's draws: attributions, and the delta of each draw."""
    draw, place = jax.random.split(jax.random.key(3))
    picks = np.array(jax.random.randint(draw, (NUM_SAMPLES,), 0, COUNT))
    places = np.array(paths._places(place, NUM_SAMPLES), np.float64)
    found = []
    for image, target in zip(images, TARGETS, strict=True):
        copies = image.expand(NUM_SAMPLES, *image.shape)
        method = InputBaselineXGradient(network(), multiply_by_inputs=multiply)
        with mock.patch("numpy.random.uniform", lambda *_: places):
            one = method.attribute(copies, baselines[picks], target=target, return_convergence_delta=True)
        found.append((one[0].mean(0), one[1]))
    return [torch.stack(each) for each in zip(*found, strict=True)]


def of_noise(images, kind: str):
    """Captum's `NoiseTunnel` of the signed gradient, with jaxcam's draws."""
    flat = np.zeros((len(images), *images.permute(0, 2, 3, 1).shape[1:]), np.float32)
    deviation = np.full((len(images), 1, 1, 1), DEVIATION, np.float32)
    noise = np.array(noisy_copies(jax.numpy.asarray(flat), deviation, jax.random.key(3), np.arange(NUM_SAMPLES)))
    noise = torch.from_numpy(noise.transpose(0, 1, 4, 2, 3).reshape(-1, *images.shape[1:]))
    with mock.patch("torch.normal", lambda *_: noise):
        method = NoiseTunnel(Saliency(network()))
        options = {"nt_type": kind, "nt_samples": NUM_SAMPLES, "stdevs": DEVIATION, "abs": False}
        return method.attribute(images, target=TARGETS, **options)


def main():
    with np.load(FOLDER / "rules.npz") as file:
        images, baseline = (torch.from_numpy(file[name].transpose(0, 3, 1, 2)) for name in ("images", "baseline"))
    random = np.random.Generator(np.random.PCG64(11))
    baselines = torch.from_numpy(random.uniform(0, 1, (COUNT, *images.shape[1:])).astype(np.float32))
    results = {"baselines": baselines}
    for multiply in (True, False):
        end = "" if multiply else "_multipliers"
        methods = {
            "deep_lift": (DeepLift(network(), multiply), baseline, {}),
            "deep_lift_shap": (DeepLiftShap(network(), multiply), baselines, {}),
            "integrated_gradients": (IntegratedGradients(network(), multiply), baseline, {"n_steps": NUM_STEPS}),
        }
        for name, (method, given, options) in methods.items():
            found = method.attribute(images, given, target=TARGETS, return_convergence_delta=True, **options)
            results[name + end], results[f"{name}_delta{end}"] = found
        name = "gradient_shap"
        results[name + end], results[f"{name}_delta{end}"] = gradient_shap(images, baselines, multiply)
    results |= {name: of_noise(images, kind) for name, kind in TUNNELS.items()}
    results["input_x_gradient"] = InputXGradient(network()).attribute(images, target=TARGETS)
    results = {name: each for name, each in results.items() if not name.endswith("_delta_multipliers")}
    arrays = {name: each.detach().numpy() for name, each in results.items()}
    arrays = {name: each.transpose(0, 2, 3, 1) if each.ndim == 4 else each for name, each in arrays.items()}
    arrays["deep_lift_shap_delta"] = arrays["deep_lift_shap_delta"].reshape(len(TARGETS), COUNT)
    arrays["versions"] = np.array([f"{name} {version(name)}" for name in ("torch", "captum")])
    np.savez_compressed(FOLDER / "baselines.npz", **arrays)


if __name__ == "__main__":
    main()
