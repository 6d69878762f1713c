"""Every family of networks from the files of torchvision, timm and transformers, against what these libraries compute.

`golden/architectures.json` lists the names and shapes that each library writes for a small model, and
`golden/architectures.npz` what the model returns for random tensors of these shapes (`golden/make_architectures.py`).
"""

import json
import re
from functools import cache
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import rebuild
from safetensors.numpy import load_file, save_file

import jaxcam
from jaxcam.models import ARCHITECTURES, load, save, state_dict
from jaxcam.models._families import EFFICIENTNET
from jaxcam.models.layouts import LAYOUTS, closest

FOLDER = Path(__file__).parent / "golden"
SIZE, SEED, CLASSES = 48, 13, 7  # as in make_architectures.py
NAMES = json.loads((FOLDER / "architectures.json").read_text())
MODELS = [name for name, tensors in NAMES.items() if all(tensors.values())]
REFUSED = [name for name in NAMES if name not in MODELS]
CONFIGS = {  # what `config.json` says besides
    "transformers_resnet_v1": {"model_type": "resnet", "downsample_in_bottleneck": True},
    "timm_tf_efficientnet_lite0": {"architecture": "tf_efficientnet_lite0"},
    "timm_tf_efficientnet_b0": {"architecture": "tf_efficientnet_b0"},
    "timm_mobilenetv2_035": {"architecture": "mobilenetv2_035"},
    "timm_vgg": {"architecture": "vgg16.tv_in1k"},
    "transformers_vit": {"model_type": "vit", "layer_norm_eps": 1e-12, "num_attention_heads": 2},
}
each_model = pytest.mark.parametrize("name", MODELS)


@cache
def tensors_of(name) -> dict[str, np.ndarray]:
    return rebuild.random_tensors(NAMES[name], SEED)


@cache
def stored() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "architectures.npz") as file:
        return dict(file)


def loaded(folder, name, **options):
    save_file(tensors_of(name), folder / "model.safetensors")
    if name in CONFIGS:
        (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    return load(folder, **options)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@each_model
def test_the_libraries_compute_the_same(tmp_path, name):
    """Logits and layers, of each layout, read without being told what it is."""
    expected = {key.removeprefix(f"{name}/"): value for key, value in stored().items() if key.startswith(f"{name}/")}
    np.testing.assert_allclose(rebuild.fingerprint(tensors_of(name)), expected.pop("fingerprint"), rtol=1e-6)
    classifier = loaded(tmp_path, name)
    images = rebuild.rebuild_images(SIZE, SIZE, (1, 2))
    layers = tuple(layer for layer in expected if layer != "logits")

    @jax.jit
    def run(model, images):
        return model.run(images)

    logits, activations = run(classifier.tap(layers), images)
    found = {layer: rebuild.summary(each) for layer, each in zip(layers, activations, strict=True)} | {"logits": logits}
    for layer, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[layer] / scale, value / scale, atol=1e-5, err_msg=layer)


@each_model
def test_names_go_there_and_back(name):
    """The layout is the library's own, and no other layout knows all of its names."""
    layout = closest(NAMES[name])
    assert name.startswith(layout.library) and not layout.unknown(NAMES[name])
    there = layout.ours(tensors_of(name))
    assert_equal(layout.theirs(there), tensors_of(name))
    fitting = [each for each in LAYOUTS if not each.unknown(NAMES[name])]
    assert fitting == [layout]


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("torchvision")])
def test_what_is_saved_is_torchvisions(tmp_path, name):
    """But for the networks whose numerics do not show: no name may promise them."""
    variables = loaded(tmp_path, name).variables
    save(tmp_path / "saved.safetensors", variables)
    if "efficientnet" in name or "mobilenet" in name:
        assert "pass architecture=" in refused(tmp_path / "saved.safetensors")
        assert_equal(state_dict(variables, closest(NAMES[name])), tensors_of(name))
        save(tmp_path / "saved.safetensors", variables, metadata=loaded(tmp_path, name).about)
        again = load(tmp_path / "saved.safetensors")
        assert again.module == loaded(tmp_path, name).module and again.module.padding == "symmetric"
        assert_equal(state_dict(again.variables), state_dict(variables))
    else:
        assert_equal(load_file(tmp_path / "saved.safetensors"), tensors_of(name))


@pytest.mark.parametrize("architecture, parameters", [
    ("vit_base_patch16", 86_567_656), ("vit_base_patch32", 88_224_232), ("vit_large_patch16", 304_326_632),
    ("vit_large_patch32", 306_535_400), ("vit_tiny_patch16", 5_717_416), ("vit_small_patch16", 22_050_664),
    ("convnext_tiny", 28_589_128), ("convnext_small", 50_223_688), ("convnext_base", 88_591_464),
    ("convnext_large", 197_767_336), ("vgg11", 132_863_336), ("vgg16", 138_357_544), ("vgg19_bn", 143_678_248),
    ("densenet121", 7_978_856), ("mobilenet_v2", 3_504_872),
])  # fmt: skip
def test_counts_are_the_libraries(architecture, parameters):
    module = ARCHITECTURES[architecture]()
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


@pytest.mark.parametrize("architecture", [
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vit_tiny_patch16", "vit_large_patch32",
    "convnext_tiny", "vgg13_bn", "densenet121",
])  # fmt: skip
def test_the_tensors_show_the_architecture(architecture):
    """Whether it is given or not, the module is the same."""
    module = ARCHITECTURES[architecture]()
    side = getattr(module, "image_size", 64)
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    tensors = state_dict(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables))
    layout = closest(tensors)
    shapes = {key: tensor.shape for key, tensor in layout.ours(tensors).items()}
    for given in (None, architecture):
        assert layout.family.make(shapes, {}, given) == module
    assert layout.family.name_of(module) == architecture


@each_model
def test_any_tensors_show_something(name):
    """Of a file that lacks most tensors, or has some of wrong shapes, what is wrong is said later, all at once."""
    layout, random = closest(NAMES[name]), np.random.default_rng(0)
    shapes = {key: tensor.shape for key, tensor in layout.ours(tensors_of(name)).items()}
    for share in (0, 0.02, 0.1, 0.5):
        some = {key: shape for key, shape in shapes.items() if random.random() < share}
        for odd in (some, {key: (0,) * len(shape) for key, shape in some.items()}, dict.fromkeys(some, ())):
            assert isinstance(layout.family.make(odd, {}, None), layout.family.module)


# --- Wrappers and other files ----------------------------------------------------------------------------------------

SMALL = "torchvision_convnext"


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_prefixes_of_training_are_taken_off(tmp_path, prefix):
    save_file({f"{prefix}{key}": value for key, value in tensors_of(SMALL).items()}, tmp_path / "w.safetensors")
    assert_equal(state_dict(load(tmp_path / "w.safetensors").variables), tensors_of(SMALL))


@pytest.mark.parametrize("prefixes", [("ema_model.", "model."), ("model_ema.module.", "model.")])
def test_the_average_is_preferred_and_said(tmp_path, prefixes):
    averaged, other = tensors_of(SMALL), {key: value + 1 for key, value in tensors_of(SMALL).items()}
    both = {
        f"{prefix}{key}": each[key] for prefix, each in zip(prefixes, (averaged, other), strict=True) for key in each
    }
    save_file(both, tmp_path / "w.safetensors")
    classifier = load(tmp_path / "w.safetensors")
    assert_equal(state_dict(classifier.variables), averaged)
    assert "average" in classifier.about["weights"]


def test_an_older_torchvision_and_a_newer_transformers(tmp_path):
    """The names of some layers in torchvision's own files, and those of modules since transformers 5."""
    dense = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
        for key, value in tensors_of("torchvision_densenet").items()
    }
    save_file(dense, tmp_path / "w.safetensors")
    assert closest(dense).library == "an older torchvision"
    assert_equal(state_dict(load(tmp_path / "w.safetensors").variables), tensors_of("torchvision_densenet"))
    older = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in tensors_of("torchvision_vit").items()
    }
    save_file(older, tmp_path / "w.safetensors")
    assert_equal(state_dict(load(tmp_path / "w.safetensors").variables), tensors_of("torchvision_vit"))
    renamed = {
        "encoder.layer": "layers", "attention.attention.query": "attention.q_proj", "intermediate.dense": "mlp.fc1",
        "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj", ".output.dense": ".mlp.fc2",
    }  # fmt: skip
    newer = {}
    for key, value in tensors_of("transformers_vit").items():
        for old, new in renamed.items():
            key = key.replace(old, new)
        newer[key] = value
    save_file(newer, tmp_path / "w.safetensors")
    expected = state_dict(loaded(tmp_path, "transformers_vit").variables)
    assert_equal(state_dict(load(tmp_path / "w.safetensors").variables), expected)


@pytest.mark.parametrize("name", ["torchvision_vit", "torchvision_resnext"])
def test_flax_and_orbax(tmp_path, name):
    from orbax.checkpoint import v1 as ocp

    (tmp_path / "model").mkdir()
    classifier = loaded(tmp_path / "model", name)
    variables = jax.tree.map(np.asarray, classifier.variables)
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    ocp.save(tmp_path / "orbax", variables)
    with ocp.training.Checkpointer(tmp_path / "steps") as checkpointer:  # as jaxcam.train does, with dotted names
        flat = {".".join(path): leaf for path, leaf in flax.traverse_util.flatten_dict(variables).items()}
        checkpointer.save(9, {key: 0 * value for key, value in flat.items()} | {"step": np.zeros(1)})
        checkpointer.save(10, flat | {"opt_state.0.params.x": np.zeros(1)})
    for path in ("w.msgpack", "orbax", "steps"):
        found = load(tmp_path / path)
        assert found.module == classifier.module
        assert_equal(state_dict(found.variables), state_dict(variables))


# --- What is refused -------------------------------------------------------------------------------------------------


def refused(path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 + len(str(path))
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_in_a_sentence(tmp_path, name):
    save_file({key: np.zeros(1, np.float32) for key in NAMES[name]}, tmp_path / "w.safetensors")
    message = refused(tmp_path / "w.safetensors")
    library, odd = {
        "timm_resnet50d": ("torchvision's ResNet", "'conv1.0.weight'"),
        "timm_deit_distilled": ("timm's ViT", "'dist_token'"),
        "timm_convnextv2": ("timm's ConvNeXt", "'stages.0.blocks.0.mlp.grn.bias'"),
        "timm_mobilenetv3": ("timm's EfficientNet", "'blocks.5.0.conv.weight'"),
        "transformers_deit_distilled": ("transformers' ViT", "'deit.embeddings.cls_token'"),
    }[name]
    assert library in message and odd in message
    assert message.endswith("jaxcam.tap takes any module with its variables.")


def test_timms_efficientnets_must_be_named(tmp_path):
    """Those that timm trained pad otherwise, and have the same tensors."""
    name = "timm_tf_efficientnet_lite0"
    save_file(tensors_of(name), tmp_path / "w.safetensors")
    assert "pass architecture=, such as 'efficientnet_lite0'" in refused(tmp_path / "w.safetensors")
    assert load(tmp_path / "w.safetensors", architecture="efficientnet_lite0").module.num_classes == CLASSES
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_lite0"}))
    save_file(tensors_of(name), tmp_path / "model.safetensors")
    module = load(tmp_path).module
    assert (module.padding, module.epsilon) == ("symmetric", 1e-5)
    assert "padding 'symmetric' instead of 'SAME', epsilon 1e-05 instead" in refused(
        tmp_path, architecture="efficientnet_lite0"
    )
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_b0_gn"}))
    assert "is a 'efficientnet_b0_gn', says its config.json" in refused(tmp_path)


def test_numerics_that_no_tensor_shows(tmp_path):
    """torchvision's B5 to B7 alone have TensorFlow's epsilon; a header must say one of these."""
    fields = EFFICIENTNET.fields
    heads = {"head.conv.weight": (2560, 320, 1, 1)}
    squeezed = heads | {"blocks.0.0.squeeze_excite.reduce.weight": (8, 32, 1, 1)}
    epsilons = [
        fields(shapes, {"numerics": numerics})["epsilon"]
        for shapes in (heads, squeezed)
        for numerics in ("tensorflow", "pytorch", "torchvision")
    ]
    assert epsilons == [1e-3, 1e-5, 1e-5, 1e-3, 1e-5, 1e-3]
    name = "torchvision_mobilenet"
    assert loaded(tmp_path, name).preprocess.interpolation == "bilinear"
    save_file(tensors_of(name), tmp_path / "w.safetensors", metadata={"jaxcam": json.dumps({"numerics": "none"})})
    assert "numerics is 'none', neither 'pytorch' nor 'tensorflow'" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name, side", [("torchvision_vgg", 7), ("torchvision_densenet", 8)])
def test_images_of_which_nothing_is_left(tmp_path, name, side):
    model = loaded(tmp_path, name).tap()
    with pytest.raises(ValueError, match="the images are so small .* at least (8|16) pixels"):
        model(jnp.zeros((1, 32, side, 3)))


def test_a_prefix_too_many_is_a_short_sentence(tmp_path):
    save_file({f"my.{key}": value for key, value in tensors_of(SMALL).items()}, tmp_path / "w.safetensors")
    for options in ({}, {"architecture": "convnext_tiny"}):
        message = refused(tmp_path / "w.safetensors", **options)
        assert "torchvision's ConvNeXt" in message and "'my.classifier.0.bias'" in message


def test_another_architecture_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="as convnext_tiny .*missing: features.1.1"):
        loaded(tmp_path, SMALL, architecture="convnext_tiny")
    with pytest.raises(ValueError, match="has the names of torchvision's ConvNeXt, not those of a resnet18"):
        loaded(tmp_path, SMALL, architecture="resnet18")


@pytest.mark.parametrize("content", [b"\x81\xa1a\x01", b"\x81\xa6params\x81", b"\xde\xff\xff"])
def test_msgpack_that_holds_no_variables(tmp_path, content):
    (tmp_path / "w.msgpack").write_bytes(content)
    message = refused(tmp_path / "w.msgpack")
    assert "holds no Flax variables" in message or "is truncated or altered" in message


def test_images_of_another_size(tmp_path):
    classifier = loaded(tmp_path, "torchvision_vit")
    with pytest.raises(ValueError, match="images are 32 x 48 pixels, .* made for 48 x 48"):
        classifier.tap()(np.zeros((1, 32, 48, 3), np.float32))


# --- Explained -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchvision_vit", "torchvision_convnext"])
def test_the_tap_of_a_loaded_model_is_right(tmp_path, name):
    """Its own layer and `reshape`: a CAM has the cells of the patches, and biases make up the whole output."""
    classifier = loaded(tmp_path, name)
    model, images = classifier.tap(), rebuild.rebuild_images(SIZE, SIZE, (1, 2))
    cells = 3 if "vit" in name else 1
    assert jaxcam.grad_cam(model, images, raw=True).shape == (2, cells, cells)
    if "vit" in name:
        rollout = jaxcam.attention_rollout(model, images, raw=True)
        assert rollout.shape == (2, 3, 3) and np.ptp(np.asarray(rollout), axis=(1, 2)).min() > 0
        assert "class_token" in model.shapes(images) and len(model.attention(images)) == 2
