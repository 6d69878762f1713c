"""Training a CIFAR-10 ResNet-18, measured: how long a step takes, and which changes of the recipe pay.

    python -m benchmarks.training step [--widths 32 64]
    python -m benchmarks.training recipe --data-dir DIR [--seconds 600]

`step` takes steps in turns: this package's, the same program as JAX compiles it, and where it is installed PyTorch's.
`recipe` trains each row for the same number of seconds, of which it first measures how many steps they are, so that
what else the machine does meanwhile changes no accuracy. Each seed of a row is done once, on one core: processes with
other seeds or rows may work at the same time on the same `--output`, and a last call with all of them writes the table.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _study
from experiments.train_cifar10 import MEAN, STD
from jaxcam import _files, train

NORMALIZE = train.Normalization(MEAN, STD)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("what", choices=["step", "recipe"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--smoke", action="store_true", help="seconds, on generated images")
    parser.add_argument("--widths", type=int, nargs="+", default=[32], help="of `step`: features of the first stage")
    parser.add_argument("--batch-size", type=int, default=128, help="of `step`")
    parser.add_argument("--rounds", type=int, default=7, help="of `step`")
    parser.add_argument("--data-dir", help="of `recipe`: TFDS data directory")
    parser.add_argument("--width", type=int, default=16, help="of `recipe`")
    parser.add_argument("--seconds", type=float, default=600, help="of `recipe`: for each training")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(argv)
    {"step": step, "recipe": recipe}[args.what](args)


# --- a step


def step(args):
    results = {}
    for width in args.widths:
        sides = {name: side(args, width) for name, side in SIDES.items()}
        if importlib.util.find_spec("torch"):
            sides |= {f"PyTorch, {kind}": torch_side(args, width, kind) for kind in ("float32", "bfloat16")}
        seconds = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, run in sides.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        results[width] = seconds
    about = {"batch_size": args.batch_size, "rounds": args.rounds, **_study.environment()}
    _files.write(args.output / "training-step.json", json.dumps({"seconds": results, **about}, indent=1) + "\n")
    rows = []
    for width, seconds in results.items():
        ours = np.array(seconds["jaxcam"])
        for name, own in seconds.items():
            ratio = np.median(np.array(own) / ours)
            rows.append([f"width {width}, {name}", f"{1000 * np.median(own):.0f} ms", f"{ratio:.2f}"])
    table = _study.markdown(["", "a step", "of jaxcam's time"], rows)
    _files.write(args.output / "training-step.md", table)
    print(table)


def jax_side(args, width: int, as_it_is: bool = False, dtype=jnp.float32) -> Callable:
    """A function that takes one step, compiled."""
    module, optimizer = _study.resnet18(args, width=width, dtype=dtype), train.sgd(0.05)
    random = np.random.default_rng(0)
    images = jnp.asarray(random.integers(0, 256, (args.batch_size, 32, 32, 3), dtype=np.uint8))
    labels, batch, key = jnp.arange(args.batch_size) % 10, jnp.arange(args.batch_size), jax.random.key(0)
    fixed = {"module": module, "optimizer": optimizer, "normalize": NORMALIZE, "augment": True, "label_smoothing": 0.1}
    take = train.train_step
    if as_it_is:
        take = jax.jit(take.__wrapped__, static_argnames=tuple(fixed), donate_argnames=("state", "sums"))
    taken = [train.init(module, optimizer, images), jnp.zeros(2)]

    def run():
        taken[:] = jax.block_until_ready(take(*taken, images, labels, batch, 0, key, **fixed))

    run()
    return run


SIDES = {
    "jaxcam": jax_side,
    "jaxcam, bfloat16": partial(jax_side, dtype=jnp.bfloat16),
    "plain JAX": partial(jax_side, as_it_is=True),
}


def torch_side(args, width: int, kind: str) -> Callable:
    """The same network and optimizer; with bfloat16, by automatic mixed precision. No augmentation."""
    import torch

    from experiments import _torch

    network = _torch.ResNet(_study.resnet18(args, width=width)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    images = torch.randn(args.batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(args.batch_size) % 10

    def run():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(network(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()

    run()
    return run


# --- the recipe


def triangular(peak: float, total_steps: int) -> optax.Schedule:
    """From zero in a straight line up to the peak, over a fifth of the steps, and in another one down to zero."""
    top = max(1, total_steps // 5)
    up, down = optax.linear_schedule(0.0, peak, top), optax.linear_schedule(peak, 0.0, max(1, total_steps - top))
    return optax.join_schedules([up, down], [top])


# What each row has of its own: the schedule, the optimizer of a schedule, the sides of the images in equal shares of
# the steps, and what the network computes in.
BEFORE = {"schedule": partial(train.cosine, 0.05), "optimizer": train.sgd, "sizes": (32,), "dtype": jnp.float32}
SMALL_FIRST = {"sizes": (20, 24, 28, 32)}
MUON = {"schedule": partial(train.cosine, 0.2), "optimizer": train.muon}
ROWS = {
    "before": BEFORE,
    "triangular": BEFORE | {"schedule": partial(triangular, 0.05)},
    "small images first": BEFORE | SMALL_FIRST,
    "Muon": BEFORE | MUON,
    "Muon, small images first": BEFORE | MUON | SMALL_FIRST,
    "Muon, small images first, bfloat16": BEFORE | MUON | SMALL_FIRST | {"dtype": jnp.bfloat16},
    "Muon, small images first, triangular": BEFORE | MUON | SMALL_FIRST | {"schedule": partial(triangular, 0.2)},
}
BATCH_SIZE = 64


def recipe(args):
    found, name = {}, f"training-recipe-{args.width}-{args.seconds:g}"
    for row in args.rows:
        settings = {"seconds": args.seconds, "width": args.width}
        runs = [
            _study.part(args, f"{name}-{row}-{seed}", partial(trained, args, row, seed), **settings)
            for seed in args.seeds
        ]
        found[row] = runs
        print(row, *(f"{run['accuracy']:.2%}" for run in runs), flush=True)
    about = {"seconds": args.seconds, "width": args.width, "seeds": args.seeds, **_study.environment()}
    _files.write(args.output / f"{name}.json", json.dumps({"rows": found, **about}, indent=1) + "\n")
    header = ["", "epochs", "accuracy, seed by seed", "mean", "with the mirrored image"]
    rows = []
    for row, runs in found.items():
        each = ", ".join(f"{run['accuracy']:.1%}" for run in runs)
        means = (f"{np.mean([run[key] for run in runs]):.1%}" for key in ("accuracy", "mirrored"))
        rows.append([row, f"{np.mean([run['epochs'] for run in runs]):.1f}", each, *means])
    _files.write(args.output / f"{name}.md", _study.markdown(header, rows))


def trained(args, name: str, seed: int) -> dict:
    """Trains for `args.seconds` by the measured cost of a step, and evaluates."""
    row, (training, testing) = ROWS[name], _study.cifar10(args)
    module, sizes = _study.resnet18(args, width=args.width, dtype=row["dtype"]), row["sizes"]
    images, labels = jnp.asarray(training.images), jnp.asarray(training.labels)
    take = partial(train.train_step, module=module, normalize=NORMALIZE, augment=True, label_smoothing=0.1)
    per_epoch, key = len(images) // BATCH_SIZE, jax.random.key(seed)

    def run(optimizer, steps, sizes):
        """The state after these steps, and how many seconds a step took without compilation."""
        state, sums = train.init(module, optimizer, images, seed), jnp.zeros(2)
        seconds, last = [], None
        for index in range(steps):
            epoch, place = divmod(index, per_epoch)
            size = sizes[index * len(sizes) // steps]
            if place == 0:
                order = jax.random.permutation(jax.random.fold_in(key, epoch), len(images))
            batch, start = order[place * BATCH_SIZE : (place + 1) * BATCH_SIZE], time.perf_counter()
            state, sums = take(state, sums, images, labels, batch, epoch, key, optimizer=optimizer, size=size)
            if steps < 100 or index % 20 == 0:
                jax.block_until_ready(sums)
            if steps < 100 and size == last:
                seconds.append(time.perf_counter() - start)
            last = size
        return state, np.percentile(seconds, 25) if seconds else None  # other work on the machine only adds

    few = 8 if args.smoke else 20
    costs = [run(row["optimizer"](optax.constant_schedule(0.0)), few, (size,))[1] for size in sorted(set(sizes))]
    cost = np.mean([dict(zip(sorted(set(sizes)), costs, strict=True))[size] for size in sizes])
    steps = max(len(sizes), int(args.seconds / cost))
    state, _ = run(row["optimizer"](row["schedule"](steps)), steps, sizes)
    evaluate = partial(train.evaluate, module, state.variables, testing, normalize=NORMALIZE)
    return {
        "accuracy": evaluate()[1],
        "mirrored": evaluate(mirrored=True)[1],
        "epochs": steps / per_epoch,
        "milliseconds": [round(1000 * float(each), 1) for each in costs],
        "cores": len(os.sched_getaffinity(0)),
    }


if __name__ == "__main__":
    main()
