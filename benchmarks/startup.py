"""How long until the first heatmap: a new process of this package against one of PyTorch and pytorch-grad-cam.

    pip install -e '.[torch]' torchvision
    python -m benchmarks.startup [--model resnet50] [--rounds 9]

A process starts, imports its library, loads the same weights from a file, and computes Grad-CAM for one image; the
clock runs from the first import to the heatmap. This package compiles in a first run that does not count, and finds
its program on disk afterwards, as the command line does. Prints medians and the ratio within each round.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="resnet50", choices=["resnet18", "resnet50"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        start = time.perf_counter()
        SIDES[args.side](args)
        return print(time.perf_counter() - start)
    write_weights(args)
    for side in SIDES:
        once(args, side)  # compiles, and fills the caches of the file system
    seconds = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side, own in seconds.items():
            own.append(once(args, side))
    report(args, seconds)


def jaxcam_side(args):
    import jax

    jax.config.update("jax_compilation_cache_dir", str(args.output / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    import numpy as np

    import jaxcam

    classifier = jaxcam.load(args.output / "weights" / f"{args.model}.safetensors")
    model = classifier.tap("layer4")
    np.asarray(jaxcam.grad_cam(model, np.zeros((1, 224, 224, 3), np.float32), 0))


def torch_side(args):
    import torch

    from tests.golden.make_golden import import_torchvision

    model = getattr(import_torchvision().models, args.model)()
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model.load_state_dict(torch.load(args.output / "weights" / f"{args.model}.pth"))
    method = GradCAM(model.eval(), [model.layer4])
    method(torch.zeros((1, 3, 224, 224)), [ClassifierOutputTarget(0)])


SIDES = {"jaxcam": jaxcam_side, "torch": torch_side}


def write_weights(args) -> None:
    """The same random weights in a file for each side."""
    import torch

    import jaxcam
    from experiments import _study, _torch

    path = _study.random_weights(args.output / "weights" / f"{args.model}.safetensors", args.model)
    torch.save(_torch.load(jaxcam.load(path)).state_dict(), path.with_suffix(".pth"))


def once(args, side: str) -> float:
    command = [sys.executable, "-m", "benchmarks.startup", "--side", side, "--model", args.model]
    ran = subprocess.run([*command, "--output", str(args.output)], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"The process of {side} failed:\n{ran.stderr}")
    return float(ran.stdout.split()[-1])


def report(args, seconds) -> None:
    import json

    import numpy as np

    from experiments import _study
    from jaxcam import _files

    ratios = np.divide(seconds["torch"], seconds["jaxcam"])
    environment = _study.environment()
    results = {"seconds": seconds, "ratios": ratios.tolist(), "model": args.model, **environment}
    path = args.output / f"startup-{args.model}.json"
    _files.write(path, json.dumps(results, indent=1) + "\n")
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    for side, own in seconds.items():
        print(f"{side}: {np.median(own):.2f} s from the first import to the first heatmap")
    print(f"torch / jaxcam: {middle:.2f} (quartiles {low:.2f} to {high:.2f}); {environment['device']}; {path}")


if __name__ == "__main__":
    main()
