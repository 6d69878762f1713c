"""Kills writers in the middle: a process may write files of so many bytes, and at the next one the kernel kills it.

    python tests/kill_writers.py FOLDER

prints, for every kind of file that the package writes, how the writer ended, what then stood under the final name,
and what else was left. `test_files.py` reads it. Each writer is a fork of one process, which has imported everything.
"""

import json
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import numpy as np

OLD = b"what was there before"


def picture(path):
    from jaxcam import plot

    noise = np.random.default_rng(0).integers(0, 256, (1, 200, 200, 3), np.uint8)
    plot.save(plot.overlay(noise, np.ones((1, 4, 4))), path)


def report(path):
    from jaxcam import _files

    _files.write(path, json.dumps(list(range(10_000))))


def weights(path):
    from jaxcam.models import save

    save(path, {"params": {"fc": {"kernel": np.ones((100, 100), np.float32)}}})


def download(path):
    from jaxcam.models import _download

    _download.fetch(path.with_name("source").as_uri(), path)


def page(path):
    from experiments import _report

    _report.write_section("name", "x" * 30_000, path)


def part(path):
    import argparse

    from experiments import _study

    args = argparse.Namespace(output=path.parents[1], smoke=False)
    _study.part(args, path.stem, lambda: {"values": np.random.default_rng(0).random(5000)})


def checkpoint(path):
    _checkpoint(path, 2)


def _checkpoint(path, step):
    from jaxcam import train

    rng = np.random.default_rng(step)
    state = train.State(np.int32(step), {"w": rng.random((100, 100), np.float32)}, {}, ())
    train.save(path, state, [{"epoch": step}], {"seed": 0})


def programs(path):
    from jaxcam.cli import _common

    os.environ["JAXCAM_CACHE"] = str(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _common.keep_programs()
        _compiled()


def _compiled():
    import jax

    numbers = jax.jit(lambda x: sum((x @ x + each for each in range(9)), x))(np.ones((8, 8), np.float32))
    assert float(numbers[0, 0]) == 109


KINDS = {  # how it is written, under which name, and after how many bytes it is killed
    "picture": (picture, "a.png", 9000),
    "report": (report, "a.json", 9000),
    "weights": (weights, "a.safetensors", 9000),
    "download": (download, "cache/a.pth", 9000),
    "page": (page, "README.md", 9000),
    "part": (part, "parts/a.npz", 9000),
    "checkpoint": (checkpoint, "checkpoints", 9000),
    "programs": (programs, "programs", 3000),
}


def killed(write, path, most) -> int:
    """The signal that ended a fork which writes."""
    sys.stdout.flush()
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        if most:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python has it ignored
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        write(path)
        status = 0
    finally:
        os._exit(status)


def main(folder: Path) -> None:
    for name, (write, file, most) in KINDS.items():
        path = folder / name / file
        path.parent.mkdir(parents=True)
        old = OLD if name != "page" else b"<!-- name --><!-- /name -->"
        if name == "checkpoint":
            assert killed(lambda path: _checkpoint(path, 1), path, None) == 0
        elif name not in ("programs", "part"):
            path.write_bytes(old)
            path.with_name("source").write_bytes(bytes(50_000))  # of the download
        ended = killed(write, path, most)
        kept = path.read_bytes() == old if path.is_file() else not path.exists()
        if name == "checkpoint":
            kept = killed(_restored, path, None) == 0
        elif name == "programs":
            kept = killed(write, path, None) == 0  # the next run meets no half of a program
        beside = [each.name for each in path.parent.iterdir() if each.name not in (path.name, "source")]
        again = killed(write, path, None)
        now = path.read_bytes() != old if path.is_file() else path.is_dir()
        print(json.dumps({"kind": name, "ended": ended, "kept": kept, "beside": beside, "again": again, "now": now}))


def _restored(path) -> None:
    """The checkpoint that was there before, in a fork: this process must not start Orbax's threads."""
    from jaxcam import train

    like = train.State(np.int32(0), {"w": np.zeros((100, 100), np.float32)}, {}, ())
    state, history = train.restore(path, like, {"seed": 0})
    assert history == [{"epoch": 1}]
    assert np.array_equal(state.params["w"], np.random.default_rng(1).random((100, 100), np.float32))


if __name__ == "__main__":
    from experiments import _report, _study  # noqa: F401 - once, for all forks
    from jaxcam import plot, train  # noqa: F401
    from jaxcam.cli import _common  # noqa: F401

    main(Path(sys.argv[1]))
