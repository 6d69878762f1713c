"""How fast: the same weights and images through this package, and through its peers in PyTorch, in one run.

    pip install -e '.[torch]' torchvision quantus
    python -m benchmarks.attribution [--model resnet50] [--batch 8] [--methods NAME ...] [--compiled]

A row of `ROWS` says how either side computes a method. Each contestant has a process of its own, whose memory and
threads the others do not disturb; every round runs each once, in turn, so that whatever else the machine does falls on
all alike, and ratios are taken within a round. Beside each time stands the floor: the operations of the forward passes
that the method cannot do without (a backward pass counts as one), at the device's measured rate of matrix products; and
above the table, how long the bytes of a forward pass take at its measured bandwidth. A contestant that cannot run is a
result as well. Writes a JSON file, a table and a chart, named after the model and the batch.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from experiments import _study
from jaxcam import _files, metrics, plot

STEPS = 50  # of integrated gradients
FRACTIONS = (0.2, 0.4, 0.6, 0.8)  # of ROAD
REMOVALS = 48  # steps of deletion; Quantus removes a channel of a pixel at a time, and wants a share of the pixels
AT_ONCE = 16  # images that Captum runs in one batch; all at once do not fit
PEERS = ("torch", "torch, compiled")
BUNDLED = {"resnet18_cifar10": 32, "efficientnet_lite0": 224}  # with weights, and the side of their images
RANDOM = ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "vgg16", "vit_base_patch16")  # weights; 224 pixels
THEIRS = {"efficientnet_lite0": "bn2", "mobilenet_v2": "features.18"}  # the layer that a CAM reads, if called otherwise


class Row(NamedTuple):
    """A method: how each side computes it, and how many forward passes' operations it needs at least."""

    ours: Callable  # (model, images, targets)
    theirs: Callable  # a `Peer` -> a function of no arguments
    passes: Callable = lambda channels, windows: 1


def cam(method, name, passes=lambda channels, windows: 1):
    return Row(method, lambda peer: peer.cam(name), passes)


ROWS = {
    "forward": Row(jax.jit(lambda model, images, targets: model(images)), lambda peer: peer.forward()),
    "grad_cam": cam(jaxcam.grad_cam, "GradCAM"),
    "grad_cam_plus_plus": cam(jaxcam.grad_cam_plus_plus, "GradCAMPlusPlus"),
    "x_grad_cam": cam(jaxcam.x_grad_cam, "XGradCAM"),
    "hires_cam": cam(jaxcam.hires_cam, "HiResCAM"),
    "layer_cam": cam(jaxcam.layer_cam, "LayerCAM"),
    "grad_cam_elementwise": cam(jaxcam.grad_cam_elementwise, "GradCAMElementWise"),
    "shapley_cam": cam(jaxcam.shapley_cam, "ShapleyCAM"),
    "eigen_grad_cam": cam(jaxcam.eigen_grad_cam, "EigenGradCAM"),
    # A backward pass without the gradients of the weights takes the operations of a forward pass.
    "saliency": Row(jaxcam.saliency, lambda peer: peer.attribute("Saliency"), lambda channels, windows: 2),
    "integrated_gradients": Row(
        partial(jaxcam.integrated_gradients, num_steps=STEPS),
        lambda peer: peer.attribute("IntegratedGradients", n_steps=STEPS, internal_batch_size=AT_ONCE),
        lambda channels, windows: 2 * STEPS,
    ),
    "score_cam": cam(jaxcam.score_cam, "ScoreCAM", lambda channels, windows: channels + 1),
    "ablation_cam": cam(jaxcam.ablation_cam, "AblationCAM"),  # only what lies above the layer is run again
    "occlusion": Row(  # its floor is that of whole images; this package computes less
        lambda model, images, targets: jaxcam.occlusion(
            model, images, targets, window=window(images.shape[1]), stride=window(images.shape[1])
        ),
        lambda peer: peer.attribute(
            "Occlusion",
            sliding_window_shapes=(3, *[window(peer.images.shape[2])] * 2),
            strides=(3, *[window(peer.images.shape[2])] * 2),
            perturbations_per_eval=max(1, AT_ONCE // len(peer.targets)),
        ),
        lambda channels, windows: windows + 1,
    ),
    "road": Row(
        lambda model, images, targets: metrics.road(model, images, some_maps(images), targets, fractions=FRACTIONS),
        lambda peer: peer.road(some_maps(np.moveaxis(peer.images.cpu().numpy(), 1, -1)), FRACTIONS),
        lambda channels, windows: 2 * len(FRACTIONS) + 1,
    ),
    "deletion": Row(
        lambda model, images, targets: metrics.deletion(model, images, some_maps(images), targets, num_steps=REMOVALS),
        lambda peer: peer.deletion(some_maps(np.moveaxis(peer.images.cpu().numpy(), 1, -1)), REMOVALS),
        lambda channels, windows: REMOVALS + 1,
    ),
}


def window(side: int) -> int:
    """The side of occlusion's windows, which do not overlap: 32 of 224 pixels, 4 of 32."""
    return side // 7


def some_maps(images):
    """Heatmaps without ties; the time of a metric does not depend on what they show."""
    n, height, width, _ = images.shape
    values = np.random.default_rng(0).permutation(height * width).reshape(1, height, width) / (height * width)
    return np.repeat(values.astype(np.float32), n, 0)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attribution",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="resnet50", choices=[*RANDOM, *BUNDLED])
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=ROWS, metavar="NAME")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60, help="after which a method begins no further round")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile with channels-last memory")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    sides = ["jaxcam", *PEERS[: 1 + args.compiled]]
    if not all(map(importlib.util.find_spec, ("torch", "pytorch_grad_cam", "captum"))):
        print("The PyTorch libraries are not installed; this package runs alone.", file=sys.stderr)
        sides = ["jaxcam"]
    for batch in args.batch:
        facts, rows = facts_of(args, batch), {}
        contestants = {side: start(args, batch, side) for side in sides}
        for name in args.methods:
            rows[name] = measure(args, name, contestants)
            rows[name]["floor"] = ROWS[name].passes(facts["channels"], facts["windows"]) * facts["floor of a pass"]
            print(markdown(args, {name: rows[name]}).splitlines()[-1], flush=True)
        for connection in contestants.values():
            connection.send(None)
        write(args, batch, rows, facts)


def classifier_and_side(args):
    """The model, and the side of its images in pixels."""
    if args.model in BUNDLED:
        return jaxcam.load(args.model), BUNDLED[args.model]
    return jaxcam.load(_study.random_weights(args.output / "weights" / f"{args.model}.safetensors", args.model)), 224


def our_arguments(args, batch):
    """The tap, images and targets, as every contestant explains them."""
    classifier, side = classifier_and_side(args)
    images = np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)
    classifier = replace(classifier, module=classifier.module.clone(dtype=jnp.dtype(args.precision)))
    targets = np.arange(batch) % classifier.module.num_classes
    return classifier.tap(), jnp.asarray(images), jnp.asarray(targets)


def facts_of(args, batch) -> dict:
    _, side = classifier_and_side(args)
    model, images, targets = our_arguments(args, batch)
    cost = ROWS["forward"].ours.lower(model, images, targets).compile().cost_analysis()
    rate, speed = matrix_rate(jnp.dtype(args.precision)), bandwidth()
    return {
        "operations of a pass": cost["flops"],
        "operations per second": rate,
        "bytes of a pass": cost["bytes accessed"],
        "bytes per second": speed,
        "floor of a pass": cost["flops"] / rate,
        "channels": jax.eval_shape(lambda model, images: model.features(images), model, images).shape[-1],
        "windows": (side // window(side)) ** 2,
    }


def start(args, batch, side):
    """A process that serves one contestant, and the connection to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=serve, args=(theirs, args, batch, side), daemon=True).start()
    return ours


def serve(connection, args, batch, side):
    """Answers the name of a method by the seconds and the peak memory of one run of it, until `None` comes."""
    model, images, targets = our_arguments(args, batch)
    if side == "jaxcam":

        def run_of(row):
            return lambda: jax.block_until_ready(row.ours(model, images, targets))

    else:
        from benchmarks._peers import Peer

        classifier, _ = classifier_and_side(args)
        options = {"compiled": "compiled" in side, "half": args.precision == "bfloat16"}
        layer = THEIRS.get(args.model, classifier.layer)
        peer = Peer(classifier, layer, np.asarray(images), np.asarray(targets), **options)

        def run_of(row):
            peer.clear()
            return row.theirs(peer)

    empty, prepared = memory("VmRSS"), None
    for name in iter(connection.recv, None):
        try:
            if name != prepared:
                prepared, run = name, run_of(ROWS[name])
            forget_peak()
            took = seconds(run)
            connection.send((took, memory("VmHWM") - empty))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}")


def memory(field: str) -> float:
    """Bytes of this process: `VmRSS`, now, or `VmHWM`, the most since `forget_peak`; NaN where Linux does not say."""
    try:
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return float("nan")


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def matrix_rate(dtype, size: int = 2048) -> float:
    """Operations per second of a large matrix product, at its best."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return max(2 * size**3 / seconds(lambda: product(a, a).block_until_ready()) for _ in range(8))


def bandwidth(size: int = 2**26) -> float:
    """Bytes per second that a sum of a large array and a number reads and writes, at its best."""
    a = jnp.ones(size, jnp.float32)
    add = jax.jit(lambda a: a + 1)
    return max(8 * size / seconds(lambda: add(a).block_until_ready()) for _ in range(8))


def seconds(run) -> float:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say about each other
        run()
    return time.perf_counter() - start


def measure(args, method, contestants) -> dict:
    """Seconds of each contestant in every round, those of the first run, which compiles, and the peaks of the rest."""

    def once(side):
        contestants[side].send(method)
        return contestants[side].recv()

    first = {side: once(side) for side in contestants}
    failed = {side: answer for side, answer in first.items() if isinstance(answer, str)}
    if "jaxcam" in failed:
        raise RuntimeError(f"{method}: {failed['jaxcam']}")
    runs, began = {side: [] for side in contestants if side not in failed}, time.perf_counter()
    for _ in range(args.rounds):
        for side, own in runs.items():
            own.append(once(side))
        if time.perf_counter() - began > args.seconds:
            break
    return {
        "first": {side: first[side][0] for side in runs},
        "seconds": {side: [took for took, _ in own] for side, own in runs.items()},
        "peak bytes": {side: max(peak for _, peak in own) for side, own in runs.items()},
        "failed": failed,
    }


def ratios(row) -> list[float]:
    """In each round, the time of the best peer over ours."""
    peers = [each for name, each in row["seconds"].items() if name != "jaxcam"]
    return [min(each) / ours for ours, *each in zip(row["seconds"]["jaxcam"], *peers, strict=True)] if peers else []


def markdown(args, rows) -> str:
    peers = PEERS[: 1 + args.compiled]
    header = ["method", "jaxcam, ms", *(f"{name}, ms" for name in peers), "best peer / jaxcam", "quartiles"]
    header += ["/ floor", "first run, s", "MB, jaxcam", "MB, torch"]
    lines = []
    for name, row in rows.items():
        ours, found = np.median(row["seconds"]["jaxcam"]), ratios(row)
        times = [f"{1000 * np.median(row['seconds'][each]):.0f}" if each in row["seconds"] else "" for each in peers]
        low, middle, high = np.percentile(found, [25, 50, 75]) if found else [np.nan] * 3
        peaks = row["peak bytes"]
        used = [f"{peaks[side] / 1e6:.0f}" if side in peaks else "" for side in ("jaxcam", "torch")]
        lines.append(
            [f"`{name}`", f"{1000 * ours:.0f}", *times, f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
            + [f"{ours / row['floor']:.1f}", f"{row['first']['jaxcam']:.1f}", *used]
        )
    return _study.markdown(header, lines)


def write(args, batch, rows, facts) -> None:
    environment = _study.environment()
    path = (
        args.output
        / f"{environment['device'].split(',')[0].lower().replace(' ', '-')}-{args.model}-{batch}-{args.precision}"
    )
    settings = {"model": args.model, "batch": batch, "precision": args.precision, "rounds": args.rounds}
    everything = {"rows": rows, **facts, "settings": settings, **environment}
    _files.write(path.with_suffix(".json"), json.dumps(everything, indent=1) + "\n")
    title = f"{args.model}, batch {batch}, {args.precision}, {environment['device']}"
    flops, moved = facts["operations of a pass"], facts["bytes of a pass"]
    rate, speed = facts["operations per second"], facts["bytes per second"]
    passes = (
        f"A forward pass has {flops / 1e9:.1f} billion operations, which take {1000 * flops / rate:.1f} ms at "
        f"{rate / 1e9:.0f} billion a second. XLA's moves {moved / 1e9:.2f} GB, which take "
        f"{1000 * moved / speed:.1f} ms from memory at {speed / 1e9:.1f} GB/s, and less from caches."
    )
    _files.write(path.with_suffix(".md"), f"{title}\n\n{passes}\n\n{markdown(args, rows)}")
    found = {name: ratios(row) for name, row in rows.items()}
    bars = {
        name: (float(np.median(each)), np.ptp(np.percentile(each, [25, 75])) / 2 if len(each) > 1 else np.nan)
        for name, each in found.items()
        if each
    }
    if bars:
        heading = f"{args.model}, batch {batch}, {args.precision}"
        label = "time of the best peer / time of jaxcam"
        chart = plot.intervals({heading: bars}, xlabel=label, reference=1, log_x=True)
        plot.save(chart, path.with_suffix(".png"))
    print(f"written to {path}.md")


if __name__ == "__main__":
    main()
