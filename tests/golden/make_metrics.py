"""Computes what other libraries say about a small model and random maps, and writes `metrics.npz` beside itself.

    python -m pip install torch==2.13.0 scipy scikit-image scikit-learn opencv-python-headless quantus
    python -m pip install --no-deps captum==0.9.0 grad-cam==1.5.7 ttach torchcam==0.5.0 torchvision
    python -m tests.golden.make_metrics            # from the root of the repository; half a minute

The file holds the model's weights, the maps and masks, and the values; `test_metrics_*.py` read it without any of them.
"""

import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from .make_golden import import_torchvision

LIBRARIES = ("torch", "quantus", "captum", "grad-cam", "torchcam", "scipy", "scikit-image", "numpy")
N, H, W, CLASSES = 3, 12, 16, 4


class Small(torch.nn.Module):
    """3x3 convolution, ReLU, one dense layer on the features in NHWC order."""

    def __init__(self, weights):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.dense = torch.nn.Linear((H - 2) * (W - 2) * 5, CLASSES)
        self.conv.weight.data = torch.tensor(weights["conv"].transpose(3, 2, 0, 1))
        self.conv.bias.data = torch.tensor(weights["bias"])
        self.dense.weight.data, self.dense.bias.data = torch.tensor(weights["dense"].T), torch.zeros(CLASSES)

    def forward(self, x):
        return self.dense(torch.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


class Grey(torch.nn.Module):
    """The same for one channel, which it repeats."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.repeat(1, 3, 1, 1))


def inputs(random) -> dict[str, np.ndarray]:
    def normal(*shape, std=1.0):
        return (std * random.standard_normal(shape)).astype(np.float32)

    def uniform(*shape):
        return random.random(shape).astype(np.float32)

    a = np.round(uniform(4, 20, 31), 1)  # many ties
    masks = np.zeros((N, H, W), bool)
    masks[0, 2:8, 3:9], masks[1, :, :5], masks[2, 5:7, 10:15] = True, True, True
    sparse = np.maximum(uniform(N, H, W) - 0.6, 0)  # most pixels are zero, as in a CAM
    tied = np.zeros((N, H, W), np.float32)
    tied[:, 6, 4] = tied[:, 6, 12] = 1  # one of the two highest pixels is on the object, in each image
    hole = np.zeros((48, 40), bool)
    hole[5:41, 3:30] = True
    return {
        "conv": normal(3, 3, 3, 5, std=0.3),
        "bias": normal(5, std=0.3),
        "dense": normal((H - 2) * (W - 2) * 5, CLASSES, std=0.1),
        "images": normal(N, H, W, 3),
        "heatmaps": uniform(N, H, W),
        "sparse": (sparse / sparse.max((1, 2), keepdims=True)).astype(np.float32),
        "tied": tied,
        "masks": masks,
        "attributions": normal(N, H, W, 3),
        "perturbations": normal(6, H, W, 3, std=0.1),
        "changes": (0.04 * (random.random((4, H, W, 3)) - 0.5)).astype(np.float32),
        "a": a,
        "b": (0.5 * a + 0.5 * uniform(4, 20, 31)).astype(np.float32),
        "picture": np.cumsum(normal(48, 40, 1), 0),
        "hole": hole | (random.random((48, 40)) < 0.3),
    }


def to_torch(images):
    return torch.tensor(images.transpose(0, 3, 1, 2).copy())


def similarity(given):
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    pairs = list(zip(given["a"], given["b"], strict=True))
    yield "scipy/spearman", [spearmanr(a.ravel(), b.ravel())[0] for a, b in pairs]
    yield "skimage/ssim", [structural_similarity(a, b, **options) for a, b in pairs]


def quantus_values(given, model, targets):
    import quantus

    quiet = {"disable_warnings": True, "display_progressbar": False, "abs": False, "normalise": False}
    x, masks = to_torch(given["images"]).numpy(), given["masks"][:, None]

    def run(metric, maps, **options):
        metric = metric(**quiet, **options)
        kwargs = {"a_batch": maps[:, None].copy(), "s_batch": masks.copy()}
        return metric(model=model, x_batch=x, y_batch=targets, device="cpu", **kwargs)

    for maps in ("heatmaps", "sparse"):
        for metric in ("PointingGame", "RelevanceRankAccuracy", "RelevanceMassAccuracy", "Sparseness", "Complexity"):
            yield f"quantus/{metric}/{maps}", run(getattr(quantus, metric), given[maps])
        yield f"quantus/EffectiveComplexity/{maps}", run(quantus.EffectiveComplexity, given[maps], eps=0.25)
    yield "quantus/PointingGame/tied", run(quantus.PointingGame, given["tied"])
    flipping = quantus.PixelFlipping(features_in_step=24, perturb_baseline=0.0, **quiet)
    grey, maps = x[:, :1], given["heatmaps"][:, None]
    curves = flipping(model=Grey(model).eval(), x_batch=grey, y_batch=targets, a_batch=maps, softmax=True, device="cpu")
    yield "quantus/PixelFlipping", curves


class Given:
    """Stands where torch-cam expects an extractor, and hands out the map that it is given."""

    def __init__(self, model, cam):
        self.model, self.cam = model, cam

    def __call__(self, *args, **kwargs):
        return [self.cam]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return torch.no_grad()


def torchcam_values(given, model, targets):
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    softmax = partial(torch.softmax, dim=-1)
    summaries = []
    for image, heatmap, target in zip(given["images"], given["heatmaps"], targets, strict=True):
        extractor, x = Given(model, torch.tensor(heatmap[None])), to_torch(image[None])
        summary = {}
        for name, baseline in (("zero", None), ("mean", x.mean((2, 3), keepdim=True))):
            metric = DeletionInsertionMetric(extractor, softmax, steps=8, baseline=baseline)
            metric.update(x, class_idx=int(target))
            summary |= {f"{key}/{name}": value for key, value in metric.summary().items()}
        metric = ClassificationMetric(extractor, softmax)
        metric.update(x, class_idx=int(target))
        summaries.append(summary | metric.summary())
    for name in summaries[0]:
        yield f"torchcam/{name}", [each[name] for each in summaries]


def gradcam_values(given, model, targets):
    import_torchvision()
    import pytorch_grad_cam.metrics.road as road
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    x, scores = to_torch(given["images"]), [ClassifierOutputSoftmaxTarget(int(each)) for each in targets]
    picture = torch.tensor(given["picture"].transpose(2, 0, 1).copy())
    road.NoisyLinearImputer.__init__.__defaults__ = (0.0, road.neighbors_weights)  # no noise: it has no seed
    yield "gradcam/imputed", road.NoisyLinearImputer()(picture, torch.tensor(~given["hole"]).float()).numpy()[0]
    percentiles = [20, 50, 90]
    for maps in ("heatmaps", "sparse"):
        yield f"gradcam/lerf/{maps}", road.ROADLeastRelevantFirstAverage(percentiles)(x, given[maps], scores, model)
        yield f"gradcam/morf/{maps}", road.ROADMostRelevantFirstAverage(percentiles)(x, given[maps], scores, model)
        yield f"gradcam/combined/{maps}", road.ROADCombined(percentiles)(x, given[maps], scores, model)
    channels = np.repeat(given["heatmaps"][:, None], 3, 1)  # it multiplies, so the map needs the image's axes
    others = [ClassifierOutputSoftmaxTarget((int(each) + 1) % CLASSES) for each in targets]  # scores that may rise
    yield "gradcam/drop", DropInConfidence()(x, channels, others, model)
    yield "gradcam/increase", IncreaseInConfidence()(x, channels, others, model)


def captum_values(given, model, targets):
    from captum.attr import Saliency
    from captum.metrics import infidelity, sensitivity_max

    x, attributions = to_torch(given["images"]), to_torch(given["attributions"])
    targets = torch.tensor(targets)

    def perturb(inputs):
        change = to_torch(given["perturbations"]).repeat(N, 1, 1, 1)
        return change, inputs - change

    for normalize in (False, True):
        values = infidelity(model, perturb, x, attributions, target=targets, n_perturb_samples=6, normalize=normalize)
        yield f"captum/infidelity/{normalize}", values.numpy()

    def explain(inputs, target):  # the images come as a tuple, their changed copies as a tensor
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        return Saliency(model).attribute(tuple(each.requires_grad_() for each in inputs), target=target, abs=False)

    def change(inputs):
        return inputs + to_torch(given["changes"]).repeat(N, 1, 1, 1)

    values = sensitivity_max(explain, x, change, n_perturb_samples=4, target=targets)
    yield "captum/sensitivity", values.numpy()


def main() -> None:
    warnings.simplefilter("ignore")
    given = inputs(np.random.Generator(np.random.PCG64(3)))
    model = Small(given).eval()
    with torch.no_grad():
        logits = model(to_torch(given["images"])).numpy()
    targets = logits.argmax(1)
    contents = given | {"logits": logits, "versions": np.array([f"{each} {version(each)}" for each in LIBRARIES])}
    contents |= dict(similarity(given))
    for library in (quantus_values, torchcam_values, gradcam_values, captum_values):
        contents |= {name: np.asarray(values, np.float32) for name, values in library(given, model, targets)}
    path = Path(__file__).parent / "metrics.npz"
    np.savez_compressed(path, **contents)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
