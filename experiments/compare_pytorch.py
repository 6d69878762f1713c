"""The same weights and images through this package and through pytorch-grad-cam and Captum: same maps, and how fast?

    pip install -e '.[torch]'
    python -m experiments.compare_pytorch --data-dir DIR [--model NAME_OR_PATH | --random-resnet50]

Compares every method that both sides have: largest difference, Pearson correlation, and the median time of each side,
run in turn. Methods that draw at random can only agree within their noise. Not compared: RandomCAM and deep feature
factorisation, which begin at random; LRP, for which Captum takes sums and BatchNorm as layers with rules of their own;
LIME and expected gradients (Captum's GradientShap), where the two sides draw from other distributions. Each method is
saved as it is done. Writes metrics.json, table.md and maps.png.
"""

import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import jaxcam
from experiments import _report, _study
from jaxcam import _files, metrics, plot
from jaxcam.score import log_probability, logit

NOISE = 0.15  # of SmoothGrad and its kin, as a share of the image's range
PARTS = 4  # patches along each side: Captum takes them away one at a time


class Case(NamedTuple):
    """How the other library computes the map, and with which options of ours it is the same."""

    library: str
    theirs: Callable  # of the `_torch.Side`
    ours: Callable = lambda side: {}
    random: bool = False


def cam(name, ours=None, **options):
    return Case("pytorch-grad-cam", lambda side: side.cam(name, **options), lambda side: ours or {})


def captum(name, ours=lambda side: {}, theirs=lambda side: {}, random=False, **options):
    return Case("Captum", lambda side: side.attribute(name, **theirs(side), **options), ours, random)


def rest(logits, targets):
    """What ShapleyCAM explains in pytorch-grad-cam."""
    return logit(logits, targets) + log_probability(logits, targets)


def deviation(image):
    return {"stdevs": NOISE * float(np.ptp(image))}  # Captum's is absolute


def noisy(kind):
    def theirs(side):
        options = {"inner": "Saliency", "nt_type": kind, "nt_samples": side.samples, "abs": False}
        return side.one_by_one("NoiseTunnel", deviation, **options)

    return Case("Captum", theirs, lambda side: {"noise": NOISE, "num_samples": side.samples}, random=True)


def patches(name, **options):
    """A method that takes patches away; with samples, one that draws which."""
    random = "samples" in options
    return captum(
        name,
        lambda side: {"segments": side.patches} | ({"num_samples": side.samples} if random else {}),
        lambda side: {"feature_mask": side.feature_mask} | ({"n_samples": side.samples} if random else {}),
        random,
    )


CASES = {
    "grad_cam": cam("GradCAM"),
    "grad_cam_plus_plus": cam("GradCAMPlusPlus"),
    "x_grad_cam": cam("XGradCAM"),
    "hires_cam": cam("HiResCAM"),
    "layer_cam": cam("LayerCAM"),
    "grad_cam_elementwise": cam("GradCAMElementWise"),
    "shapley_cam": cam("ShapleyCAM", {"score": rest}, target="ClassifierOutputReST"),
    "finer_cam": cam("FinerCAM"),
    "score_cam": cam("ScoreCAM"),
    "ablation_cam": cam("AblationCAM"),
    "eigen_cam": cam("EigenCAM", positive=lambda A, G: A),
    "eigen_grad_cam": cam("EigenGradCAM", positive=lambda A, G: A * G),
    "kpca_cam": cam("KPCA_CAM", positive=lambda A, G: A),
    "fem": cam("FEM"),
    "full_grad": cam("FullGrad"),
    "saliency": captum("Saliency", abs=False),
    "input_x_gradient": captum("InputXGradient"),
    "integrated_gradients": captum("IntegratedGradients", n_steps=50),
    "guided_backprop": captum("GuidedBackprop"),
    "deconvnet": captum("Deconvolution"),
    "guided_grad_cam": Case(
        "Captum", lambda side: side.attribute("GuidedGradCam", side.layer), lambda side: {"interpolation": "nearest"}
    ),
    "deep_lift": captum("DeepLift"),
    "occlusion": captum(
        "Occlusion",
        lambda side: {"window": side.window, "stride": side.window},
        lambda side: {"sliding_window_shapes": (3, side.window, side.window), "strides": (3, side.window, side.window)},
    ),
    "feature_ablation": patches("FeatureAblation"),
    "shapley_sampling": patches("ShapleyValueSampling", samples=True),
    "kernel_shap": patches("KernelShap", samples=True),
    "smooth_grad": noisy("smoothgrad"),
    "smooth_grad_squared": noisy("smoothgrad_sq"),
    "var_grad": noisy("vargrad"),
}


COMMAND = "python -m experiments.compare_pytorch --data-dir DIR"


def main(argv=None):
    parser = _study.arguments("compare_pytorch", __doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18_cifar10", help="a registered name, a weight file or hf:owner/repo")
    parser.add_argument("--architecture", help="of a weight file that does not say it")
    parser.add_argument("--random-resnet50", action="store_true", help="a ResNet-50 with random weights instead")
    # Global pooling follows the last stage, and there several methods are the same by algebra; before it all differ.
    parser.add_argument("--layer", default="layer3")
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side, in turn")
    parser.add_argument("--samples", type=int, default=100, help="of the methods that draw at random")
    args = parser.parse_args(argv)
    if args.smoke:
        args.methods, args.images, args.repeats, args.samples = ["grad_cam", "saliency", "smooth_grad"], 2, 1, 20
    try:
        from experiments import _torch
    except ImportError as error:
        parser.error(f"this study needs the PyTorch libraries ({error}): pip install -e '.[torch]'")

    source = _study.random_weights(args.output / "random.safetensors") if args.random_resnet50 else args.model
    classifier = jaxcam.load(source, architecture=args.architecture)
    images, views = some_images(args, classifier)
    model, network = classifier.tap(args.layer), _torch.load(classifier)
    with jax.default_matmul_precision("highest"), warnings.catch_warnings(), _study.progress() as progress:
        warnings.simplefilter("ignore")  # what the libraries say about each other
        logits = np.asarray(model(images))
        apart = float(np.abs(logits - _torch.array(network(_torch.tensor(images)))).max())
        window, layer = images.shape[1] // PARTS, network.get_submodule(args.layer)
        side = _torch.Side(network, layer, images, logits.argmax(-1).tolist(), args.samples, window)
        settings = {"weights": classifier.about["sha256"], "layer": args.layer, "images": args.images}
        settings |= {"repeats": args.repeats, "samples": args.samples}
        measured = {}
        for name in progress.track(args.methods, description="methods"):
            measured[name] = _study.part(args, name, lambda name=name: compare(args, name, model, side), **settings)

    numbers = ("difference", "largest", "pearson", "again", "seconds", "their_seconds")
    rows = {
        name: {"library": CASES[name].library, "random": CASES[name].random}
        | {number: float(values[number]) for number in numbers}
        for name, values in measured.items()
    }
    results = {"weights": classifier.about.get("note", args.model), "logits": apart, "methods": rows}
    _study.write_metrics(args, results)
    _files.write(args.output / "table.md", table(args, results))
    plot.save(maps(views[0], measured, rows), args.output / "maps.png")
    _report.publish_results(args, "compare_pytorch")
    print(f"{len(rows)} methods compared; written to {args.output}")


def answer(found) -> str:
    least = [row["pearson"] for row in found["methods"].values() if not row["random"]]
    return f"Yes: Pearson of at least {min(least):.6f} in the {len(least)} methods that draw nothing at random."


def some_images(args, classifier):
    """Normalised images and how they look: CIFAR-10's for its models, else parts of the photograph in the package."""
    if classifier.preprocess.crop == 32:
        views = list(_study.cifar10(args)[1].images[: args.images])
    else:
        photograph = classifier.preprocess.view(jaxcam.sample())[0]
        views = [np.roll(photograph, 24 * index, 1) for index in range(args.images)]
    return np.asarray(classifier.preprocess(views)), views


def compare(args, name, model, side) -> dict:
    """Both maps, how they differ, and the median seconds of each side; the first, which compiles, is not timed."""
    case = CASES[name]
    targets, options = np.asarray(side.targets), case.ours(side)
    runs = {
        "ours": lambda: np.asarray(getattr(jaxcam, name)(model, side.images, targets, **options)),
        "theirs": lambda: case.theirs(side),
    }
    found, seconds = {which: run() for which, run in runs.items()}, {which: [] for which in runs}
    for _ in range(1 if case.random else args.repeats):  # many samples are many runs already
        for which, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[which].append(time.perf_counter() - start)
    ours, theirs = found["ours"], np.asarray(found["theirs"], np.float32)
    again = ours
    if case.random:  # how far this package agrees with itself
        again = getattr(jaxcam, name)(model, side.images, targets, **options, key=jax.random.key(1))
    if theirs.ndim > ours.ndim:  # the same for all channels
        theirs = theirs[..., 0]
    return {
        "ours": ours[0],
        "theirs": theirs[0],
        "difference": np.abs(ours - theirs).max(),
        "largest": np.abs(theirs).max(),
        "pearson": np.asarray(metrics.pearson(ours, theirs)).min(),
        "again": np.asarray(metrics.pearson(ours, again)).min(),
        "seconds": np.median(seconds["ours"]),
        "their_seconds": np.median(seconds["theirs"]),
    }


def table(args, results) -> str:
    header = [
        "method",
        "library",
        "largest difference",
        "largest value",
        "least Pearson",
        "of two draws",
        "ms, jaxcam",
        "ms, other",
    ]
    rows = [
        [f"`{name}`{' (random)' if row['random'] else ''}", row["library"]]
        + [f"{row['difference']:.1e}", f"{row['largest']:.3g}", f"{row['pearson']:.6f}"]
        + [f"{row['again']:.6f}" if row["random"] else ""]
        + [
            f"{1000 * row['seconds']:.1f}",
            f"{1000 * row['their_seconds']:.1f}",
            f"{row['their_seconds'] / row['seconds']:.1f}",
        ]
        for name, row in results["methods"].items()
    ]
    return (
        f"Weights: {results['weights']}; {args.images} images, layer `{args.layer}`. The logits differ by "
        f"{results['logits']:.1e} at most. Times are for all images, medians of {args.repeats} runs. (random): drawn "
        f"at random by both, {args.samples} samples, timed once; how well two draws of this package agree is what to "
        "expect of two libraries.\n\n" + _study.markdown([*header, "other / jaxcam"], rows)
    )


def maps(view, measured, rows):
    """Each method's map of the first image by both, and where they differ, as a share of the largest difference."""

    def heat(values):
        values = np.asarray(values)
        return values if values.ndim == 2 and values.min() >= 0 and values.max() <= 1 else shown(values)

    def shown(values):
        values = values[None] if values.ndim == 3 else values[None, ..., None]
        return np.asarray(jaxcam.heatmap(values, percentile=100))[0]

    cells, labels = [], []
    for name, both in measured.items():
        ours, theirs = both["ours"], both["theirs"]
        cells.append([view, heat(ours), heat(theirs), shown(ours - theirs)])
        labels.append(f"{name}\ndiffers by {rows[name]['difference']:.0e}\nof {rows[name]['largest']:.2g}")
    columns = ["image", "jaxcam", "other", "difference"]
    title = "Both maps, and their difference, scaled to its own maximum"
    return plot.gallery(cells, columns=columns, labels=labels, title=title, across=3, side=0.95)


if __name__ == "__main__":
    main()
