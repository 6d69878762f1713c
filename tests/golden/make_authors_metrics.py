"""Runs the code of those who coined a metric, and writes `authors_metrics.npz`.

    python -m pip install torch captum scipy scikit-learn opencv-python-headless tqdm matplotlib pillow
    python -m tests.golden.make_authors_metrics FOLDER     # from the root of the repository; some seconds

FOLDER holds clones of the repositories of `CLONES`, each at its commit. Of a metric whose authors published no code
that runs, the parts are Captum's (what is explained) and SciPy's or scikit-learn's (what is compared). The model, the
images and the maps are those of `metrics.npz`.
"""

from pathlib import Path

import jax
import numpy as np
import torch
from scipy import ndimage

from jaxcam.metrics import mosaic

from .make_authors import KEY, find, imported, on_this_device, small, write
from .make_metrics import Grey, to_torch

PATH = Path(__file__).parent / "authors_metrics.npz"
CLONES = {
    "eclique/RISE": "d91ea006d4bb9b7990347fe97086bdc0f5c1fe10",
    "Trusted-AI/AIX360": "783f8365d4f63bf8be8b53befacdab9fbbbb7335",
    "clovaai/wsolevaluation": "96f4b88679af41f005824661f47e6fe3628af2aa",
    "aimagelab/ADCC": "e52dadf733b405ab6a9eb13af3aedda3bf61407b",
    "HPAI-BSC/Focus-Metric": "900efc41383e6d074c7df9d99f6150024539059b",
}
STEPS, LEVELS, SHIFT = 24, 10, 0.7


def given(name: str) -> np.ndarray:
    with np.load(PATH.parent / "metrics.npz") as file:
        return file[name]


def gradients(module, images, targets) -> np.ndarray:
    """The gradient of the score, `[n, h, w, c]`, by Captum."""
    from captum.attr import Saliency

    x = to_torch(images).requires_grad_()
    found = Saliency(module).attribute(x, target=torch.tensor(targets), abs=False)
    return found.permute(0, 2, 3, 1).detach().numpy()


def magnitudes(module, images, targets) -> np.ndarray:
    maps = np.abs(gradients(module, images, targets)).sum(-1)
    return maps / maps.max((1, 2), keepdims=True)


def rise_curves(folder):
    """Deletion and insertion, each image by itself."""
    module, images, _ = small()
    module, pixels = torch.nn.Sequential(module, torch.nn.Softmax(1)), images[0, ..., 0].size
    path = find(folder, "eclique/RISE", CLONES)
    # SciPy moved the filters, and `utils` makes a data loader of ImageNet.
    with imported(path, "evaluation", stubs={"scipy.ndimage.filters": ndimage, "utils": ""}) as (library,):
        library.torch, library.np, library.HW = torch, np, pixels
        for mode in ("deletion", "insertion"):
            metric, areas = library.CausalMetric(module, mode[:3], pixels // STEPS, torch.zeros_like), []
            with on_this_device(), torch.no_grad():
                for image, heatmap in zip(to_torch(images), given("heatmaps"), strict=True):
                    areas.append(library.auc(metric.single_run(image[None], heatmap)))
            yield f"{mode}/RISE", areas


class Classifier:
    """A model as AIX360 takes it: rows of numbers, here the pixels of a grey image."""

    def __init__(self, module, space):
        self.module, self.space = Grey(module).eval(), space

    @torch.no_grad()
    def predict_proba(self, rows):
        images = torch.tensor(rows, dtype=torch.float32).reshape(-1, 1, *self.space)
        return torch.softmax(self.module(images), 1).numpy()


def monotonicity(folder):
    """Of three pixels on an empty image, so that some of the maps are monotonic: one feature at a time."""
    module, images, _ = small()
    space = images.shape[1:3]
    path = find(folder, "Trusted-AI/AIX360", CLONES) / "aix360" / "metrics"
    random, model = np.random.default_rng(4), Classifier(module, space)
    with imported(path, "local_metrics") as (library,):
        rows, found = [], []
        for image in images[..., 0]:
            for _ in range(6):
                row, places = np.zeros(space, np.float32), random.integers((3, 3), (9, 13), (3, 2))
                row[tuple(places.T)] = image[tuple(places.T)]
                heatmap = random.permutation(row.size).astype(np.float32)
                heatmap[row.ravel() == 0] -= row.size  # which change nothing come first
                found.append(library.monotonicity_metric(model, row.ravel(), heatmap, np.zeros(row.size, np.float32)))
                rows.append((row, heatmap.reshape(space)))
    for name, values in zip(("images", "heatmaps"), zip(*rows, strict=True), strict=True):
        yield f"monotonicity/given/{name}", np.stack(values)
    yield "monotonicity/AIX360", found


def boxes(folder):
    """On large maps: the code counts a box as one pixel longer than its part, on both axes."""
    random = np.random.default_rng(8)
    noise = ndimage.gaussian_filter(random.standard_normal((6, 12, 16)), (0, 1.5, 1.5))
    low, high = (each(noise, (1, 2), keepdims=True) for each in (np.min, np.max))
    # Few values, so that bytes, which the code makes of them, lie on the same side of each level.
    maps = np.kron(np.round((noise - low) / (high - low) * 9) / 9, np.ones((16, 16)))
    masks = np.zeros(maps.shape, bool)
    for mask in masks:
        top, left = random.integers(0, 90, 2)
        mask[top : top + random.integers(60, 100), left : left + random.integers(60, 150)] = True
    levels = (np.arange(LEVELS) / LEVELS).tolist()
    unused = {"config": "str2bool", "data_loaders": "configure_metadata get_image_ids get_bounding_boxes "}
    unused["data_loaders"] += "get_image_sizes get_mask_paths"
    setattr(np, "float", float)  # noqa: B010 - as NumPy was
    overlaps = []
    with imported(find(folder, "clovaai/wsolevaluation", CLONES), "evaluation", stubs=unused) as (library,):
        for heatmap, mask in zip(maps, masks, strict=True):
            inside = np.argwhere(mask)
            begin, end = inside.min(0), inside.max(0) + 1
            truth = np.array([[begin[1], begin[0], end[1], end[0]]])
            found, _ = library.compute_bboxes_from_scoremaps(heatmap, levels)
            overlaps.append(library.calculate_multiple_iou(np.concatenate(found), truth)[:, 0])
    delattr(np, "float")
    yield "max_box_acc/given/heatmaps", maps[:, ::16, ::16]
    yield "max_box_acc/given/masks", masks
    yield "max_box_acc/wsolevaluation", np.array(overlaps) >= 0.13


def adcc(folder):
    module, images, targets = small()

    def method(image, model, classidx):
        maps = magnitudes(model, image.permute(0, 2, 3, 1).detach().numpy(), np.array([classidx]))
        return torch.tensor(maps)[:, None]

    with imported(find(folder, "aimagelab/ADCC", CLONES), "metrics.adcc") as (library,):
        parts = []
        for image, target in zip(to_torch(images), targets, strict=True):
            heatmap = method(image[None], module, target)
            parts.append(library.ADCC(image[None], heatmap, image * heatmap, module, method, debug=True)[:4])
    for name, values in zip(
        ("adcc", "average_drop", "coherency", "l1_complexity"), zip(*parts, strict=True), strict=True
    ):
        yield f"{name}/ADCC", [float(each) for each in values]


def focus(folder):
    """Of mosaics that jaxcam lays, through a model that takes images of any size."""
    module, images, _ = small()
    images = np.concatenate([images, images[:, ::-1]])
    targets = np.array([0, 1, 2, 0, 1, 1])
    mosaics, masks = map(np.asarray, mosaic._mosaics(images, targets, jax.random.key(KEY)))
    rows, columns = (slice(None, None, side) for side in images.shape[1:3])
    inside = masks[:, rows, columns].reshape(len(masks), -1)  # of each tile, whether it is of the class
    maps = gradients(Pooled(module), mosaics, targets).sum(-1)
    with imported(find(folder, "HPAI-BSC/Focus-Metric", CLONES) / "evaluation", "focus_metric") as (library,):
        values = [library.compute_focus(heatmap, True, order) for heatmap, order in zip(maps, inside, strict=True)]
    yield "focus/draws", inside
    yield "focus/Focus", values


class Pooled(torch.nn.Module):
    """The convolution of the small model, averaged, and the first rows of its dense layer."""

    def __init__(self, module):
        super().__init__()
        self.conv, self.weight = module.conv, module.dense.weight[:, :5]

    def forward(self, x):
        return torch.tanh(self.conv(x)).mean((2, 3)) @ self.weight.T


def by_captum(_folder):
    """Attributions and drops of the score by Captum, compared by SciPy."""
    from captum.attr import InputXGradient, IntegratedGradients, Occlusion
    from scipy.stats import pearsonr, spearmanr

    module, images, targets = small()
    x, classes, maps = to_torch(images), torch.tensor(targets), given("heatmaps")
    attributions, delta = IntegratedGradients(module).attribute(
        x, target=classes, n_steps=3, return_convergence_delta=True
    )
    yield "completeness/given", attributions.permute(0, 2, 3, 1).numpy()
    yield "completeness/captum", delta.abs().numpy()

    probability = torch.nn.Sequential(module, torch.nn.Softmax(1))
    drops = Occlusion(probability).attribute(x, (3, 4, 4), (3, 4, 4), target=classes)[:, 0, ::4, ::4].numpy()
    sums = maps.reshape(3, 3, 4, 4, 4).sum((2, 4))
    pairs = list(zip(sums.reshape(3, -1), drops.reshape(3, -1), strict=True))
    yield "occlusion_correlation/captum", [pearsonr(*pair)[0] for pair in pairs]

    other, shifted = (type(module)({name: given(name) for name in ("conv", "bias", "dense")}).eval() for _ in range(2))
    weights = np.random.default_rng(11).standard_normal(module.dense.weight.shape).astype(np.float32)
    other.dense.weight.data = torch.tensor(weights)
    yield "label_randomization/given", weights.T
    first, second = (np.abs(gradients(each, images, targets)).sum(-1).reshape(3, -1) for each in (module, other))
    yield "label_randomization/captum", [spearmanr(*pair)[0] for pair in zip(first, second, strict=True)]

    # As in the paper the bias takes the shift off again, which is exact for a convolution without padding.
    shifted.conv.bias.data -= SHIFT * shifted.conv.weight.data.sum((1, 2, 3))
    first = InputXGradient(module).attribute(x, target=classes).detach().flatten(1).numpy()
    second = InputXGradient(shifted).attribute(x + SHIFT, target=classes).detach().flatten(1).numpy()
    yield "input_invariance/captum", [spearmanr(*pair)[0] for pair in zip(first, second, strict=True)]


def by_scikit_learn(_folder):
    from sklearn.metrics import jaccard_score

    maps, masks, a, b = (given(name) for name in ("heatmaps", "masks", "a", "b"))
    low, high = (each(maps, (1, 2), keepdims=True) for each in (np.min, np.max))
    found = (maps - low) / (high - low) >= 0.6
    pairs = zip(found.reshape(3, -1), masks.reshape(3, -1), strict=True)
    yield "iou_with_mask/scikit_learn", [jaccard_score(*pair) for pair in pairs]
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    tops = [each >= np.sort(each, 1)[:, -round(0.1 * each.shape[1]), None] for each in (a, b)]
    yield "iou_top/scikit_learn", [jaccard_score(*pair) for pair in zip(*tops, strict=True)]


def main() -> None:
    metrics = (rise_curves, monotonicity, boxes, adcc, focus, by_captum, by_scikit_learn)
    write(PATH, ("torch", "captum", "scipy", "scikit-learn"), CLONES, metrics)


if __name__ == "__main__":
    main()
