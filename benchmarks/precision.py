"""What half precision gives and costs: the same model in float32 and in bfloat16, in turns.

    python -m benchmarks.precision [--models efficientnet_lite0 ...] [--batch 8] [--rounds 7]

For each model and method the milliseconds of both, the ratio within a round, and how alike the maps are: their rank
correlation, the mean over the images. The images are the sample photograph and its mirror image, cut at many places, so
that a trained model sees something. Prints a table, and writes it to `--output` with a JSON file.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import jaxcam
from experiments import _study
from jaxcam import _files

METHODS = ("forward", "grad_cam", "saliency", "integrated_gradients", "score_cam")
OPTIONS = {"integrated_gradients": {"num_steps": 16}, "score_cam": {"max_channels": 32}}
DTYPES = ("float32", "bfloat16")


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=["efficientnet_lite0", "resnet18_cifar10"])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="METHOD")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    found = {name: measured(args, name) for name in args.models}
    about = {"batch": args.batch, "rounds": args.rounds, **_study.environment()}
    _files.write(args.output / "precision.json", json.dumps({"models": found, **about}, indent=1) + "\n")
    rows = [
        [
            f"{name}, {method}",
            *(f"{1000 * np.median(row['seconds'][dtype]):.0f} ms" for dtype in DTYPES),
            f"{np.median(np.divide(*map(row['seconds'].get, DTYPES))):.2f}",
            f"{row['alike']:.3f}",
        ]
        for name, of_model in found.items()
        for method, row in of_model.items()
    ]
    table = _study.markdown(["", *DTYPES, "times as fast", "rank correlation"], rows)
    _files.write(args.output / "precision.md", table)
    print(table)


def measured(args, name: str) -> dict:
    classifier = jaxcam.load(name)
    images = classifier.preprocess(pictures(args.batch))
    models = {
        each: dataclasses.replace(classifier, module=classifier.module.clone(dtype=jnp.dtype(each))).tap()
        for each in DTYPES
    }
    targets, found = models["float32"](images).argmax(-1), {}
    for method in args.methods:
        seconds, maps = {each: [] for each in DTYPES}, {}
        for round_ in range(args.rounds + 1):  # the first compiles, and does not count
            for dtype, model in models.items():
                start = time.perf_counter()
                maps[dtype] = jax.block_until_ready(result(method, model, images, targets))
                seconds[dtype] += [time.perf_counter() - start] if round_ else []
        found[method] = {"seconds": seconds, "alike": alike(*(maps[each] for each in DTYPES))}
    return found


def result(method: str, model, images, targets):
    if method == "forward":
        return model(images)
    return getattr(jaxcam, method)(model, images, targets, **OPTIONS.get(method, {}))


def alike(exact, rough) -> float:
    """The rank correlation of maps, or of logits: those of an image are a signal of the classes."""
    exact, rough = (
        jaxcam.heatmap(each) if each.ndim == 4 else jnp.asarray(each, jnp.float32) for each in (exact, rough)
    )
    shape = (len(exact), -1, 1) if exact.ndim == 2 else exact.shape
    return float(jaxcam.metrics.spearman(exact.reshape(shape), rough.reshape(shape)).mean())


def pictures(count: int) -> list[np.ndarray]:
    """Squares of the sample photograph, at places that are drawn, every second one mirrored."""
    photograph, random = np.asarray(Image.open(jaxcam.sample())), np.random.default_rng(0)
    side = min(photograph.shape[:2]) * 3 // 4
    cut = []
    for index in range(count):
        row, column = (random.integers(0, size - side + 1) for size in photograph.shape[:2])
        cut.append(photograph[row : row + side, column : column + side][:, :: 1 - 2 * (index % 2)])
    return cut


if __name__ == "__main__":
    main()
