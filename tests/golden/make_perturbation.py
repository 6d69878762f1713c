"""Computes attributions by perturbation with Captum, and writes `perturbation.npz` beside itself.

    python -m pip install -e ".[torch]" scikit-learn
    python -m tests.golden.make_perturbation        # from the root of the repository; half a minute

The model is small enough for its weights to be stored too, so the file needs nothing else. Where a method draws
samples, Captum is given those that jaxcam draws: they are stored, and `test_perturbation.py` first checks that they are
drawn again.
"""

from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnLasso, SkLearnRidge
from captum.attr import FeatureAblation, KernelShap, Lime, Occlusion, ShapleyValues, ShapleyValueSampling

from jaxcam.attribution import perturbation

PATH = Path(__file__).parent / "perturbation.npz"
SHAPE, NUM_CLASSES, NUM_SEGMENTS = (10, 13), 5, 6
SAMPLES = {"lime": 40, "kernel_shap": 30, "shapley_sampling": 7}
BASELINE, TARGETS, ALPHA = 0.3, (1, 4), 0.1


def inputs() -> dict[str, np.ndarray]:
    """A convolution with stride 2 and a dense layer, two images, and two segmentations."""
    random = np.random.default_rng(3)
    blocks = np.arange(SHAPE[0])[:, None] * 2 // SHAPE[0] * 3 + np.arange(SHAPE[1]) * 3 // SHAPE[1]
    scattered = random.integers(0, NUM_SEGMENTS, SHAPE)
    fewer = np.minimum(scattered[::-1], NUM_SEGMENTS - 2)  # the last label does not occur
    return {
        "kernel": random.normal(size=(3, 3, 3, 4)).astype(np.float32) / 5,
        "bias": random.normal(size=4).astype(np.float32),
        "dense": random.normal(size=(4 * 6 * 4, NUM_CLASSES)).astype(np.float32) / 5,
        "images": random.normal(size=(2, *SHAPE, 3)).astype(np.float32),
        "blocks": blocks.astype(np.int32),
        "scattered": np.stack([scattered, fewer]).astype(np.int32),
    }


def torch_model(given: dict[str, np.ndarray]):
    """`images [n, c, h, w] -> logits`, as `test_perturbation.py` has it for `[n, h, w, c]`."""
    kernel = torch.from_numpy(given["kernel"]).permute(3, 2, 0, 1)
    bias, dense = torch.from_numpy(given["bias"]), torch.from_numpy(given["dense"])

    def model(x):
        features = torch.nn.functional.conv2d(x, kernel, bias, stride=2).relu()
        return features.permute(0, 2, 3, 1).flatten(1) @ dense

    return model


def drawn(method: str) -> np.ndarray:
    """Which segments each sample of jaxcam's keeps, `[s, d]`."""
    design = {
        "lime": perturbation._local_linear_model,
        "kernel_shap": perturbation._shapley_kernel,
        "shapley_sampling": perturbation._random_orders,
    }[method]
    options = {"kernel_width": 0.25, "alpha": 0.0} if method == "lime" else {}
    plan = design(jax.random.key(5), jnp.ones((1, NUM_SEGMENTS)), SAMPLES[method], **options)
    return np.array(plan.keep(jnp.arange(plan.num_samples)), np.float32)


def generator(masks: np.ndarray):
    """Captum's `perturb_func`, a generator of one mask after another."""

    def perturb(_, **__):
        for mask in masks:
            yield torch.from_numpy(mask[None]).long()

    return perturb


def similarity(_, __, mask, **___):
    distance = 1 - torch.sqrt(mask.float().mean())
    return torch.exp(-((distance / 0.25) ** 2) / 2)


def attributions(given: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each method's map by Captum, `[2, h, w]`."""
    model = torch_model(given)
    results: dict[str, list] = {}
    for index, target in enumerate(TARGETS):
        x = torch.from_numpy(given["images"][index : index + 1]).permute(0, 3, 1, 2).contiguous()
        scattered = torch.from_numpy(given["scattered"][index])[None, None].long()
        blocks = torch.from_numpy(given["blocks"])[None, None].long()
        common = {"target": target, "baselines": BASELINE}
        lime_weights = np.array([similarity(0, 0, torch.from_numpy(mask)).item() for mask in samples["lime"]])
        ridge = SkLearnRidge(alpha=float(perturbation.RIDGE * lime_weights.sum()))
        lime = Lime(model, ridge, similarity, generator(samples["lime"]))
        lasso = Lime(model, SkLearnLasso(alpha=ALPHA, tol=1e-7), similarity, generator(samples["lime"]))
        shap = KernelShap(model)
        shap.perturb_func = generator(samples["kernel_shap"])
        orders = ShapleyValueSampling(model)
        kept = samples["shapley_sampling"][2:].reshape(SAMPLES["shapley_sampling"], NUM_SEGMENTS - 1, NUM_SEGMENTS)
        places = NUM_SEGMENTS - 1 - kept.sum(1)  # a segment that comes first is kept in all steps
        orders.permutation_generator = lambda *_, places=places: (row.argsort().tolist() for row in places)
        maps = {
            "occlusion": Occlusion(model).attribute(x, (3, 3, 4), (3, 2, 3), **common),
            "feature_ablation": FeatureAblation(model).attribute(x, feature_mask=scattered, **common),
            "exact": ShapleyValues(model).attribute(x, feature_mask=scattered, **common),
            "lime": lime.attribute(x, feature_mask=blocks, n_samples=SAMPLES["lime"], **common),
            "lime_lasso": lasso.attribute(x, feature_mask=blocks, n_samples=SAMPLES["lime"], **common),
            "kernel_shap": shap.attribute(x, feature_mask=blocks, n_samples=SAMPLES["kernel_shap"] + 2, **common),
            "shapley_sampling": orders.attribute(
                x, feature_mask=blocks, n_samples=SAMPLES["shapley_sampling"], **common
            ),
        }
        for name, value in maps.items():
            results.setdefault(name, []).append(value[0, 0].numpy())
    return {name: np.stack(values).astype(np.float32) for name, values in results.items()}


def main() -> None:
    given = inputs()
    samples = {method: drawn(method) for method in SAMPLES}
    np.savez_compressed(
        PATH,
        versions=np.array([f"{library} {version(library)}" for library in ("torch", "captum", "scikit-learn", "jax")]),
        **given,
        **{f"samples/{name}": value for name, value in samples.items()},
        **{f"map/{name}": value for name, value in attributions(given, samples).items()},
    )
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
