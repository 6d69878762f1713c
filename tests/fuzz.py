"""Bad input from a seed: mutated weights, images, configurations and checkpoints, each of which ends in one sentence.

    python tests/fuzz.py COUNT [KIND ...] [--first INDEX] [--state FILE] [--only INDEX]

looks at so many cases of each kind and says what became of them: read, or refused in a sentence; no traceback, no
warning, nothing run, at most 10 CPU seconds and 2 GB a case. It goes on where the file of an earlier run ends, and
fails if one of the cases does. The default suite looks at 150 of each (`test_fuzz.py`), at what reads a file alone, not
at the network that is built of it.
"""

import argparse
import io
import itertools
import json
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from files import archive, dump, legacy, pth
from PIL import Image

LIMIT_SECONDS, LIMIT_MB = 10, 2048
SLICE = 500  # cases of a process
RUN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
watched: list[str] | None = None  # what was run while a case was looked at


def _listen(event, arguments):
    if watched is not None and event in RUN:
        watched.append(f"{event} {arguments}")


sys.addaudithook(_listen)


class Kind(NamedTuple):
    """Files to begin with, how one is changed, and what reads it: quickly, and as `jaxcam` does."""

    seeds: Callable[[], list]
    change: Callable
    quick: Callable
    whole: Callable


# --- Changes ---------------------------------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def changed(rng, data: bytes) -> bytes:
    """Some bits, numbers or pieces of it altered, doubled, moved, or cut off."""
    data = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 8, 30]))):
        size = len(data)
        if not size:
            break
        at, length = int(rng.integers(size)), int(rng.integers(1, 1 + min(size, 64)))
        if rng.random() < 0.5:  # what is at the beginning says more
            at = int(rng.integers(min(size, 256)))
        match int(rng.integers(8)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.integers(256))
            case 2:
                width = int(rng.choice([1, 2, 4, 8]))
                number = int(rng.choice(len(NUMBERS)))
                order = "little" if rng.random() < 0.5 else "big"
                data[at : at + width] = (NUMBERS[number] % 256**width).to_bytes(width, order)
            case 3:
                del data[at:]
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length] * int(rng.choice([1, 2, 50]))
            case 6:
                data[at : at + length] = rng.bytes(length)
            case 7:
                other = int(rng.integers(size))
                data[at : at + length] = data[other : other + length]
    return bytes(data)


WEIRD = [
    *(None, True, -1, 0, 10**9, 10**400, 1e308, float("nan"), float("-inf"), "", "x", "\x1b[2J\n\u202e", "9" * 5000),
    *([], {}, [[]], [{}], {"": None}, "y" * 10**5, list(range(1000)), {"a": {"b": {"c": []}}}, "resnet18", 3),
]


def changed_tree(rng, tree):
    """JSON with some of its nodes replaced, dropped or doubled."""
    if rng.random() < 0.15:
        return WEIRD[int(rng.integers(len(WEIRD)))]
    if isinstance(tree, dict):
        kept = {key: changed_tree(rng, value) for key, value in tree.items() if rng.random() > 0.05}
        if kept and rng.random() < 0.1:
            kept[str(WEIRD[int(rng.integers(len(WEIRD)))])[:50]] = next(iter(kept.values()))
        return kept
    if isinstance(tree, list):
        return [changed_tree(rng, value) for value in tree] * int(rng.choice([1, 1, 1, 0, 2]))
    return tree


def changed_json(rng, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return changed(rng, data)
    if rng.random() < 0.02:
        return b"[" * 200_000
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):  # changed before
        return changed(rng, data)
    return json.dumps(changed_tree(rng, tree)).encode("utf-8", "replace")


def changed_safetensors(rng, data: bytes) -> bytes:
    """Its bytes, or its header, which is JSON."""
    if rng.random() < 0.5:
        return changed(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = changed_json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


OPCODES = [bytes([code]) for code in range(256) if code not in b"\x80."]


def changed_pickle(pack, rng, data: bytes) -> bytes:
    """The file's bytes, or a pickle of any opcodes in its format."""
    if rng.random() < 0.4:
        return changed(rng, data)
    if rng.random() < 0.5 and (pickled := data.find(b"\x80\x02}")) > 0:  # in a file that is whole otherwise
        program = data[pickled + 2 : data.find(b"u.", pickled) + 1]
        return pack(changed(rng, program), {str(index): each for index, each in enumerate(few().values())})
    program = [rng.choice(PIECES) if rng.random() < 0.6 else rng.choice(OPCODES) for _ in range(rng.integers(1, 60))]
    return pack(b"".join(bytes(each) for each in program), {"0": np.ones(4, np.float32)})


PIECES = np.array(
    [
        *(b"(", b"}", b"]", b")", b"2", b"0", b"1", b"N", b"K\x01", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"e"),
        *(b"u", b"s", b"a", b"R", b"b", b"Q", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"\x8f", b"\x90", b"\x91"),
        *(b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x000", b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"\x81"),
        *(
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch\nFloatStorage\n",
            b"X\x07\x00\x00\x00storage",
            b"J\xff\xff\xff\x7f",
        ),
        *(b"\x8a\x01\xff", b"\x8b\x04\x00\x00\x00\xff\xff\xff\x7f", b"\x94", b"\x92", b"o", b"(ios\nsystem\n", b"\x93"),
    ],
    object,
)


def changed_folder(rng, files: dict[str, bytes]) -> dict[str, bytes]:
    """One or two of its files changed, gone, or under another's name."""
    files = dict(files)
    for _ in range(int(rng.integers(1, 3))):
        name = sorted(files)[int(rng.integers(len(files)))]
        match int(rng.integers(6)):
            case 0:
                files.pop(name) if len(files) > 1 else None
            case 1:
                files[name] = files[sorted(files)[int(rng.integers(len(files)))]]
            case 2:
                files[name] = b""
            case _:
                change = changed_json if files[name][:1] in (b"{", b"[") else changed
                files[name] = change(rng, files[name])
    return files


# --- Files to begin with ---------------------------------------------------------------------------------------------


@cache
def tensors() -> dict[str, np.ndarray]:
    """A ResNet-18 of one channel in ten classes."""
    import jax
    import jax.numpy as jnp

    from jaxcam.models import ARCHITECTURES, state_dict

    module = ARCHITECTURES["resnet18"](width=1, stem="cifar", num_classes=10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    variables = tree.unflatten([rng.uniform(0.5, 1, leaf.shape).astype(np.float32) for leaf in leaves])
    return {key: np.ascontiguousarray(value) for key, value in state_dict(variables).items()}


def few() -> dict[str, np.ndarray]:
    return {"conv1.weight": np.ones((1, 3, 3, 3), np.float32), "fc.bias": np.arange(4, dtype=np.float16)}


@cache
def safetensors_files() -> list[bytes]:
    from safetensors.numpy import save

    header = {"architecture": "resnet18", "labels": list("abcdefghij"), "preprocess": CONFIGS[0]["preprocess"]}
    metadata = {"format": "pt", "jaxcam": json.dumps(header)}
    return [save(few()), save(few(), metadata), save(tensors(), metadata), save(tensors())]


@cache
def torch_files(pack) -> list[bytes]:
    wrapped = partial(pth, wrap=lambda state: {"model": state, "epoch": 3, "log": [0.5, None, "x"]}, pack=pack)
    return [pth(few(), pack=pack), wrapped(few()), wrapped(tensors()), pack(dump((1, "a", 2.5, None, {"a": (1,)})))]


MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "ICO", "ICNS", "PPM", "TGA", "PCX", "DDS", "SGI", "IM")
FORMATS += ("JPEG2000", "MPO", "XBM", "SPIDER", "MSP", "QOI", "BLP", "DIB", "PALM", "EPS", "PDF")
OPTIONS = ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"progressive": True}, {"save_all": True})


@cache
def image_files() -> list[bytes]:
    """All formats and modes that Pillow writes, some with an EXIF block."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    found = {}
    for kind, mode, options in itertools.product(FORMATS, MODES, OPTIONS):
        buffer = io.BytesIO()
        try:
            with warnings.catch_warnings(action="ignore"):
                image = pixels.convert("L").convert(mode) if mode in ("I;16", "I", "F") else pixels.convert(mode)
                image.save(buffer, kind, exif=exif, **options)
        except Exception:  # a mode that the format does not have
            continue
        found[buffer.getvalue()] = None
    return list(found)


CONFIGS = [
    {
        "architecture": "resnet18",
        "labels": ["a"] * 10,
        "preprocess": {"resize": 36, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    },
    {
        "architecture": "resnet18",
        "num_classes": 10,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 32, 32], "crop_pct": 0.9},
        "label_names": [f"n{index}" for index in range(10)],
        "label_descriptions": {"n1": "one"},
    },
    {
        "model_type": "resnet",
        "hidden_act": "relu",
        "layer_norm_eps": 1e-5,
        "num_attention_heads": 3,
        "id2label": {str(index): f"class {index}" for index in range(10)},
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    },
    {"metadata": {}, "weight_map": {"conv1.weight": "model.safetensors", "fc.bias": "model.safetensors"}},
]


def sidecars() -> list[bytes]:
    return [json.dumps(each).encode() for each in CONFIGS[1:]]


@cache
def flax_files() -> list[bytes]:
    from flax.serialization import msgpack_serialize

    variables = {
        "params": {"conv1": {"kernel": np.ones((3, 3, 3, 1), np.float32)}, "fc": {"bias": np.ones(3, np.float16)}}
    }
    return [
        msgpack_serialize(variables),
        msgpack_serialize({**variables, "batch_stats": {"bn1": {"mean": np.ones(3)}}}),
    ]


@cache
def orbax_folders() -> list[dict[str, bytes]]:
    from jaxcam import train

    with tempfile.TemporaryDirectory() as folder:
        state = train.State(np.int32(1), {"fc": {"kernel": np.ones((3, 2), np.float32)}}, {}, ())
        train.save(folder, state, [{"epoch": 1}], {"seed": 0})
        found = [path for path in Path(folder).rglob("*") if path.is_file()]
        files = {str(path.relative_to(folder)): path.read_bytes() for path in found}
        return [files, {name: data for name, data in files.items() if not name.endswith(".sha256")}]


# --- What reads them -------------------------------------------------------------------------------------------------


def read_weights(data, folder):
    from jaxcam.models import _read

    _read.unwrapped(_read.read(data, "w.bin")[0], "w.bin")


def load_file(data, folder):
    import jaxcam

    (folder / "w.bin").write_bytes(data)
    jaxcam.load(folder / "w.bin", architecture="resnet18")


def read_image(data, folder):
    from jaxcam.image import open_image

    (folder / "image").write_bytes(data)
    image = open_image(folder / "image")
    assert image.mode == "RGB" and 0 < image.width * image.height <= Image.MAX_IMAGE_PIXELS


def see_image(data, folder):
    """As the model gets it, and as a person sees it."""
    from jaxcam.image import Preprocess, open_image

    (folder / "image").write_bytes(data)
    preprocess = Preprocess(32, 28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = open_image(folder / "image")
    assert np.isfinite(preprocess(image)).all() and preprocess.view(image)[0].dtype == np.uint8


def read_sidecar(data, folder):
    from jaxcam.models import _find

    (folder / "config.json").write_bytes(data)
    beside = folder / "config.json"
    looks = [lambda name=name: _find._facts_of({name: beside}) for name in _find.CONFIGS]
    if "read" not in [_refused_or(look) for look in (*looks, lambda: _find._indexed(beside))]:
        raise ValueError("None of the three is as it should be.")


def load_folder(data, folder):
    """The changed file as each of the sidecars beside good weights."""
    import jaxcam

    read = []
    for name in ("config.json", "preprocessor_config.json", "model.safetensors.index.json"):
        own = folder / name.partition(".")[0]
        own.mkdir()
        (own / name).write_bytes(data)
        if "index" not in name:
            (own / "model.safetensors").write_bytes(safetensors_files()[3])
        read.append(_refused_or(lambda own=own: jaxcam.load(own)))
    if "read" not in read:
        raise ValueError("None of the three is as it should be.")


def load_orbax(files, folder):
    from jaxcam.models import _read

    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    _read.read_orbax(folder / "1")


KINDS = {
    "safetensors": Kind(safetensors_files, changed_safetensors, read_weights, load_file),
    "zip": Kind(partial(torch_files, archive), partial(changed_pickle, archive), read_weights, load_file),
    "legacy": Kind(partial(torch_files, legacy), partial(changed_pickle, legacy), read_weights, load_file),
    "images": Kind(image_files, changed, read_image, see_image),
    "sidecars": Kind(sidecars, changed_json, read_sidecar, load_folder),
    "msgpack": Kind(flax_files, changed, read_weights, load_file),
    "orbax": Kind(orbax_folders, changed_folder, load_orbax, load_orbax),
}


# --- One case, and many ----------------------------------------------------------------------------------------------


def case(name: str, index: int):
    """The changed file, always the same for an index."""
    kind, rng = KINDS[name], np.random.default_rng([list(KINDS).index(name), index])
    seeds = kind.seeds()
    return kind.change(rng, seeds[int(rng.integers(len(seeds)))])


def _refused_or(read: Callable) -> str:
    """`"read"`, or `"refused"` where it ends in one sentence as the command line prints it; else what it ends in."""
    try:
        read()
        return "read"
    except (ValueError, OSError) as error:
        said = str(error)
        assert type(error).__module__ == "builtins" and not isinstance(error, UnicodeError), repr(error)[:300]
        assert said and "\n" not in said and len(said) < 5000, f"no sentence: {said[:300]!r} of {len(said)} characters"
        assert said.rstrip().endswith((".", "!", ")")), f"no sentence: {said[:300]!r}"
        return "refused"


class _Log(logging.Handler):
    def __init__(self, level):
        super().__init__(level)
        self.said = []

    def emit(self, record):
        if record.name.partition(".")[0] != "PIL":  # which is not shown
            self.said.append(record.getMessage())


def outcome(read: Callable, data, folder: Path) -> str:
    """What became of a case.

    Raises:
      AssertionError: it warned, logged, ran something, or ended in no sentence.
    """
    global watched
    watched = []
    logged = _Log(logging.WARNING)
    logging.getLogger().addHandler(logged)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = _refused_or(partial(read, data, folder))
    finally:
        logging.getLogger().removeHandler(logged)
        ran, watched = watched, None
    assert not ran, f"it ran {ran}"
    assert not warned, f"it warned: {warned[0].message}"
    assert not logged.said, f"it logged: {logged.said[0]}"
    return found


def look(name: str, indices, quick: bool, heard: Callable = lambda *_: None) -> dict:
    """How many were read and refused; `heard(index, outcome, seconds, megabytes)` after each."""
    counts = {"read": 0, "refused": 0}
    for index in indices:
        data = case(name, index)
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            try:
                found = outcome(KINDS[name].quick if quick else KINDS[name].whole, data, Path(folder))
            except Exception as error:
                raise AssertionError(f"{name} {index}: {type(error).__name__}: {str(error)[:500]}") from error
            heard(index, found, time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        counts[found] += 1
    return counts


def _worker(name: str, start: int, end: int) -> None:
    """Cases in a process of their own, a line for each; ten CPU seconds in one of them end it."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for index in range(start, end):
        print(json.dumps({"begun": index}), flush=True)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS if index > start else 4 * LIMIT_SECONDS)  # imports
        try:
            look(name, [index], False, lambda *row: print(json.dumps({"done": row}), flush=True))
        except AssertionError as error:
            print(json.dumps({"failed": index, "why": str(error)}), flush=True)
    signal.setitimer(signal.ITIMER_PROF, 0)


def run(name: str, first: int, count: int, state: dict, save: Callable) -> None:
    """So many cases of a kind in processes of some, on from what `state` says."""
    import subprocess

    new = {"next": first, "read": 0, "refused": 0, "seconds": 0.0, "megabytes": 0.0, "failed": {}}
    row = state.setdefault(name, new)
    while row["next"] < first + count:
        end, begun = min(first + count, row["next"] + SLICE), row["next"]
        command = [sys.executable, __file__, "--worker", name, str(row["next"]), str(end)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            for line in worker.stdout:
                said = json.loads(line)
                if "begun" in said:
                    begun = said["begun"]
                elif "failed" in said:
                    row["failed"][str(said["failed"])] = said["why"]
                else:
                    index, found, seconds, megabytes = said["done"]
                    row[found] += 1
                    if index > row["next"]:  # the first one pays for the imports
                        row["seconds"] = max(row["seconds"], seconds)
                    if megabytes > LIMIT_MB:
                        row["failed"].setdefault(str(index), f"{megabytes:.0f} MB")
                    row["megabytes"] = max(row["megabytes"], megabytes)
        if worker.returncode:
            row["failed"][str(begun)] = f"the process ended with {worker.returncode}: 10 CPU seconds, or a crash"
            end = begun + 1
        row["next"] = end
        save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND")
    parser.add_argument("--first", type=int, default=0, metavar="INDEX", help="the first case (default: 0)")
    parser.add_argument("--state", type=Path, default=Path("fuzz.json"), help="where an interrupted run goes on")
    parser.add_argument("--only", type=int, help="one case, here, with its traceback")
    args = parser.parse_args()
    if args.only is not None:
        for name in args.kinds:
            print(name, look(name, [args.only], False))
        return
    state = json.loads(args.state.read_text()) if args.state.exists() else {}

    def save():
        beside = args.state.with_suffix(".unfinished")
        beside.write_text(json.dumps(state, indent=1))
        shutil.move(beside, args.state)

    for name in args.kinds:
        run(name, args.first, args.count, state, save)
        print(name, json.dumps(state[name]), flush=True)
    if any(state[name]["failed"] for name in args.kinds):
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
