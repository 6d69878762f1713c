"""What every method costs on a TPU, by the TPU's own compiler; no TPU is needed.

    pip install -e '.[tpu-compiler]'
    python -m benchmarks.ahead_of_time [--chips v5e] [--dtypes float32] [--batches 8] [--methods lrp] [--chunks]

Each method of a ResNet-50 at 224 px is compiled for one device of each kind. A row says, in forward passes of the same
model, batch and type: the compiler's own count of cycles; the operations of all convolutions and matrix products, which
is the theory; both with every loop as often as it turns; the bytes that are read and written, loops once; and, in MB,
what it holds on the way. A row is saved as soon as it is compiled, and one that is there is not compiled again.
`--chunks` compiles Score-CAM as the package would on a device of so much memory instead, and prints what it chose.
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What libtpu asks a machine with a TPU for.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it only compiles, which several processes may

import jax
import jax.numpy as jnp
from jax.experimental import topologies

import jaxcam
from benchmarks import _hlo, _rows
from benchmarks._rows import NAMES
from jaxcam import _files
from jaxcam._engine import memory
from jaxcam.models.resnet import ARCHITECTURES

RESULTS = Path("benchmarks/results")
CHIPS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
SIDE, CHUNK = 224, 64


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ahead_of_time",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--chunks", action="store_true", help="what the package chooses for Score-CAM on a TPU")
    parser.add_argument("--memory", type=int, default=16, metavar="GB", help="of the device, for --chunks")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    settings = [(chip, dtype, n) for dtype in args.dtypes for n in args.batches for chip in args.chips]
    if args.chunks:
        for setting in settings:
            print(chosen(*setting, args.memory), flush=True)
        return
    path = args.output / "ahead-of-time.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name in ["forward", *args.methods]:
        for chip, dtype, n in settings:
            place = {"method": name, "chip": chip, "dtype": dtype, "batch": n}
            if any(place.items() <= row.items() for row in rows):
                continue
            rows.append(place | measured(name, chip, dtype, n))
            print(rows[-1], flush=True)
            _files.write(path, json.dumps(rows, indent=0) + "\n")
    _files.write(args.output / "ahead-of-time.md", table(rows))


def measured(name: str, chip: str, dtype: str, n: int) -> dict:
    """One method, compiled for one device of that chip."""
    began = time.perf_counter()
    traced = jax.jit(function(name), **on(chip)).trace(*given(dtype, n))
    lowered = traced.lower(lowering_platforms=("tpu",))
    lowered_by = time.perf_counter()
    compiled = lowered.compile()
    compiled_by = time.perf_counter()
    text = compiled.as_text()
    return {
        "cycles": _hlo.total(text, _hlo.cycles),
        "operations": _hlo.total(text, _hlo.operations, fused=True),
        "bytes": compiled.cost_analysis()["bytes accessed"],
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "seconds to trace": round(lowered_by - began, 1),
        "seconds to compile": round(compiled_by - lowered_by, 1),
    }


def function(name: str):
    if name == "forward":
        return lambda model, images, targets: model(images)
    return _rows.method(name, SIDE, 32, CHUNK)


def given(dtype: str, n: int) -> tuple:
    """The shapes of a ResNet-50, of images and targets; no weight is made."""
    module = ARCHITECTURES["resnet50"](dtype=jnp.dtype(dtype))
    images = jax.ShapeDtypeStruct((n, SIDE, SIDE, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
    model = jax.eval_shape(lambda variables: jaxcam.tap(module, variables, "layer4"), variables)
    return model, images, jax.ShapeDtypeStruct((n,), jnp.int32)


def on(chip: str) -> dict:
    place = jax.sharding.SingleDeviceSharding(topologies.get_topology_desc(CHIPS[chip], "tpu").devices[0])
    return {"in_shardings": place, "out_shardings": place}


def chosen(chip: str, dtype: str, n: int, gigabytes: int) -> str:
    """How many masked images Score-CAM has in a pass, by the package's rule and the compiler's bytes."""
    shapes, half = given(dtype, n), gigabytes * 2**30 // 2
    first, used = memory.usual((SIDE, SIDE), half), []

    def needs(share):
        explain = partial(jaxcam.score_cam, chunk_size=int(first * share))
        with memory._set(memory._passes, []) as passes:
            lowered = jax.jit(explain, **on(chip)).trace(*shapes).lower(lowering_platforms=("tpu",))
        used.append(lowered.compile().memory_analysis().temp_size_in_bytes)
        return used[-1], passes

    fit = memory.suitable(needs, half, grows=True)
    need = f"{used[-1] / 2**30:.2f} GB on the way of {gigabytes}"
    return f"{chip}, {dtype}, {n} images: {fit.largest} in a pass, {need}; programs compiled: {len(used)}"


def table(rows: list[dict]) -> str:
    """One line for each method and setting."""
    forward = {(row["chip"], row["dtype"], row["batch"]): row for row in rows if row["method"] == "forward"}
    head = "| method | chip | type | images | cycles | operations | bytes | MB on the way | s to trace | s to compile |"
    lines = [head, "|---|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        one = forward[row["chip"], row["dtype"], row["batch"]]
        passes = [f"{row[each] / one[each]:.2f}" for each in ("cycles", "operations", "bytes")]
        place = [row["method"], row["chip"], row["dtype"], str(row["batch"])]
        rest = [f"{row['temporaries'] / 1e6:.0f}", str(row["seconds to trace"]), str(row["seconds to compile"])]
        lines.append("| " + " | ".join([*place, *passes, *rest]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
