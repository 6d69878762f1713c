"""A run over a data set: whatever happens on the way, the finished folder is the same, byte for byte."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcam
from jaxcam import _files, cli, dataset
from jaxcam.dataset import program, ranges, read, run, sources

ROOT = Path(__file__).parents[1]
SIZE, COUNT = 8, 21  # three ranges, the last of which is not full
ONE = jax.devices()[:1]
METHODS, METRICS = ("saliency", "input_x_gradient"), ("average_drop", "gini")


def quick(variables, images):
    """A model that is quick to compile."""
    return (jnp.sin(5 * images).mean((1, 2)) + images[:, 3, 5]) @ variables


MODEL = jaxcam.tap(quick, np.arange(12, dtype=np.float32).reshape(3, 4) % 5)


def preprocess(images):
    """What the small model takes."""
    return np.stack([np.asarray(each.resize((16, 12)), np.float32) / 255 for each in images])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of small pictures, of which one is no picture and one is empty."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (14, 18, 3), np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "17.png").write_bytes(b"")
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def explain(photos, output, **options):
    given = {"methods": METHODS, "metrics": METRICS, "preprocess": preprocess, "batch_size": SIZE, "devices": ONE}
    return dataset.explain(MODEL, photos, output, **{**given, **options})


def content(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The results of a run that nothing disturbed."""
    return explain(photos, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole.folder, tmp_path / "out"))


# --- What it computes -------------------------------------------------------------------------------------------------


def test_the_heatmaps_are_those_of_the_methods(photos, whole):
    assert whole.is_complete and whole.check() == []
    done = f"{COUNT} images, {', '.join(METHODS)}, {len(whole.ranges)} of {len(whole.ranges)} ranges done"
    assert repr(whole) == f"Results('{whole.folder}': {done})"
    table = whole.table().to_pydict()
    good = [index for index in range(COUNT) if index not in (3, 17)]
    paths = [photos / f"{index:02d}.png" for index in good]
    images = preprocess([jaxcam.image.open_image(path) for path in paths])
    expected = jaxcam.explain(MODEL, images, methods=METHODS)
    for name, each in expected.items():
        found = np.asarray(whole.maps[name][:])
        np.testing.assert_allclose(found[good], each, atol=1e-3)
        assert found.dtype == np.float16 and np.isnan(found[[3, 17]]).all()
    logits = np.asarray(MODEL(images))
    assert [table["prediction"][index] for index in good] == logits.argmax(-1).tolist()
    drop = jaxcam.metrics.average_drop(MODEL, images, expected["saliency"], logits.argmax(-1))
    np.testing.assert_allclose([table["saliency_average_drop"][index] for index in good], drop, atol=1e-5)
    pixels = np.asarray(jaxcam.image.open_image(paths[0]))
    assert table["sha256"][0] == hashlib.sha256(pixels).hexdigest()
    assert table["index"] == list(range(COUNT)) and table["file"][20] == "20.png"


def test_a_broken_image_is_a_row(whole):
    rows = whole.table().to_pylist()
    assert "is not an image that Pillow can read" in rows[3]["error"] and "is empty (0 bytes)" in rows[17]["error"]
    assert [row["index"] for row in rows if row["error"]] == [3, 17]
    for name in ("prediction", "target", "top5", "sha256", "saliency_gini"):
        assert rows[3][name] is None and rows[4][name] is not None


def test_other_tools_read_it(whole):
    zarr = pytest.importorskip("zarr")
    import pyarrow.dataset

    maps = zarr.open_group(whole.folder / "maps", mode="r")
    np.testing.assert_array_equal(maps["saliency"][4:18], np.asarray(whole.maps["saliency"][4:18]))
    assert pyarrow.dataset.dataset(whole.folder / "table").to_table().num_rows == COUNT


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("uint8", 0.51 / 255)])
def test_types_of_heatmaps(photos, whole, tmp_path, dtype, bound):
    results = explain(photos, tmp_path / "out", methods=["saliency"], metrics=(), dtype=dtype)
    found = np.asarray(results.maps["saliency"][:])
    assert found.dtype == dtype
    expected = np.nan_to_num(np.asarray(whole.maps["saliency"][:], np.float32))
    np.testing.assert_allclose(np.nan_to_num(found) / (255 if dtype == "uint8" else 1), expected, atol=bound + 5e-4)


# --- Where images come from -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same four pictures in every kind of place, and the name of that."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(1)
    contents = []
    for index in range(4):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (5 + index, 7, 3), np.uint8)).save(buffer, format="PNG")
        contents.append(buffer.getvalue())
        for place in (folder / "flat", folder / "tree" / ("cat" if index < 2 else "dog")):
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index}.png").write_bytes(buffer.getvalue())
    (folder / "tree" / "dog" / "again").symlink_to(folder / "tree")  # a loop
    (folder / "list.txt").write_text("".join(f"flat/{index}.png\n" for index in range(4)))
    (folder / "classes.txt").write_text(
        "".join(f"flat/{index}.png\t{'cat' if index < 2 else 'dog'}\n" for index in range(4))
    )
    (folder / "numbers.txt").write_text("".join(f"flat/{index}.png\t{index // 2}\n" for index in range(4)))
    images = [{"bytes": each, "path": f"{index}.png"} for index, each in enumerate(contents)]
    pq.write_table(pa.table({"image": images, "label": [0, 0, 1, 1]}), folder / "hub.parquet", row_group_size=3)
    pq.write_table(pa.table({"image": contents}), folder / "bytes.parquet")
    writer = ArrayRecordWriter(str(folder / "images.array_record"), "group_size:1")
    for each in contents:
        writer.write(each)
    writer.close()
    return folder, contents


LABELLED = {"tree": True, "classes.txt": True, "numbers.txt": True, "hub.parquet": True}
PLACES = [*LABELLED, "flat", "flat/*.png", "list.txt", "bytes.parquet", "*.parquet", "images.array_record"]


@pytest.mark.parametrize("place", PLACES)
def test_every_kind_of_source(places, place):
    folder, contents = places
    source = sources.source_of(str(folder / place))
    items = source.read(range(len(source)))
    pixels = [np.asarray(jaxcam.image.decode_image(each)) for each in contents]
    expected = [hashlib.sha256(each).hexdigest() for each in pixels]
    found = [read.image_of(item)[1] for item in items]
    assert found == (expected * 2 if place == "*.parquet" else expected)
    if place != "*.parquet":
        assert [item.label for item in items] == ([0, 0, 1, 1] if place in LABELLED else [None] * 4)
    assert source.digest() == sources.source_of(str(folder / place)).digest()
    assert source.read([2])[0].name == items[2].name  # any row, in any order


def test_another_file_is_another_source(places, tmp_path):
    folder = Path(shutil.copytree(places[0] / "flat", tmp_path / "flat"))
    before = sources.source_of(folder).digest()
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes() + b"more")
    assert sources.source_of(folder).digest() != before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "There is no file or folder"),
        ("empty", "holds no images"),
        ("empty/*.jpg", "holds no images"),
        ("tfds:cifar10", "names no split; write tfds:NAME/SPLIT"),
        ("half.txt", "gives a class behind a tab in some lines and not in line 2"),
    ],
)
def test_sources_that_are_none(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half.txt").write_text("a.png\tcat\nb.png\n")
    with pytest.raises((ValueError, OSError), match=words):
        sources.source_of(name if name.startswith("tfds:") else tmp_path / name)


def test_a_row_that_its_source_cannot_read(places):
    """Is a row with an error, too, and the other rows of its batch are read."""

    class Torn:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def read(self, rows):
            if 2 in rows:
                raise RuntimeError("the record is torn")
            return self.source.read(rows)

    batch = read.Loader(Torn(sources.source_of(places[0] / "flat")), preprocess, 4, 4, None)(0)
    assert batch.errors == [None, None, "the record is torn", None] and batch.names[2] == "row 2"
    assert batch.images.any((1, 2, 3)).tolist() == [True, True, False, True]


def test_labels_by_name_or_in_order(places, tmp_path):
    """The folders of a tree are the model's classes by their names, or in order where there are as many."""
    assert run._classes(("cat", "dog"), ["Dog", "bird", "CAT"]) == (2, 0)
    assert run._classes(("n01", "n02"), ["tench", "goldfish"]) is None
    assert run._classes(("a", "b", "c"), ["tench", "goldfish"]) == (None, None, None)
    results = explain(places[0] / "tree", tmp_path / "out", labels=["dog", "x", "cat", "y"], targets="label")
    table = results.table().to_pydict()
    assert table["label"] == table["target"] == [2, 2, 0, 0]


def test_readers_in_processes_read_the_same(places):
    """Grain's worker processes, which are spawned; they get numbers and send batches."""
    loader = read.Loader(
        sources.source_of(places[0] / "flat"), jaxcam.image.Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3), 3, 4, None
    )
    here, there = (list(read.batches(loader, [0, 1], workers=each)) for each in (0, 1))
    assert len(here) == len(there) == 2
    for a, b in zip(here, there, strict=True):
        assert a[:-1] == b[:-1]
        np.testing.assert_array_equal(a.images, b.images)
        assert a.images.shape == (4, 8, 8, 3)


# --- Interruptions ----------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2])
def test_it_goes_on_where_it_stopped(photos, whole, tmp_path, after):
    """Only what is missing is computed, and the folder is the same in the end."""
    seen = []

    def stop(progress):
        if len(seen) == after:
            raise Stop
        seen.append(progress)

    with pytest.raises(Stop):
        explain(photos, tmp_path / "out", progress=stop)
    before = dataset.open(tmp_path / "out").ranges
    explain(photos, tmp_path / "out", progress=seen.append)
    assert seen[-1].done == seen[-1].total == COUNT and seen[-1].errors == 2
    assert seen[-1].new == COUNT - sum(min(SIZE, COUNT - SIZE * index) for index in before)
    assert content(tmp_path / "out") == content(whole.folder)


KILLED = """
import os, pathlib, signal, sys, warnings
warnings.simplefilter("ignore")
import jax, numpy as np
import jaxcam
from jaxcam import _files, dataset

def model(variables, images):
    return (images.mean((1, 2)) ** 2) @ variables

def preprocess(images):
    return np.stack([np.asarray(each.resize((6, 4)), np.float32) / 255 for each in images])

def explain(output):
    tap = jaxcam.tap(model, np.eye(3, dtype=np.float32))
    options = {"methods": ["input_x_gradient"], "preprocess": preprocess, "batch_size": 8}
    return dataset.explain(tap, sys.argv[1], output, **options)

def die(at, half):
    '''At the at-th file, before it has its name, with all or half of its content written.'''
    count, replace = 0, pathlib.Path.replace
    def replaced(path, target):
        nonlocal count
        if ".unfinished" in path.name:
            count += 1
            if count == at:
                if half:
                    with path.open("r+b") as file:
                        file.truncate(path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)
    pathlib.Path.replace = replaced

for at, half in [(1, True), (2, False), (3, True), (4, True), (5, False), (6, True), (8, True), (0, False)]:
    child = os.fork()
    if child == 0:
        die(at, half)
        explain(sys.argv[2])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) == (at > 0), (at, status)
    print(at, len(list((pathlib.Path(sys.argv[2]) / "done").glob("*.json"))))
child = os.fork()
if child == 0:
    explain(sys.argv[3])
    os._exit(0)
os.waitpid(child, 0)
"""


def test_killed_again_and_again(photos, tmp_path):
    """By SIGKILL, at every kind of file, half-written or not: what is finished in the end is the same."""
    command = [sys.executable, "-c", KILLED, photos, tmp_path / "killed", tmp_path / "undisturbed"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert counts[0] == 0 and counts[-1] == 3 and counts == sorted(counts) and len(counts) == 8
    assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")


def test_parts_make_a_whole(photos, whole, tmp_path):
    """Two processes with one folder; neither writes what is the other's."""
    for place in (0, 1):
        results = explain(photos, tmp_path / "out", part=(place, 2))
        assert results.is_complete == (place == 1)
        assert results.ranges == [[0, 2], [0, 1, 2]][place]
    assert content(tmp_path / "out") == content(whole.folder)


# --- What is refused, and what is damaged -----------------------------------------------------------------------------


CHANGES = [
    ({"methods": ["input_x_gradient"]}, "settings methods saliency was {} and is now absent"),
    (
        {"methods": {"input_x_gradient": {}, "saliency": {"score": jaxcam.score.margin}}},
        "absent and is now jaxcam.score.margin",
    ),
    ({"metrics": ("gini",)}, "settings metrics average_drop was {} and is now absent"),
    ({"targets": 2}, "settings targets was predicted and is now 2"),
    ({"dtype": "uint8"}, "settings dtype was float16 and is now uint8"),
    ({"batch_size": 4}, "settings batch_size was 8 and is now 4"),
    ({"devices": jax.devices()[:2]}, "device count was 1 and is now 2"),
    ({"resume": False}, "holds a run already"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=lambda each: str(each)[:30])
def test_changes_are_refused(photos, copy, change, words):
    before = content(copy)
    with pytest.raises(ValueError, match=words):
        explain(photos, copy, **change)
    assert content(copy) == before


def test_another_model_or_source_is_refused(photos, copy, tmp_path):
    other = jaxcam.tap(quick, np.ones((3, 4), np.float32))
    options = {"methods": METHODS, "metrics": METRICS, "preprocess": preprocess, "batch_size": SIZE, "devices": ONE}
    with pytest.raises(ValueError, match="model sha256 was [0-9a-f]{12} and is now"):
        dataset.explain(other, photos, copy, **options)
    fewer = Path(shutil.copytree(photos, tmp_path / "fewer"))
    (fewer / "20.png").unlink()
    with pytest.raises(ValueError, match="images was 21 and is now 20; source sha256 was"):
        explain(fewer, copy)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "diary.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        explain(photos, folder)
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        explain(photos, folder / "diary.txt")


def test_what_may_differ_if_the_user_says_so(photos, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["versions"]["jax"] = "0.9"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"versions jax was 0.9 and is now {jax.__version__}"):
        explain(photos, copy)
    assert explain(photos, copy, allow=["versions"]).is_complete


@pytest.mark.parametrize("file", ["maps/saliency/c.1.0.0", "table/00000001.parquet", "done/00000001.json"])
@pytest.mark.parametrize("how", ["altered", "cut", "gone"])
def test_a_damaged_range_is_computed_again(photos, whole, copy, file, how):
    """With one sentence; the rest is kept."""
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data if how == "altered" else data[:-9])
    if how == "gone":
        (copy / file).unlink()
    seen = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explain(photos, copy, progress=seen.append)
    said = [str(each.message) for each in caught if "damaged" in str(each.message)]
    if not (file.startswith("done") and how in ("gone", "altered")):
        assert said == [f"Range 1 is damaged: '{copy / file}' is not what was written. It is computed again."]
    assert seen[-1].new == SIZE
    assert content(copy) == content(whole.folder)


def test_a_full_disk_is_one_sentence_and_the_rest_is_kept(photos, whole, tmp_path, monkeypatch):
    written, writing = [], _files.writing

    def full(path):
        if len(written) >= 9:
            raise OSError(28, "No space left on device")
        written.append(path)
        return writing(path)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "writing", full)
        with pytest.raises(OSError, match="Cannot write '.*': No space left on device"):
            explain(photos, tmp_path / "out")
    assert dataset.open(tmp_path / "out").ranges == [0]
    assert explain(photos, tmp_path / "out").check() == []
    assert content(tmp_path / "out") == content(whole.folder)


def test_too_many_errors_stop_it(photos, whole, tmp_path):
    with pytest.raises(
        ValueError, match=r"2 images could not be read, .* max_errors=1; the last of them: 17.png: '.*17.png' is"
    ):
        explain(photos, tmp_path / "out", max_errors=1)
    assert explain(photos, tmp_path / "out", max_errors=2).is_complete
    assert content(tmp_path / "out") == content(whole.folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["gradcam"]}, "Unknown method 'gradcam'. Did you mean"),
        ({"methods": []}, "No methods are given"),
        ({"methods": "grad_cam"}, "it must be a list of methods"),
        ({"methods": ["xrai"]}, "looks at each image before anything is compiled"),
        ({"metrics": ["rode"]}, "Unknown metric 'rode'"),
        ({"metrics": ["pointing_game"]}, "needs more than an image and its heatmap"),
        ({"targets": "cat"}, 'it must be "predicted", "label"'),
        ({"targets": "label"}, "the source has no labels"),
        ({"dtype": "int8"}, "Unknown dtype 'int8'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_errors": -1}, "max_errors is -1"),
        ({"part": (2, 2)}, "the i-th of n processes"),
        ({"allow": ["weights"]}, "Unknown section that may differ 'weights'"),
        ({"engine": "spark"}, "Unknown engine 'spark'"),
        ({"preprocess": None}, "pass preprocess="),
    ],
    ids=lambda each: str(each)[:25],
)
def test_mistakes_are_sentences_and_write_nothing(photos, tmp_path, change, words):
    with pytest.raises((ValueError, TypeError), match=words):
        explain(photos, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_it_says_how_long_devices_waited(photos, tmp_path):
    """For images, that is: here they come late."""

    def late(images):
        time.sleep(0.03 * len(images))
        return preprocess(images)

    work = program.work_of(MODEL, methods=["saliency"])
    jobs = [
        ranges.Job(work, read.Loader(sources.source_of(photos), each, 4, 4, None), tmp_path / str(place), 0, ONE)
        for place, each in enumerate((preprocess, late))
    ]
    step, _ = program.compiled(work, ONE)
    at_once, waiting = (sum(each.waited for each in ranges.compute(job, range(6), step)) for job in jobs)
    assert waiting > 0.1 and at_once < 0.5  # 0.12 s a batch, two at a time


# --- Several devices --------------------------------------------------------------------------------------------------


def precise(photos, output, model=None, **options):
    given = {"methods": ["grad_cam", "saliency"], "preprocess": preprocess, "dtype": "float32", **options}
    results = dataset.explain(helpers.small() if model is None else model, photos, output, **given)
    return {name: np.asarray(each[:]) for name, each in results.maps.items()}, results.table().to_pydict()


def assert_same(found, expected):
    for name, each in expected[0].items():
        np.testing.assert_allclose(found[0][name], each, atol=1e-6)
    for name, each in expected[1].items():
        if "probability" not in name:
            assert found[1][name] == each


def test_eight_devices_give_what_one_does(photos, tmp_path):
    """By default all of them; 10 images a batch are no multiple of 8, and neither is the one image of the last."""
    one = precise(photos, tmp_path / "one", batch_size=10, devices=ONE)
    eight = precise(photos, tmp_path / "eight", batch_size=10)
    assert dataset.open(tmp_path / "eight").manifest["device"]["count"] == 8
    assert_same(eight, one)


def test_devices_send_each_other_nothing():
    """And each holds its own images alone."""
    metrics = {"average_drop": {}, "deletion": {"num_steps": 3}, "gini": {}}
    work = program.work_of(helpers.small(), methods=("grad_cam", "saliency"), metrics=metrics)
    step, spread = program.compiled(work)
    images, labels = np.zeros((16, 12, 16, 3), np.float32), np.zeros(16, np.int32)
    lowered = step.lower(images, labels).compile()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (\(?.*?) ({kinds})(?:-start)?\(", lowered.as_text())
    assert spread == 8 and not [each for each in found if re.search(r"\[\d", each[0])]
    for each in jax.tree.leaves(step(images, labels)):
        assert {shard.data.shape[0] for shard in each.addressable_shards} == {2}


@pytest.mark.parametrize("axes", [("rows", "channels"), ("channels",)])
def test_weights_stay_where_the_caller_put_them(photos, tmp_path, axes):
    """Sharded over channels; images go to what is left of the mesh."""
    sizes = {("rows", "channels"): (4, 2), ("channels",): (2,)}[axes]
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, axes, (jax.sharding.AxisType.Auto,) * len(axes), devices=devices)

    def place(leaf):
        last = "channels" if leaf.shape[-1] % 2 == 0 else None
        return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*[None] * (leaf.ndim - 1), last)))

    model = jax.tree.map(place, helpers.small())
    work = program.work_of(model, methods=["grad_cam"])
    kept, at, spread = program.placed(work.model, jax.local_devices())
    assert [a.sharding for a in jax.tree.leaves(kept)] == [a.sharding for a in jax.tree.leaves(model)]
    assert spread == (4 if len(axes) == 2 else 1) and at.spec == (jax.P(("rows",)) if len(axes) == 2 else jax.P(None))
    one = precise(photos, tmp_path / "one", batch_size=10, devices=ONE)
    assert_same(precise(photos, tmp_path / "sharded", model, batch_size=10), one)


# --- The command line -------------------------------------------------------------------------------------------------


def test_command_line(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.dataset, "keep_programs", lambda: None)
    module = helpers.tiny_resnet()
    classifier = jaxcam.load("resnet18_cifar10")
    small = type(classifier)(
        module, helpers.random_variables(module), classifier.preprocess, classifier.labels, "layer4", "small"
    )
    monkeypatch.setattr(jaxcam, "load", lambda name, architecture: small)
    command = ["explain-dataset", str(photos), "--output", str(tmp_path / "out"), "--batch-size", "8"]
    assert cli.main(command) == 0
    assert "21 of 21 images explained now (" in (said := capsys.readouterr().out) and "2 unreadable" in said
    assert cli.main(command) == 0
    assert "nothing was missing: 21 images, 2 unreadable" in capsys.readouterr().out
    assert cli.main([*command, "--methods", "saliency"]) == 2
    assert "holds another run: settings methods" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert cli.main([*command, "--part", "2/2"]) == 2
    assert "--part is '2/2'; it must be I/N" in capsys.readouterr().err
