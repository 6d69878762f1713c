"""Exported methods: every row of the registry, for three platforms and any number of images, run without jaxcam."""

import functools
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from http.server import HTTPServer
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcam
from jaxcam._array import Rows

pytest.importorskip("flatbuffers")
ROWS = [pytest.param(each, id=each.name) for each in helpers.METHODS]
SHAPE, TARGETS = (8, 12, 3), jnp.array([2, 0, 1], jnp.int32)
IMAGES = helpers.images(3, 8, 12)
FEWER = {"sobol": {"num_samples": 2}, "occlusion": {"window": 4}, "smooth_grad": {"num_samples": 2}}


def given(method):
    """The method with options that keep it quick, and a model for it."""
    options = {**method.options, **FEWER.get(method.name, {})}
    return partial(method.function, **options), helpers.small(pooled=method.pooled, shape=(8, 12))


def named(name):
    [method] = [each for each in helpers.METHODS if each.name == name]
    return given(method)


def choices(exported):
    return exported.mlir_module().count("stablehlo.case")


def agree(found, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@functools.cache
def smallest():
    module = helpers.GapHead()
    return jaxcam.tap(module, module.init(jax.random.key(0), jnp.zeros((1, *SHAPE))), "features_relu")


@pytest.mark.parametrize("method", ROWS)
def test_every_method_for_three_platforms(method):
    """A number of images that is not known, and one choice at most in all of the program."""
    exported = jax.export.deserialize(jaxcam.export(given(method)[0], smallest(), SHAPE))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    n, *space = exported.out_avals[0].shape[:3]
    assert jax.export.is_symbolic_dim(n) and space == [8, 12]
    assert choices(exported) <= 1
    assert '"-":' not in exported.mlir_module()  # lines of a text, which a program has that was read again


RUN = ["grad_cam", "eigen_cam", "integrated_gradients", "rise"]


@pytest.mark.parametrize("name", RUN)
def test_the_result_is_that_of_the_method(name):
    method, model = named(name)
    call = jax.export.deserialize(jaxcam.export(method, model, SHAPE)).call
    agree(call(IMAGES, TARGETS), method(model, IMAGES, TARGETS))


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_convolutional_network_of_several_stages(stem):
    """Whose last layers have few pixels and many channels, and the first one phases, for any number of images."""
    module = helpers.tiny_resnet(stem=stem)
    model = jaxcam.tap(module, helpers.random_variables(module), "layer4")
    assert choices(jax.export.deserialize(jaxcam.export("saliency", model, (32, 32, 3)))) == 1


@pytest.mark.parametrize("name", ["integrated_gradients"])
def test_an_export_of_your_own(name):
    """`jax.export` around a method, whose forms then are chosen one by one."""
    method, model = named(name)
    leaves, structure = jax.tree.flatten(model)
    [n] = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

    def explain(leaves, images, targets):
        return method(jax.tree.unflatten(structure, leaves), images, targets)

    rows = jax.ShapeDtypeStruct((n, *SHAPE), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    exported = jax.export.export(jax.jit(explain))(shapes, *rows)
    agree(exported.call(leaves, IMAGES, TARGETS), method(model, IMAGES, TARGETS))


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jaxcam", "flax", "optax", "safetensors"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
import jax, numpy as np
given = dict(np.load("given.npz"))
images, targets = given.pop("images"), given.pop("targets")
for name, n in (("constants", 3), ("constants", 1), ("arguments", 3)):
    exported = jax.export.deserialize(bytearray(open(name, "rb").read()))
    weights = [given] if name == "arguments" else []
    np.save(f"{name}{n}.npy", exported.call(*weights, images[:n], targets[:n]))
"""


def test_it_runs_in_a_process_that_has_neither_jaxcam_nor_flax(tmp_path):
    """With the weights in it, and with weights that lie beside it; for numbers of images that it does not know."""
    method, model = named("grad_cam")
    for weights in ("constants", "arguments"):
        (tmp_path / weights).write_bytes(jaxcam.export(method, model, SHAPE, weights=weights))
    np.savez(tmp_path / "given.npz", images=IMAGES, targets=TARGETS, **jaxcam.exported_weights(model))
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, n in (("constants", 3), ("constants", 1), ("arguments", 3)):
        agree(np.load(tmp_path / f"{name}{n}.npy"), method(model, IMAGES[:n], TARGETS[:n]))


def test_the_server_of_the_page_answers(tmp_path, monkeypatch):
    """A heatmap for a posted picture, that of the method on the same pixels."""
    block = (Path(__file__).parents[1] / "docs" / "export.md").read_text().split("```py\n")[1].split("```")[0]
    assert "jaxcam" not in block and len(block.splitlines()) <= 30
    classifier = helpers.tiny_classifier()
    model, preprocess = classifier.tap(), classifier.preprocess
    monkeypatch.chdir(tmp_path)
    Path("grad_cam.stablehlo").write_bytes(jaxcam.export("grad_cam", model, (32, 32, 3), platforms=["cpu"], batch=1))
    scope = {}
    monkeypatch.setattr(HTTPServer, "serve_forever", HTTPServer.handle_request)  # once
    thread = threading.Thread(target=exec, args=(block.replace("8000", "0"), scope))
    thread.start()
    while "server" not in scope and thread.is_alive():
        time.sleep(0.01)
    with scope["server"] as server:
        monkeypatch.setattr(server.RequestHandlerClass, "log_message", lambda *_: None)
        address = f"http://127.0.0.1:{server.server_port}/3"
        with urllib.request.urlopen(address, Path(jaxcam.sample()).read_bytes()) as answer:
            assert answer.headers["Content-Type"] == "image/png"
            found = np.asarray(Image.open(answer), int)
        thread.join()
    pixels = np.asarray(Image.open(jaxcam.sample()).convert("RGB").resize((32, 32)), np.float32)[None] / 255
    expected = jaxcam.grad_cam(model, ((pixels - preprocess.mean) / preprocess.std).astype(np.float32), 3)
    assert np.abs(found - 255 * np.asarray(expected[0])).max() <= 1.01


def test_constants_are_there_once():
    kernel = jax.random.normal(jax.random.key(0), (8 * 12 * 3, 100))
    model = jaxcam.tap(lambda kernel, images: images.reshape(images.shape[0], -1) @ kernel, kernel)
    inside, beside = (len(jaxcam.export("saliency", model, SHAPE, weights=each)) for each in ("constants", "arguments"))
    assert kernel.nbytes < inside < beside + 1.1 * kernel.nbytes


def test_a_cpu_gets_its_own_forms_and_others_the_model_as_it_is():
    """Of a depthwise convolution: a sum of shifted images on a CPU, the convolution elsewhere."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 3))

    def head(kernel, images):
        dimensions = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", None, None, dimensions, 3)
        return images.mean((1, 2))

    model = jaxcam.tap(head, kernel)

    def convolutions(*platforms):
        exported = jax.export.deserialize(jaxcam.export("saliency", model, SHAPE, platforms=platforms))
        return exported.mlir_module().count("stablehlo.convolution"), choices(exported)

    (on_cpu, _), (on_tpu, _) = convolutions("cpu"), convolutions("tpu")
    assert on_cpu == 0 < on_tpu
    assert convolutions("cpu", "cuda", "tpu") == (on_tpu, 1)  # those of GPUs and TPUs are the same, and there once
    assert convolutions("cuda", "tpu") == (on_tpu, 0)
    jaxcam.config.rewrite = False
    try:
        assert convolutions("cpu", "cuda", "tpu") == (on_tpu, 0)
    finally:
        jaxcam.config.rewrite = True


def test_methods_inside_of_a_function_are_exported_with_it():
    """Several in one program, one choice around all, and a tree of results."""
    model = helpers.small(shape=(8, 12))

    def both(model, images, targets):
        return jaxcam.explain(model, images, targets, methods=["grad_cam", "saliency"]) | {"logits": model(images)}

    exported = jax.export.deserialize(jaxcam.export(both, model, SHAPE))
    found, expected = exported.call(IMAGES, TARGETS), both(model, IMAGES, TARGETS)
    assert choices(exported) == 1
    assert list(found) == ["grad_cam", "logits", "saliency"]
    jax.tree.map(agree, found, expected)


def test_targets_that_are_part_of_it():
    model = helpers.small(shape=(8, 12))
    for targets in (None, 2):
        exported = jaxcam.export("grad_cam", model, SHAPE, targets, platforms="cpu")
        agree(jax.export.deserialize(exported).call(IMAGES), jaxcam.grad_cam(model, IMAGES, targets))


def test_images_are_told_by_an_array_or_its_shape():
    model = helpers.small(shape=(8, 12), dtype=jnp.bfloat16)
    for images in (IMAGES.astype(jnp.bfloat16), jax.ShapeDtypeStruct((7, *SHAPE), jnp.bfloat16)):
        exported = jaxcam.export("grad_cam", model, images, platforms=["cpu"], batch=2)
        assert jax.export.deserialize(exported).in_avals[0].str_short() == "bfloat16[2,8,12,3]"


def test_a_fixed_number_of_images_is_plain_stablehlo():
    """No sizes that are found out when it runs, which other runtimes mostly cannot do; and no choice."""
    exported = jax.export.deserialize(
        jaxcam.export("grad_cam", helpers.small(shape=(8, 12)), SHAPE, platforms=["cpu"], batch=1)
    )
    text = exported.mlir_module()
    assert "dynamic_broadcast" not in text and "custom_call" not in text and choices(exported) == 0
    agree(exported.call(IMAGES[:1], TARGETS[:1]), jaxcam.grad_cam(helpers.small(shape=(8, 12)), IMAGES[:1], 2))


def test_a_bare_function_and_its_weights():
    model = helpers.small(shape=(8, 12))

    def function(images):
        return model(images)

    exported = jaxcam.export("saliency", function, SHAPE, platforms=["cpu"])
    agree(jax.export.deserialize(exported).call(IMAGES, TARGETS), jaxcam.saliency(model, IMAGES, TARGETS))
    assert jaxcam.exported_weights(function) == {}
    with pytest.raises(ValueError, match="model is a bare function, and its weights are not known"):
        jaxcam.export("saliency", function, SHAPE, weights="arguments")


def test_names_of_weights_that_are_spelt_alike():
    weights = {"a.b": jnp.ones(1), "a": {"b": jnp.zeros(2)}}
    named = jaxcam.exported_weights(jaxcam.tap(lambda variables, images: images, weights))
    assert sorted(len(each) for each in named.values()) == [1, 2]


def splits(variables, images):
    return images.reshape(2, -1, 4).mean(1)


def counts(variables, images):
    return images.reshape(len(images), -1)[:, :4]


def fails(variables, images):
    raise RuntimeError("own words")


def looks(model, images, targets):
    return images if images.sum() > 0 else -images


MODEL = partial(helpers.small, shape=(8, 12))
ERRORS = [
    (("gradcam", MODEL, SHAPE), {}, ValueError, "Unknown method 'gradcam'. Did you mean 'grad_cam'"),
    ((3, MODEL, SHAPE), {}, TypeError, "method is 3; it must be a name, or a function"),
    (("grad_cam", lambda: 3, SHAPE), {}, TypeError, "model is a int"),
    (("grad_cam", MODEL, (8,)), {}, ValueError, "images is .*; it must be an image's shape, such as"),
    (("grad_cam", MODEL, (0, 8, 3)), {}, ValueError, "images is .*; it must be an image's shape"),
    (("grad_cam", MODEL, "cat.png"), {}, ValueError, "images is .*; it must be an image's shape"),
    (("grad_cam", MODEL, np.zeros((1, *SHAPE), int)), {}, TypeError, "images has dtype int64"),
    (("grad_cam", MODEL, SHAPE, "predicted"), {}, ValueError, "Unknown choice of targets 'predicted'. Known: argument"),
    (("grad_cam", MODEL, SHAPE, 1.5), {}, TypeError, "targets is 1.5; it must be 'argument', None or one class"),
    (("grad_cam", MODEL, SHAPE), {"platforms": ["gpu"]}, ValueError, "Unknown platform 'gpu'.*a GPU is cuda or rocm"),
    (("grad_cam", MODEL, SHAPE), {"platforms": []}, ValueError, "platforms is empty"),
    (("grad_cam", MODEL, SHAPE), {"weights": "none"}, ValueError, "Unknown choice of weights 'none'"),
    (("grad_cam", MODEL, SHAPE), {"weights": 1}, ValueError, "Unknown choice of weights '1'"),
    (("grad_cam", MODEL, SHAPE), {"batch": "any"}, ValueError, "Unknown choice of batch 'any'. Known: symbolic"),
    (("grad_cam", MODEL, SHAPE), {"batch": 0}, ValueError, "batch is 0"),
    (("xrai", MODEL, SHAPE), {}, ValueError, "xrai cuts images along their edges.*segments=jaxcam.segments.grid"),
    ((looks, MODEL, SHAPE), {}, ValueError, "looks cannot be exported: it looks at values"),
    (
        ("saliency", lambda: jaxcam.tap(counts, jnp.ones(1)), SHAPE),
        {},
        ValueError,
        r"saliency cannot be exported: for any number of images it does not work \(.*integer\), for a certain",
    ),
    (("saliency", lambda: jaxcam.tap(fails, jnp.ones(1)), SHAPE), {}, RuntimeError, "^own words"),
    (
        ("saliency", lambda: jaxcam.tap(splits, jnp.ones(1)), SHAPE),
        {},
        ValueError,
        r"saliency cannot be exported: for any number of images it does not work \(Incompatible shapes.*; pass such",
    ),
]


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(("arguments", "options", "kind", "message"), ERRORS)
def test_errors(arguments, options, kind, message):
    method, model, *rest = arguments
    with pytest.raises(kind, match=message):
        jaxcam.export(method, model(), *rest, **{"platforms": ["cpu"], **options})


def test_what_belongs_to_certain_images_is_not_exported():
    context = jaxcam.tap(lambda variables, images, more: images.mean((1, 2)) + more, jnp.ones(1), context=jnp.ones(3))
    assert any(isinstance(each, Rows) for each in jax.tree.leaves(context, is_leaf=lambda each: isinstance(each, Rows)))
    with pytest.raises(ValueError, match="model holds context, with a row for each of certain images"):
        jaxcam.export("saliency", context, SHAPE)


def test_config_spread_is_not_exported():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    jaxcam.config.spread = jax.NamedSharding(mesh, jax.P("devices"))
    try:
        with pytest.raises(ValueError, match="config.spread is set, and an export runs on one device"):
            jaxcam.export("grad_cam", helpers.small(), SHAPE)
    finally:
        jaxcam.config.spread = None


def test_without_flatbuffers_there_is_one_sentence(monkeypatch):
    find_spec = functools.partial(lambda name, package=None: None)
    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(
        ImportError, match=r"export needs flatbuffers, which is not installed: pip install 'jaxcam-xai\["
    ):
        jaxcam.export("grad_cam", helpers.small(), SHAPE)
