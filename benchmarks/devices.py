"""What each of several devices does, and what they send one another, by the compiler; no second device is needed.

    python -m benchmarks.devices [--devices 1 2 4 8] [--batches 1 8 256] [--methods grad_cam] [--clock]

Every method of a small ResNet at 32 px is compiled for a batch that is spread over devices (of a CPU that plays eight).
For fewer images than devices the copies that a method makes of each image are spread instead (`jaxcam.config.spread`).
A row says what one device computes, as a share of what one device alone would, how many collectives there are, each as
often as it runs, and the bytes that they give to each device. What was counted before is kept.

`--clock` measures instead: 16 images on the bundled model, by one process on one core and by two processes of
`jax.distributed`, each on a core of its own, in turns.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices, and a compiler in a hurry: what is compiled here is not run.
os.environ["XLA_FLAGS"] = (
    f"{'--xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''} "  # later ones have none
    "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1 "
) + os.environ.get("XLA_FLAGS", "")

import jax
import jax.numpy as jnp

import jaxcam
from benchmarks import _hlo, _rows
from benchmarks._rows import NAMES
from jaxcam import _files
from jaxcam.models.resnet import BasicBlock, ResNet

SIDE, CHUNK = 32, 64


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.devices",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8], choices=[1, 2, 4, 8])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 256])
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--clock", action="store_true", help="two processes against one, by the clock")
    parser.add_argument("--rounds", type=int, default=5, help="of --clock")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    if args.clock:
        return clock(args)
    path = args.output / "devices.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name in args.methods:
        for n in args.batches:
            if any(row["method"] == name and row["images"] == n for row in rows):
                continue
            found = {devices: measured(name, n, devices) for devices in {1, *args.devices}}
            for devices in args.devices:
                share = found[devices]["operations"] / found[1]["operations"]
                rows.append({"method": name, "images": n, "devices": devices, "share": share, **found[devices]})
                print(rows[-1], flush=True)
            _files.write(path, json.dumps(rows, indent=0) + "\n")
    _files.write(args.output / "devices.md", table(rows, args))


def measured(name: str, n: int, devices: int) -> dict[str, int]:
    """One method, compiled for `n` images on so many devices."""
    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, same = jax.NamedSharding(mesh, jax.P("devices")), jax.NamedSharding(mesh, jax.P())
    by_images = n >= devices
    function = _rows.method(name, SIDE, 8, CHUNK if by_images else CHUNK // devices)
    jaxcam.config.spread = None if by_images else spread
    try:
        places = (same, *[spread if by_images else same] * 2)
        compiled = jax.jit(function, in_shardings=places).lower(*given(n)).compile()
    finally:
        jaxcam.config.spread = None
    counted = {each.__name__: each for each in (_hlo.operations, _hlo.collectives, _hlo.moved)}
    return {key: _hlo.total(compiled.as_text(), of_line, fused=True) for key, of_line in counted.items()}


def given(n: int) -> tuple:
    module = ResNet((1, 1, 1, 1), BasicBlock, num_classes=10, width=16, stem="cifar")
    one = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), one)
    model = jax.eval_shape(lambda variables: jaxcam.tap(module, variables, "layer4"), variables)
    return model, jax.ShapeDtypeStruct((n, *one.shape[1:]), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)


def table(rows, args) -> str:
    """A line for each method, a cell for each number of images and devices."""
    settings = [(n, devices) for n in args.batches for devices in args.devices if devices > 1]
    heads = [f"{n} on {devices}" for n, devices in settings]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name in args.methods:
        own = {(row["images"], row["devices"]): row for row in rows if row["method"] == name}
        lines.append(f"| {name} | " + " | ".join(map(_cell, map(own.get, settings))) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict) -> str:
    sent = f", {row['collectives']} of {row['moved']:,} B" if row["collectives"] else ""
    return f"{row['share']:.3f}{sent}"


PROCESS = """
import os, statistics, sys, time
count, index, port = map(int, sys.argv[1:])
os.sched_setaffinity(0, {index})
import jax, numpy as np
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=index)
import jaxcam
mesh = jax.make_mesh((count,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
spread, same = jax.NamedSharding(mesh, jax.P("n")), jax.NamedSharding(mesh, jax.P())
def placed(array, place):
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, place, lambda part: array[part])
model = jax.tree.map(lambda leaf: placed(leaf, same), jaxcam.load("resnet18_cifar10").tap())
images = placed(np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32), spread)
targets = placed(np.arange(16, dtype=np.int32) % 10, spread)
for name, options in METHODS.items():
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(getattr(jaxcam, name)(model, images, targets, **options))
        seconds.append(time.perf_counter() - began)
    print(name, statistics.median(seconds[1:]), flush=True)
"""
CLOCKED = {"grad_cam": {}, "integrated_gradients": {"num_steps": 32}, "score_cam": {}}


def clock(args) -> None:
    """Prints the medians, and how many times as fast two processes are as one."""
    import numpy as np

    found = {1: [], 2: []}
    for _ in range(args.rounds):
        for count, own in found.items():
            own.append(run(count))
    for name in CLOCKED:
        one, two = (np.array([each[name] for each in found[count]]) for count in (1, 2))
        low, middle, high = np.percentile(one / two, [25, 50, 75])
        print(f"{name}: {np.median(one):.3f} and {np.median(two):.3f} s, {middle:.2f} times ({low:.2f} to {high:.2f})")


def run(count: int) -> dict[str, float]:
    """The seconds of each method, those of the process that took longest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    program = PROCESS.replace("METHODS.items()", f"{CLOCKED}.items()")
    commands = [[sys.executable, "-c", program, str(count), str(index), port] for index in range(count)]
    processes = [subprocess.Popen(each, env=environment, stdout=subprocess.PIPE, text=True) for each in commands]
    said = [[line.split() for line in process.communicate()[0].splitlines()] for process in processes]
    return {name: max(float(dict(each)[name]) for each in said) for name in CLOCKED}


if __name__ == "__main__":
    main()
