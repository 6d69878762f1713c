"""Several processes and machines, of which one is killed: what is left is the folder of one process, byte for byte."""

import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import helpers
import numpy as np
import pytest
from PIL import Image

import jaxcam
from jaxcam import dataset

ROOT = Path(__file__).parents[1]
COUNT, SIZE = 44, 4

COMMON = """
import os, sys, time
from pathlib import Path
import numpy as np
import jaxcam
from jaxcam import dataset

def model(variables, images):
    return (images.mean((1, 2)) ** 2) @ variables

def preprocess(images):
    '''What the model takes, slowly, so that there is a middle in which to be killed; notes who calls it.'''
    time.sleep(float(os.environ.get("SECONDS", 0)))
    if "NOTES" in os.environ:
        (Path(os.environ["NOTES"]) / str(os.getpid())).touch()
    return np.stack([np.asarray(each.resize((6, 4)), np.float32) / 255 for each in images])

def explain(source, output, **options):
    tap = jaxcam.tap(model, np.eye(3, dtype=np.float32))
    given = {"methods": ["input_x_gradient"], "metrics": ["gini"], "batch_size": 4, "preprocess": preprocess}
    return dataset.explain(tap, source, output, **{**given, **options})
"""


def content(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


RUNNING: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Whatever a test ends in."""
    yield
    while RUNNING:
        process = RUNNING.pop()
        process.kill()
        process.communicate()


def python(program: str, *arguments, **variables) -> subprocess.Popen:
    environment = {**os.environ, **variables, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"}  # whatever else the machine does
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    pipes = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), "text": True}
    command = [sys.executable, "-W", "ignore", "-c", COMMON + program, *map(str, arguments)]
    RUNNING.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    return RUNNING[-1]


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "05.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    """What a single process writes."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    finished(python("explain(sys.argv[1], sys.argv[2])", photos, folder))
    return content(folder)


# --- Ray --------------------------------------------------------------------------------------------------------------

RAY = """
import signal, threading
import ray

def workers():
    return [int(path.name) for path in Path(os.environ["NOTES"]).iterdir() if path.name != str(os.getpid())]

def kill_one():
    '''The first worker that has finished something, while it works on.'''
    while not list(Path(output, "done").glob("*.json")):
        time.sleep(0.01)
    victim = workers()[0]
    os.kill(victim, signal.SIGKILL)
    killed.append((victim, len(list(Path(output, "done").glob("*.json")))))

if __name__ == "__main__":
    source, output = sys.argv[1:]
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:  # a machine that lets no cluster start
        print("no Ray here:", " ".join(str(error).split()))
        sys.exit()
    killed, done = [], []
    threading.Thread(target=kill_one, daemon=True).start()
    results = explain(source, output, engine="ray", engine_options={"num_workers": 2}, progress=done.append)
    assert results.is_complete and done[-1].new == done[-1].total and done[-1].errors == 1, done[-1]
    number = len(workers())
    images = ray.data.read_images([f"{source}/{index}.png" for index in range(10, 20)], include_paths=True)
    options = {"methods": ["input_x_gradient"], "preprocess": preprocess, "batch_size": 4}
    found = images.map_batches(
        dataset.Explainer,
        fn_constructor_args=(jaxcam.tap(model, np.eye(3, dtype=np.float32)),),
        fn_constructor_kwargs=options,
        batch_size=4,
        compute=ray.data.ActorPoolStrategy(size=1),
    ).take_all()
    table = {row["file"]: row for row in results.table().to_pylist()}
    for row in found:
        expected = table[Path(row["path"]).name]
        assert row["prediction"] == expected["prediction"] and row["error"] == ""
        np.testing.assert_array_equal(row["input_x_gradient"], results.maps["input_x_gradient"][expected["index"]])
    ray.shutdown()
    print("\\n", number, killed[0][1], len(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray has no wheel for this Python")
def test_a_worker_of_ray_is_killed(photos, alone, tmp_path):
    """In the middle; another takes its place, and nothing is lost. The class for Ray Data gives the same maps."""
    (tmp_path / "notes").mkdir()
    run = python(RAY, photos, tmp_path / "out", NOTES=str(tmp_path / "notes"), SECONDS="0.03")
    said = finished(run).splitlines()[-1]
    if said.startswith("no Ray here"):
        pytest.skip(said)
    workers, before, others = map(int, said.split())
    assert workers == 3 and 1 <= before < COUNT // SIZE and others == 10
    assert content(tmp_path / "out") == alone


# --- Several processes of JAX -----------------------------------------------------------------------------------------

PROCESS = """
import jax
source, output, port, place = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(place))
assert len(jax.devices()) == 2 and len(jax.local_devices()) == 1
done = []
explain(source, output, progress=done.append)
print(done[-1].done, done[-1].new, flush=True)
if "SECONDS" in os.environ:
    sys.stdin.read()  # the other lives as long as this one, whichever is the faster, and is killed before that
    os._exit(0)  # without waiting for the other, which is dead
"""


def two(photos, folder, **variables) -> list[subprocess.Popen]:
    """Two processes of one run, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [python(PROCESS, photos, folder, port, place, **variables) for place in (0, 1)]


def test_a_process_of_two_is_killed(photos, alone, tmp_path):
    """The other finishes what is its own; started again, they do what is missing."""
    folder, (first, second) = tmp_path / "out", two(photos, tmp_path / "out", SECONDS="0.05")
    until = time.monotonic() + 120
    while not (folder / "done" / "00000001.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    second.kill()  # which has done one range of five at least
    second.communicate()
    assert finished(first).split() == ["24", "24"]
    before = len(dataset.open(folder).ranges)
    assert 7 <= before < 11
    counts = [finished(process).split() for process in two(photos, folder)]
    assert counts == [["24", "0"], ["20", str(4 * (11 - before))]]
    assert content(folder) == alone


def test_without_ray_it_says_what_to_install(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    preprocess = jaxcam.image.Preprocess(12, 12, (0.5,) * 3, (0.5,) * 3)
    model = helpers.small(shape=(12, 12))
    with pytest.raises(ValueError, match=r"needs Ray: pip install 'jaxcam-xai\[ray\]'"):
        dataset.explain(model, photos, tmp_path / "out", methods=["grad_cam"], preprocess=preprocess, engine="ray")


def test_explainer_takes_any_batch():
    """Of any size, images of any sizes, grey or with a label; what cannot be read is blank and says why."""
    preprocess = jaxcam.image.Preprocess(12, 12, (0.5,) * 3, (0.5,) * 3)
    model = helpers.small(shape=(12, 12))
    options = {"methods": ["grad_cam"], "metrics": ["gini"], "targets": "label", "preprocess": preprocess}
    explainer = dataset.Explainer(model, batch_size=4, **options)
    rng = np.random.default_rng(0)
    images = np.empty(6, object)
    for index in range(6):
        images[index] = rng.integers(0, 255, (12 + index, 15, 3), np.uint8)
    images[4] = images[4][..., 0]
    images[2] = np.zeros((0, 3, 3), np.uint8)
    found = explainer({"image": images, "label": np.arange(6) % 4, "path": np.array(list("abcdef"))})
    assert found["grad_cam"].shape == (6, 12, 12) and found["grad_cam"].dtype == np.float16
    assert np.isnan(found["grad_cam"][2]).all() and np.isnan(found["grad_cam_gini"][2]) and found["error"][2]
    assert found["prediction"][2] == -1 and list(found["path"]) == list("abcdef")
    assert [found["target"][index] for index in (0, 1, 3, 4, 5)] == [0, 1, 3, 0, 1]
    expected = jaxcam.grad_cam(model, preprocess(images[5]), 1)[0]
    np.testing.assert_allclose(found["grad_cam"][5], expected, atol=1e-3)
    with pytest.raises(ValueError, match="has no column 'image'; it has pixels"):
        explainer({"pixels": images})
    with pytest.raises(ValueError, match="pass preprocess="):
        dataset.Explainer(model, methods=["grad_cam"])
