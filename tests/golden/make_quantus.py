"""Computes what Quantus says of the model and the maps of `metrics.npz`, and writes `quantus.npz` beside itself.

    python -m pip install torch==2.13.0 scipy scikit-image scikit-learn opencv-python-headless cachetools tqdm pandas
    python -m pip install --no-deps quantus==0.6.0 grad-cam==1.5.7 saliency==0.2.1
    python -m tests.golden.make_quantus            # from the root of the repository; half a minute

Where Quantus draws random numbers, it is given those of `metrics.npz` instead. `test_metrics_quantus.py` reads the
values without any of the libraries.
"""

import sys
import warnings
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from .make_golden import import_torchvision
from .make_metrics import Grey, Small, inputs, to_torch
from .rebuild import noisy_copies, pictures

LIBRARIES = ("quantus", "grad-cam", "saliency", "pillow", "torch", "numpy", "scipy", "scikit-image", "scikit-learn")
QUIET = {"disable_warnings": True, "display_progressbar": False, "abs": False, "normalise": False}


class Layered(Small):
    """The same, its ReLU a layer of its own, so that Quantus sees what comes out of it."""

    def __init__(self, weights):
        super().__init__(weights)
        self.relu = torch.nn.ReLU()

    def forward(self, x):
        return self.dense(self.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


def gradient(model, inputs, targets, **_):
    x = torch.tensor(np.asarray(inputs, np.float32)).requires_grad_()
    torch.nn.Module.__call__(model, x).gather(1, torch.tensor(targets)[:, None]).sum().backward()
    return x.grad.numpy()


def given_changes(changes):
    """A function of Quantus's kind that adds each of `changes [m, h, w, c]` in turn to all images."""
    following = cycle(changes.transpose(0, 3, 1, 2).reshape(len(changes), -1))

    def perturb(arr, indices, **_):
        return arr + next(following)

    return perturb


def robustness(quantus, given, model, targets):
    x, changes = to_torch(given["images"]).numpy(), given["changes"]

    def run(metric, **options):
        if metric is not quantus.Continuity:
            options |= {"nr_samples": len(changes), "perturb_func": given_changes(changes)}
        call = {"model": model, "x_batch": x, "y_batch": targets, "a_batch": None, "device": "cpu", "softmax": False}
        return metric(**QUIET, **options)(**call, explain_func=gradient, batch_size=len(x))

    yield "MaxSensitivity", run(quantus.MaxSensitivity)
    yield "AvgSensitivity", run(quantus.AvgSensitivity)
    yield "LocalLipschitzEstimate", run(quantus.LocalLipschitzEstimate)
    yield "RelativeInputStability", run(quantus.RelativeInputStability)
    yield "RelativeOutputStability", run(quantus.RelativeOutputStability)
    yield "RelativeRepresentationStability", run(quantus.RelativeRepresentationStability, layer_names=["relu"])
    yield "Continuity", run(quantus.Continuity, nr_steps=7)


def faithfulness(quantus, given, model, _targets):
    """On images of one channel, so that a feature is a pixel, as everywhere in jaxcam."""
    grey, x, maps = Grey(model).eval(), given["images"][..., 0][:, None], given["heatmaps"][:, None]
    with torch.no_grad():
        targets = grey(torch.tensor(x)).numpy().argmax(1)

    def run(metric, maps=maps, softmax=True, **options):
        call = {"x_batch": x, "y_batch": targets, "a_batch": maps.copy(), "device": "cpu", "softmax": softmax}
        return metric(**QUIET, **options)(model=grey, **call)

    zero = {"perturb_baseline": 0.0}
    yield "Selectivity", run(quantus.Selectivity, patch_size=4, **zero)
    yield "RegionPerturbation", run(quantus.RegionPerturbation, patch_size=4, regions_evaluation=7, **zero)
    cells = np.arange(192).reshape(12, 16) // 2 % 8 + 8 * (np.arange(12)[:, None] // 3)
    quantus.helpers.utils.get_superpixel_segments = lambda **_: cells
    yield "IROF", run(quantus.IROF, return_aggregate=False, **zero)
    options = {"features_in_step": 24, "nr_samples": 1, **zero}
    yield "MonotonicityCorrelation", run(quantus.MonotonicityCorrelation, **options)
    yield "Monotonicity", run(quantus.Monotonicity, features_in_step=24, **zero)
    sparse, still = given["sparse"][:, None], given["images"][..., 0].copy()
    still[:, ::3] = 0  # where nothing can change
    x = still[:, None]
    yield "NonSensitivity", run(quantus.NonSensitivity, sparse, softmax=False, **zero)


def localization(quantus, given, model, targets):
    x, masks = to_torch(given["images"]).numpy(), given["masks"][:, None]

    def run(metric, maps, **options):
        call = {"x_batch": x, "y_batch": targets, "a_batch": maps[:, None].copy(), "s_batch": masks.copy()}
        return metric(**QUIET, **options)(model=model, **call, device="cpu")

    for maps in ("heatmaps", "sparse"):
        yield f"AUC/{maps}", run(quantus.AUC, given[maps])
    yield "AttributionLocalisation", run(quantus.AttributionLocalisation, given["heatmaps"])
    yield "TopKIntersection", run(quantus.TopKIntersection, given["heatmaps"], k=19)
    yield "TopKIntersection/influence", run(quantus.TopKIntersection, given["heatmaps"], k=19, concept_influence=True)
    tiles = [(0, 1, 1, 0), (1, 1, 0, 0), (1, 0, 0, 1)]
    call = {"x_batch": x, "y_batch": targets, "a_batch": given["attributions"][..., :1].transpose(0, 3, 1, 2).copy()}
    yield "Focus", quantus.Focus(**QUIET)(model=model, **call, custom_batch=tiles, device="cpu")


def sanity(quantus, given, model, targets):
    x, similarity = to_torch(given["images"]).numpy(), quantus.similarity_func.correlation_pearson

    def run(metric, model=model, **options):
        call = {"x_batch": x, "y_batch": targets, "a_batch": None, "device": "cpu", "softmax": True}
        return metric(**QUIET, **options)(model=model, **call, explain_func=gradient, batch_size=len(x))

    torch.manual_seed(43)  # as Quantus does for each layer of its own seed 42
    drawn = Layered(given)
    for layer in (drawn.conv, drawn.dense):
        torch.manual_seed(43)
        layer.reset_parameters()
    yield "weights/conv", drawn.conv.weight.detach().numpy().transpose(2, 3, 1, 0)
    yield "weights/bias", drawn.conv.bias.detach().numpy()
    yield "weights/dense", drawn.dense.weight.detach().numpy().T
    yield "EfficientMPRT", run(quantus.EfficientMPRT)
    quantus.explain = gradient  # which SmoothMPRT calls, whatever function it is given
    for name, order, metric in (
        ("MPRT", "top_down", quantus.MPRT),
        ("MPRT/independent", "independent", quantus.MPRT),
        ("SmoothMPRT", "bottom_up", quantus.SmoothMPRT),
    ):
        options = {"layer_order": order, "similarity_func": similarity} | (
            {} if metric is quantus.MPRT else {"nr_samples": 1}
        )
        for layer, values in run(metric, **options).items():
            yield f"{name}/{layer}", values
    two = torch.nn.Sequential(model, First())
    targets = targets % 2
    yield "RandomLogit", run(quantus.RandomLogit, two, num_classes=2, similarity_func=similarity)


class First(torch.nn.Module):
    """The first two classes."""

    def forward(self, logits):
        return logits[:, :2]


def batches(quantus, given, model, _targets):
    images, maps = noisy_copies(given["images"], given["heatmaps"])
    call = {"x_batch": to_torch(images).numpy(), "y_batch": np.zeros(10, int), "a_batch": maps[:, None].copy()}
    options = QUIET | {"threshold": 0.9}
    yield "Sufficiency", quantus.Sufficiency(**options)(model=model, **call, device="cpu")
    call["a_batch"] = maps[:, None] - 0.5
    options = QUIET | {"discretise_func": lambda a: hash(bytes(np.sign(a[:2])))}
    yield "Consistency", quantus.Consistency(**options)(model=model, **call, device="cpu")


def information(*_):
    """PAIR's curves, of pictures whose bytes are those that the model sees."""
    from saliency.metrics import pic

    images, maps, known, weights = pictures()

    def softmax(shown):
        return 1 / (1 + np.exp(6 - np.sum(shown / 255 * weights, (1, 2, 3))))

    for name, predict in (("SIC", softmax), ("AIC", lambda shown: (softmax(shown) > 0.5).astype(float))):
        given = {"pred_func": predict, "saliency_thresholds": [0.02, 0.05, 0.1, 0.2, 0.5], "min_pred_value": 0}
        curves = [pic.compute_pic_metric(*each, known, **given) for each in zip(images, maps, strict=True)]
        yield f"pic/{name}", [each.auc for each in curves]
        yield f"pic/{name}/curve", [each.curve_y[::50] for each in curves]


def arcc(_quantus, given, model, targets):
    """What pytorch-grad-cam 1.5.7 has beyond the metrics of `metrics.npz`."""
    import_torchvision()
    from pytorch_grad_cam.metrics import arcc, road
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    road.NoisyLinearImputer.__init__.__defaults__ = (0.0, road.neighbors_weights)  # no noise: it has no seed
    x, scores = to_torch(given["images"]), [ClassifierOutputSoftmaxTarget(int(each)) for each in targets]

    def heatmaps(input_tensor, targets):
        maps = np.abs(gradient(model, input_tensor.numpy(), np.array([each.category for each in targets]))).sum(1)
        return maps / maps.max((1, 2), keepdims=True)

    maps = heatmaps(x, scores)
    yield "gradcam/Complexity", arcc.Complexity()(maps)
    yield "gradcam/Coherency", arcc.Coherency()(x, maps, scores, model, heatmaps)
    yield "gradcam/ARCC", arcc.ARCC(heatmaps)(x, maps, scores, model)


def main() -> None:
    warnings.simplefilter("ignore")
    setattr(np, "trapz", np.trapezoid)  # noqa: B010 - Quantus calls it by the name that NumPy no longer has
    import_torchvision()
    import quantus

    given = inputs(np.random.Generator(np.random.PCG64(3)))
    model = Layered(given).eval()
    with torch.no_grad():
        targets = model(to_torch(given["images"])).numpy().argmax(1)
    contents = {"versions": np.array([f"{each} {version(each)}" for each in LIBRARIES])}
    for family in (robustness, faithfulness, localization, sanity, batches, information, arcc):
        contents |= {name: np.asarray(values, np.float32) for name, values in family(quantus, given, model, targets)}
    path = Path(__file__).parent / "quantus.npz"
    np.savez_compressed(path, **contents)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
