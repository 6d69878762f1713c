"""How fast: the same weights and images through this package, and through pytorch-grad-cam and Captum, in one run.

    pip install -e '.[torch]'
    python -m benchmarks.attribution [--model resnet50] [--batch 8] [--methods NAME ...] [--compiled]

A row of `ROWS` says how either side computes a method. Every round runs each contestant once, in turn, so that whatever
else the machine does falls on all alike, and ratios are taken within a round. Beside each time stands the floor:
the operations that the method cannot do without, at the device's measured rate of matrix products. A contestant that
cannot run is a result as well. Writes a JSON file, a table and a chart, named after the model and the batch.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from experiments import _study
from jaxcam import metrics, plot

STEPS = 50  # of integrated gradients
WINDOW = 32  # of occlusion, in pixels; it does not overlap
FRACTIONS = (0.2, 0.4, 0.6, 0.8)  # of ROAD
AT_ONCE = 16  # images that Captum runs in one batch; all at once do not fit


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
    "occlusion": Row(
        partial(jaxcam.occlusion, window=WINDOW, stride=WINDOW),
        lambda peer: peer.attribute(
            "Occlusion",
            sliding_window_shapes=(3, WINDOW, WINDOW),
            strides=(3, WINDOW, WINDOW),
            perturbations_per_eval=max(1, AT_ONCE // len(peer.targets)),
        ),
        lambda channels, windows: windows + 1,
    ),
    "road": Row(
        lambda model, images, targets: metrics.road(model, images, some_maps(images), targets, fractions=FRACTIONS),
        lambda peer: peer.road(some_maps(np.moveaxis(peer.images.cpu().numpy(), 1, -1)), FRACTIONS),
        lambda channels, windows: 2 * len(FRACTIONS) + 1,
    ),
}


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
    parser.add_argument("--model", default="resnet50", choices=["resnet18", "resnet50", "resnet18_cifar10"])
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=ROWS, metavar="NAME")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60, help="after which a method begins no further round")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile with channels-last memory")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--peak-of", choices=["nobody", "jaxcam", "torch"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for batch in args.batch:
        contestants, facts = prepare(args, batch, ["torch", "torch, compiled"][: 1 + args.compiled])
        if args.peak_of:
            return print(peak_here(args, contestants))
        rows = {}
        for name in args.methods:
            rows[name] = measure(args, ROWS[name], contestants)
            rows[name]["floor"] = ROWS[name].passes(facts["channels"], facts["windows"]) * facts["floor of a pass"]
            rows[name]["peak bytes"] = {side: peak(args, name, batch, side) for side in ("jaxcam", "torch")}
            print(markdown(args, {name: rows[name]}).splitlines()[-1], flush=True)
        write(args, batch, rows, facts)


def prepare(args, batch, peers):
    """The arguments of this package and the peers, on the same weights and images; and what is known of them."""
    if args.model == "resnet18_cifar10":
        classifier, side = jaxcam.load(args.model), 32
    else:
        weights = _study.random_weights(args.output / "weights" / f"{args.model}.safetensors", args.model)
        classifier, side = jaxcam.load(weights), 224
    images = np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)
    targets = np.arange(batch) % classifier.module.num_classes
    dtype = jnp.bfloat16 if args.precision == "bfloat16" else jnp.float32
    module = classifier.module.clone(dtype=dtype)
    model = jaxcam.tap(module, classifier.variables, "layer4")
    contestants = {"jaxcam": (model, jnp.asarray(images), jnp.asarray(targets))}
    try:
        from benchmarks._peers import Peer
    except ImportError as error:
        print(f"The PyTorch libraries are not installed ({error}); this package runs alone.", file=sys.stderr)
        peers = []
    half = args.precision == "bfloat16"
    for name in peers:
        contestants[name] = Peer(classifier, "layer4", images, targets, compiled="compiled" in name, half=half)
    program = ROWS["forward"].ours.lower(*contestants["jaxcam"]).compile()
    flops, rate = program.cost_analysis()["flops"], matrix_rate(dtype)
    facts = {
        "operations of a pass": flops,
        "operations per second": rate,
        "floor of a pass": flops / rate,
        "channels": classifier.module.width * 8 * classifier.module.block.expansion,
        "windows": (side // WINDOW) ** 2,
    }
    return contestants, facts


def matrix_rate(dtype, size: int = 2048) -> float:
    """Operations per second of a large matrix product, at its best."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return max(2 * size**3 / seconds(lambda: product(a, a).block_until_ready()) for _ in range(8))


def seconds(run) -> float:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say about each other
        run()
    return time.perf_counter() - start


def runs_of(row, contestants) -> dict[str, Callable]:
    """A function of no arguments for each contestant."""
    runs = {"jaxcam": lambda: jax.block_until_ready(row.ours(*contestants["jaxcam"]))}
    for name, peer in contestants.items():
        if name != "jaxcam":
            peer.release()
            runs[name] = row.theirs(peer)
    return runs


def measure(args, row, contestants) -> dict:
    """Seconds of each contestant in every round, and those of the first run, which compiles."""
    runs, first, failed = runs_of(row, contestants), {}, {}
    for name, run in list(runs.items()):
        try:
            first[name] = seconds(run)
        except Exception as error:
            if name == "jaxcam":
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            del runs[name]
    times, start = {name: [] for name in runs}, time.perf_counter()
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
        if time.perf_counter() - start > args.seconds:
            break
    return {"first": first, "seconds": times, "failed": failed}


def peak(args, method, batch, side) -> int | None:
    """Bytes that a method adds to the peak of a process of its own, which has run a forward pass before."""
    command = [sys.executable, "-m", "benchmarks.attribution", "--model", args.model, "--batch", str(batch)]
    command += ["--methods", method, "--precision", args.precision, "--output", str(args.output), "--peak-of", side]
    ran = subprocess.run(command, capture_output=True, text=True)
    return int(ran.stdout.split()[-1]) if ran.returncode == 0 else None


def peak_here(args, contestants) -> int:
    def highest():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for name in ("forward", *args.methods):
        before = highest()
        runs_of(ROWS[name], contestants)[args.peak_of]()
    return highest() - before


def ratios(row) -> list[float]:
    """In each round, the time of the best peer over ours."""
    peers = [each for name, each in row["seconds"].items() if name != "jaxcam"]
    return [min(each) / ours for ours, *each in zip(row["seconds"]["jaxcam"], *peers, strict=True)] if peers else []


def markdown(args, rows) -> str:
    peers = ["torch", "torch, compiled"][: 1 + args.compiled]
    header = ["method", "jaxcam, ms", *(f"{name}, ms" for name in peers), "best peer / jaxcam", "quartiles"]
    header += ["/ floor", "first run, s", "MB, jaxcam", "MB, torch"]
    lines = []
    for name, row in rows.items():
        ours, found = np.median(row["seconds"]["jaxcam"]), ratios(row)
        times = [f"{1000 * np.median(row['seconds'][each]):.0f}" if each in row["seconds"] else "" for each in peers]
        low, middle, high = np.percentile(found, [25, 50, 75]) if found else [np.nan] * 3
        memory = [
            "" if row["peak bytes"][side] is None else f"{row['peak bytes'][side] / 1e6:.0f}"
            for side in row["peak bytes"]
        ]
        lines.append(
            [f"`{name}`", f"{1000 * ours:.0f}", *times, f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
            + [f"{ours / row['floor']:.1f}", f"{row['first']['jaxcam']:.1f}", *memory]
        )
    return _study.markdown(header, lines)


def write(args, batch, rows, facts) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    environment = _study.environment()
    path = (
        args.output
        / f"{environment['device'].split(',')[0].lower().replace(' ', '-')}-{args.model}-{batch}-{args.precision}"
    )
    settings = {"model": args.model, "batch": batch, "precision": args.precision, "rounds": args.rounds}
    everything = {"rows": rows, **facts, "settings": settings, **environment}
    path.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
    title = f"{args.model}, batch {batch}, {args.precision}, {environment['device']}"
    path.with_suffix(".md").write_text(f"{title}\n\n{markdown(args, rows)}")
    found = {name: ratios(row) for name, row in rows.items()}
    bars = {
        name: (float(np.median(each)), float(np.ptp(np.percentile(each, [25, 75])) / 2))
        for name, each in found.items()
        if each
    }
    if bars:
        chart = plot.intervals({title: bars}, xlabel="time of the best peer / time of jaxcam", reference=1)
        plot.save(chart, path.with_suffix(".png"))
    print(f"written to {path}.md")


if __name__ == "__main__":
    main()
