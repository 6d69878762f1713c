"""Whole data sets, measured: speed against the bare method, memory, devices, processes, workers, and being killed.

    python -m benchmarks.scale throughput --data-dir DIR     images/s of the runner and of the jitted method in memory
    python -m benchmarks.scale memory --data-dir DIR         the most memory that 1,000 and 50,000 images take
    python -m benchmarks.scale machines --data-dir DIR       1 to 8 fake devices, 1 and 2 processes, 1 and 2 Ray workers
    python -m benchmarks.scale killed --data-dir DIR         ten SIGKILLs at random moments; equal byte for byte?

DIR is a TFDS data directory with CIFAR-10. Every run is a process of its own; each prints a line as it ends.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = ["explain-dataset", "--model", "resnet18_cifar10"]


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", choices=["throughput", "memory", "machines", "killed"])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--images", type=int, help="of the test split (default: as each measurement needs)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=["grad_cam", "saliency"])
    parser.add_argument("--metrics", nargs="*", default=["road", "deletion"])
    parser.add_argument("--only", default="", help="of the machines: the rows whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        {"throughput": throughput, "memory": memory, "machines": machines, "killed": killed}[args.what](
            args, Path(folder)
        )


def throughput(args, folder):
    """The runner against `jax.jit(grad_cam)` on batches in memory, in turns, the compilation left out."""
    import jax
    import numpy as np

    import jaxcam

    classifier = jaxcam.load("resnet18_cifar10")
    model, method, count, batch = classifier.tap(), jax.jit(jaxcam.grad_cam), args.images or 1920, 64
    images = np.random.default_rng(0).normal(size=(batch, 32, 32, 3)).astype(np.float32)
    jax.block_until_ready(method(model, images))
    ratios = []
    for turn in range(args.rounds):
        start = time.perf_counter()
        for _ in range(count // batch):
            jax.block_until_ready(method(model, images))
        bare = count / (time.perf_counter() - start)
        marks, waits = [], []

        def mark(progress, marks=marks, waits=waits):
            marks.append((time.perf_counter(), progress.new))
            waits.append(progress.waiting)

        options = {"methods": ["grad_cam"], "data_dir": args.data_dir, "batch_size": batch, "progress": mark}
        jaxcam.dataset.explain(classifier, f"tfds:cifar10/test[:{count}]", folder / str(turn), **options)
        (first, before), (last, after) = marks[4], marks[-1]  # after the program was compiled and the pipeline filled
        rate = (after - before) / (last - first)
        ratios.append(rate / bare)
        print(
            f"bare {bare:.1f}, runner {rate:.1f} images/s, ratio {ratios[-1]:.3f}, waiting {waits[-1]:.2%}", flush=True
        )
    print(f"median ratio {statistics.median(ratios):.3f} of {args.rounds} rounds")


MEMORY = """
import json, resource, sys
import jaxcam
if __name__ == "__main__":
    marks = []
    def mark(progress):
        marks.append((progress.new, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
    options = {"methods": ["grad_cam"], "data_dir": sys.argv[3], "progress": mark}
    jaxcam.dataset.explain("resnet18_cifar10", sys.argv[1], sys.argv[2], **options)
    print(json.dumps(marks[:: max(1, len(marks) // 10)] + marks[-1:]))
"""


def memory(args, folder):
    """The peak of a process, in MiB, as the number of images grows."""
    for source in ("tfds:cifar10/train[:1000]", "tfds:cifar10/train"):
        command = [sys.executable, "-W", "ignore", "-c", MEMORY, source, str(folder / str(len(source))), args.data_dir]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        print(source, "images and MiB:", done.stdout.strip(), flush=True)


MACHINES = """
import json, sys
import jaxcam
if __name__ == "__main__":
    source, output, data_dir, options = sys.argv[1:]
    options = {"methods": ["grad_cam"], "data_dir": data_dir, "batch_size": 64, **json.loads(options)}
    jaxcam.dataset.explain("resnet18_cifar10", source, output, **options)
"""


def machines(args, folder):
    """Images/s with fake devices, processes and workers, all on the cores of this machine; without the first fifth."""
    import numpy as np

    import jaxcam

    count = args.images or 3200
    source = f"tfds:cifar10/test[:{count}]"
    rows = [(f"{n} devices", n, [{}]) for n in (1, 2, 4, 8)]
    rows += [("2 processes", 1, [{"part": (0, 2)}, {"part": (1, 2)}])]
    rows += [(f"{n} Ray workers", 1, [{"engine": "ray", "engine_options": {"num_workers": n}}]) for n in (1, 2)]
    alone = None
    for name, devices, parts in rows[:1] + [row for row in rows[1:] if args.only in row[0]]:
        output = folder / name.replace(" ", "-")
        # Ray's workers are nice to others; the other rows are not.
        environment = {
            **os.environ,
            "RAY_worker_niceness": "0",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        running = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", MACHINES, source, str(output), args.data_dir, json.dumps(part)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
            )
            for part in parts
        ]  # fmt: skip
        for each in running:
            _, err = each.communicate()
            assert each.returncode == 0, err[-2000:]
        times = sorted(path.stat().st_mtime for path in (output / "done").iterdir())
        skipped = len(times) // 5  # until all have begun
        rate = 64 * (len(times) - 1 - skipped) / (times[-1] - times[skipped])
        found = jaxcam.dataset.open(output)
        alone = alone or found
        assert found.is_complete and not found.check()
        maps = [np.asarray(each.maps["grad_cam"][:], np.float32) for each in (alone, found)]
        largest, bits = np.abs(maps[0] - maps[1]).max(), _maps(_content(output)) == _maps(_content(alone.folder))
        print(f"| {name} | {rate:.0f} | {'the same bytes' if bits else f'{largest:.1e}'} |", flush=True)


def _maps(content: dict) -> dict:
    return {name: each for name, each in content.items() if not name.startswith(("manifest", "done"))}


def killed(args, folder):
    """The same run twice, once undisturbed and once killed at random moments; are the folders equal byte for byte?"""
    split = f"test[:{args.images}]" if args.images else "test"
    rest = [
        "--data-dir",
        args.data_dir,
        "--methods",
        *args.methods,
        *(["--metrics", *args.metrics] if args.metrics else []),
    ]
    command = [sys.executable, "-m", "jaxcam", *RUN, f"tfds:cifar10/{split}", *rest]
    seconds = {}
    start = time.perf_counter()
    subprocess.run([*command, "--output", folder / "whole"], check=True, cwd=ROOT)
    seconds["undisturbed"] = time.perf_counter() - start
    ranges = json.loads((folder / "whole" / "manifest.json").read_text())["ranges"]
    draw = random.Random(args.seed)
    done, start = folder / "killed" / "done", time.perf_counter()
    for goal in sorted(draw.sample(range(ranges - 1), args.kills)):
        running = subprocess.Popen([*command, "--output", folder / "killed"], cwd=ROOT, stdout=subprocess.DEVNULL)
        while running.poll() is None and len(list(done.glob("*.json"))) <= goal:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 60 / ranges))
        running.kill()
        running.wait()
        left = sum(1 for _ in (folder / "killed").rglob(".*.unfinished"))
        print(
            f"killed with {len(list(done.glob('*.json')))} of {ranges} ranges done, {left} files unfinished", flush=True
        )
    subprocess.run([*command, "--output", folder / "killed"], check=True, cwd=ROOT)
    seconds["killed"] = time.perf_counter() - start
    whole, other = _content(folder / "whole"), _content(folder / "killed")
    differing = [name for name in {**whole, **other} if whole.get(name) != other.get(name)]
    print(f"{len(whole)} files, {len(differing)} differ {differing[:3]}; seconds {seconds}", flush=True)
    subprocess.run([sys.executable, "-m", "jaxcam", "report", folder / "killed"], check=True, cwd=ROOT)
    shutil.copy(folder / "killed.html", Path.cwd() / "killed.html")


def _content(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    main()
