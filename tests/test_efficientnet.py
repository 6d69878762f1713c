"""EfficientNets: counts, PyTorch's logits, names in every layout, and the methods on a tiny one."""

from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import rebuild
from safetensors.numpy import save_file

import jaxcam
from jaxcam.image import Preprocess
from jaxcam.models import EfficientNet, layouts, save
from jaxcam.models.efficientnet import ARCHITECTURES, VARIANTS

# Tensors without `num_batches_tracked`, and parameters, as `efficientnet_lite_pytorch` counts them.
COUNTS = {
    "efficientnet_lite0": (247, 4_652_008),
    "efficientnet_lite1": (322, 5_416_680),
    "efficientnet_lite2": (322, 6_092_072),
    "efficientnet_lite4": (457, 13_006_568),
    "efficientnet_b0": (311, 5_288_548),
    "efficientnet_b3": (496, 12_233_232),
}
TINY = ((3, 1, 1, 8, 1), (5, 2, 6, 12, 2), (3, 1, 6, 16, 1))


def shapes(module):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)


@cache
def tiny(**options):
    module = EfficientNet(TINY, num_classes=5, stem=8, head=24, **options)
    return module, jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    variables = shapes(ARCHITECTURES[name]())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert (len(jax.tree.leaves(variables)), parameters) == COUNTS[name]


@cache
def stored() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / "efficientnet.npz") as file:
        return dict(file)


def test_lite0_has_pytorchs_logits():
    """Trained weights, on two pictures and on the bundled photograph as `preprocess` makes it."""
    classifier = jaxcam.load("efficientnet_lite0")
    photograph = classifier.preprocess(jaxcam.sample())
    images = np.concatenate([rebuild.rebuild_images(224, 224, stored()["seeds"]), photograph])
    model = classifier.tap()
    logits, features = jax.jit(lambda model, images: (model(images), model.features(images)))(model, images)
    np.testing.assert_allclose(logits, stored()["logits"], atol=1e-4)
    np.testing.assert_allclose(rebuild.summary(np.asarray(features)), stored()["features"], atol=1e-4)
    assert classifier.layer == "head" and features.shape == (3, 7, 7, 1280)
    best = np.argsort(-np.asarray(logits[-1]))[:3]
    assert [classifier.labels[index] for index in best] == ["tiger cat", "Egyptian cat", "tabby"]


@pytest.fixture
def small():
    """PyTorch's small network with squeeze-excitation and swish: the module, and its weights by PyTorch's names."""
    stages = ((3, 1, 1, 16, 1), (5, 2, 6, 8, 2), (3, 2, 6, 16, 1))
    module = EfficientNet(stages, num_classes=7, stem=8, head=320, squeeze=0.25, activation=nn.swish)
    state = {key.removeprefix("small/"): value for key, value in stored().items() if key.startswith("small/")}
    return module, state


@pytest.fixture
def named(small, monkeypatch):
    """Its file, once the small network is an architecture like others."""
    module, state = small
    build = partial(EfficientNet, module.stages, stem=8, head=320, squeeze=0.25, activation=nn.swish)
    for table, row in ((ARCHITECTURES, build), (jaxcam.models.ARCHITECTURES, build), (VARIANTS, (1, 1, 64))):
        monkeypatch.setitem(table, "efficientnet_small", row)
    return module, state


def test_squeeze_excitation_and_swish_are_pytorchs(tmp_path, named):
    module, state = named
    save_file(state, tmp_path / "w.safetensors")
    classifier = jaxcam.load(tmp_path / "w.safetensors", architecture="efficientnet_small")
    images = rebuild.rebuild_images(45, 71, stored()["seeds"])
    np.testing.assert_allclose(jax.jit(module.apply)(classifier.variables, images), stored()["small_logits"], atol=1e-5)


def test_names_there_and_back(small):
    """The blocks of all stages are numbered through; where a stage begins shows in the tensors."""
    _, state = small
    layout = layouts.closest(state)
    ours = layout.ours(state)
    assert layout.library == "efficientnet_pytorch" and not layout.unknown(state)
    again = layout.theirs(ours)
    assert again.keys() == state.keys() and all(again[name] is tensor for name, tensor in state.items())
    assert ours["blocks.1.1.project.conv.weight"] is state["_blocks.2._project_conv.weight"]
    assert ours["blocks.2.0.depthwise.bn.running_var"] is state["_blocks.3._bn1.running_var"]
    with pytest.raises(KeyError, match="layer1"):
        layout.theirs({"layer1.weight": state["_fc.bias"]})


def test_files_in_either_layout(tmp_path, named):
    module, state = named
    save_file(state, tmp_path / "theirs.safetensors")
    theirs = jaxcam.load(tmp_path / "theirs.safetensors", architecture="efficientnet_small")
    save(tmp_path / "ours.safetensors", theirs.variables, metadata={"architecture": "efficientnet_small"})
    ours = jaxcam.load(tmp_path / "ours.safetensors")
    assert theirs.module == ours.module == module and theirs.layer == ours.layer == "head"
    assert ours.preprocess == Preprocess(96, 64, ours.preprocess.mean, ours.preprocess.std, "bicubic")
    jax.tree.map(np.testing.assert_array_equal, theirs.variables, ours.variables)
    del state["_blocks.2._bn1.bias"]
    state["_blocks.9._bn1.bias"] = state["_bn0.bias"]
    save_file(state, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: _blocks.2._bn1.bias; 1 unknown: _blocks.9._bn1.bias"):
        jaxcam.load(tmp_path / "theirs.safetensors", architecture="efficientnet_small")


def test_layers():
    module, variables = tiny()
    found = jaxcam.layers(module, jnp.zeros((1, 32, 32, 3)), variables)
    expected = {"stem": (16, 16, 8), "blocks.0": (16, 16, 8), "blocks.1.1": (8, 8, 12), "head": (8, 8, 24)}
    assert {path: found[path][1:] for path in expected} == expected
    parts = {path.rpartition(".")[2] for path in found if path.startswith("blocks.1.0.") and path.count(".") == 3}
    assert parts == {"expand", "depthwise", "project"}


@pytest.mark.parametrize("method", ["grad_cam", "guided_backprop", "lrp"])
def test_methods_see_relu6(method):
    module, variables = tiny()
    model = jaxcam.tap(module, variables, "head")
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    found = np.asarray(getattr(jaxcam, method)(model, images))
    assert np.isfinite(found).all() and found[0].any() and found[1].any()
    if method == "guided_backprop":
        assert not np.allclose(found, jaxcam.saliency(model, images))
