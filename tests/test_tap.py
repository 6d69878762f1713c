"""The tap: features, head, perturbations and gradients of unmodified Flax models."""

from typing import NamedTuple

import flax.errors
import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxcam


@pytest.fixture(scope="module")
def resnet():
    module = helpers.tiny_resnet()
    return module, helpers.random_variables(module)


def total(output):
    return output[:, 1].sum()


def test_it_is_the_model_itself(resnet):
    module, variables = resnet
    images = helpers.images(2, 32, 32)
    model = jaxcam.tap(module, variables, "layer4")
    np.testing.assert_allclose(model(images), module.apply(variables, images), atol=1e-5)


def test_what_it_shows_of_itself():
    """A line, not its weights, also while it is traced."""
    classifier, said = helpers.tiny_classifier(), []
    jax.jit(lambda model: said.append(repr(model)))(classifier.tap())
    size = sum(leaf.size for leaf in jax.tree.leaves(classifier.variables["params"]))
    assert said == [f"Tap(ResNet, 'layer4', {size:,} parameters)"]
    assert repr(classifier.tap()) == f"Tap(ResNet, 'layer4', {size:,} parameters on cpu:0)"
    facts = f"10 classes, layer 'layer4', 32 pixels, {size:,} parameters on cpu:0"
    assert repr(classifier) == f"Classifier('resnet18_cifar10': ResNet, {facts})"

    def weigh(weights, images):
        return images @ weights

    assert repr(jaxcam.tap(weigh, np.ones((3, 4)))) == "Tap(Function, 12 parameters)"  # on no device yet
    mesh = jax.make_mesh((2,), ("devices",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    everywhere = jax.device_put(np.ones((3, 4)), jax.NamedSharding(mesh, jax.P()))
    assert repr(jaxcam.tap(weigh, everywhere)) == "Tap(Function, 12 parameters on 2 x cpu)"


@pytest.mark.parametrize("layer", ["conv1", "layer2", "layer3.0", "layer4.0.downsample.0", "layer4.0.conv2"])
def test_activations_are_what_flax_captures(resnet, layer):
    module, variables = resnet
    images = helpers.images(2, 32, 32)
    _, state = module.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
    node = state["intermediates"]
    for name in layer.split("."):
        node = node[name]
    activations = jaxcam.tap(module, variables, layer).features(images)
    np.testing.assert_array_equal(activations, node["__call__"][0])


def test_gradient_equals_that_of_a_model_cut_by_hand():
    model, images = helpers.small("late"), helpers.images()
    module, variables = helpers.Small(), model.variables

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1))
            return nn.Dense(4, name="head")(nn.tanh(x))

    activations = model.features(images)
    params = {name: variables["params"][name] for name in ("hidden", "head")}
    expected = jax.grad(lambda a: total(Head().apply({"params": params}, a)))(activations)
    output, captured, gradients = model.gradients(images, total)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(captured[0], activations)
    np.testing.assert_array_equal(output, module.apply(variables, images))


def test_several_layers_at_once_equal_each_alone(resnet):
    module, variables = resnet
    images = helpers.images(2, 32, 32)
    _, activations, gradients = jaxcam.tap(module, variables, ("layer3", "layer2")).gradients(images, total)
    for layer, activation, gradient in zip(("layer3", "layer2"), activations, gradients, strict=True):
        _, (alone,), (gradient_alone,) = jaxcam.tap(module, variables, layer).gradients(images, total)
        np.testing.assert_array_equal(activation, alone)
        np.testing.assert_allclose(gradient, gradient_alone, rtol=1e-5, atol=1e-7)


def test_what_is_added_or_put_at_the_layer():
    class Identity(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return 3 * Identity(name="here")(2 * nn.Dense(1, use_bias=False)(x))

    images = jnp.ones((1, 2, 2, 1))
    variables = {"params": {"Dense_0": {"kernel": jnp.full((1, 1), 5.0)}}}
    model = jaxcam.tap(Model(), variables, "here")
    output, (activation,) = model.run(images, [jnp.full((1, 2, 2, 1), 0.5)])
    np.testing.assert_array_equal(activation, jnp.full((1, 2, 2, 1), 10.5))  # captured with the perturbation
    np.testing.assert_array_equal(output, 3 * activation)
    output, (activation,) = model.run(images, [jnp.full((1, 2, 2, 1), 0.5)], put=True)
    np.testing.assert_array_equal(activation, jnp.full((1, 2, 2, 1), 0.5))
    np.testing.assert_array_equal(output, 3 * activation)


def test_equal_taps_do_not_recompile(resnet):
    module, variables = resnet
    images = helpers.images(2, 32, 32)
    traces = []

    @jax.jit
    def run(model, images):
        traces.append(model.layers)
        return model(images)

    run(jaxcam.tap(module, variables, "layer4"), images)
    other = jax.tree.map(lambda x: 2 * x, variables)
    run(jaxcam.tap(helpers.tiny_resnet(), other, "layer4"), images + 1)
    assert traces == [("layer4",)]
    run(jaxcam.tap(module, variables, "layer3"), images)
    assert traces == [("layer4",), ("layer3",)]


def test_weights_are_arguments_not_constants(resnet):
    module, variables = resnet
    model = jaxcam.tap(module, variables, "layer4")
    jaxpr = jax.make_jaxpr(lambda model, images: model.gradients(images, total))(model, helpers.images(1, 32, 32))
    weights = {leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim == 4}
    assert not weights & {np.shape(constant) for constant in jaxpr.consts}
    assert len(jax.tree.leaves(model)) == len(jax.tree.leaves(variables))


def test_nothing_below_the_layer_is_backpropagated():
    """The FLOPs of Grad-CAM at the last stage are those of a forward pass and the little above the layer."""
    module = helpers.tiny_resnet(width=8)
    variables, images = helpers.random_variables(module), helpers.images(2, 32, 32)

    def flops(function, layer):
        model = jaxcam.tap(module, variables, layer)
        return jax.jit(function).lower(model, images).compile().cost_analysis()["flops"]

    forward = flops(lambda model, images: model(images), "layer4")
    assert flops(jaxcam.grad_cam, "layer4") < 1.05 * forward
    assert flops(jaxcam.grad_cam, "layer1") > 1.5 * forward  # so the count does see a backward pass


class Skip(nn.Module):
    """The head reads the layer, and what lies below it."""

    @nn.compact
    def __call__(self, x):
        below = nn.Conv(4, (3, 3), name="below")(x)
        return nn.Dense(4)((below + nn.tanh(nn.Conv(4, (3, 3), name="here")(below))).mean((1, 2)))


def test_features_and_head_are_the_model(resnet):
    """The head is a function of what the layer returns, whatever bypasses the layer, and costs what lies above."""
    module, variables = resnet
    images = helpers.images(2, 32, 32)
    model = jaxcam.tap(module, variables, "layer4")
    np.testing.assert_allclose(model.head(images)(model.features(images)), model(images), rtol=1e-5)

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    features = model.features(images)
    above = flops(lambda head, features: head(features), model.head(images), features)
    assert above < 3 * features.size + 3 * 2 * features.shape[-1] * 10
    assert above < 0.001 * flops(lambda model, images: model(images), model, images)

    images = helpers.images()
    variables = Skip().init(jax.random.key(0), images)
    model = jaxcam.tap(Skip(), variables, "here")
    head, features = model.head(images), model.features(images)
    np.testing.assert_allclose(head(features), model(images), rtol=1e-5)
    gradient = jax.grad(lambda a: total(head(a)))(features)
    np.testing.assert_allclose(gradient, model.gradients(images, total)[2][0], rtol=1e-4, atol=1e-8)
    params = variables["params"]
    below = nn.Conv(4, (3, 3)).apply({"params": params["below"]}, images)
    expected = nn.Dense(4).apply({"params": params["Dense_0"]}, (below + jnp.tanh(2 * features)).mean((1, 2)))
    np.testing.assert_allclose(head(2 * features), expected, rtol=1e-4)
    np.testing.assert_allclose(jaxcam.saliency(head, features, 1), gradient, rtol=1e-4, atol=1e-8)


def test_head_needs_one_layer(resnet):
    module, variables = resnet
    with pytest.raises(ValueError, match="head begins at one layer, and 2 are tapped"):
        jaxcam.tap(module, variables, ("layer3", "layer4")).head(helpers.images(2, 32, 32))


def test_a_tap_goes_through_every_transformation(resnet):
    module, variables = resnet
    images = helpers.images(4, 32, 32)
    model = jaxcam.tap(module, variables, "layer3")

    def gradients(model, images):
        return model.gradients(images, total)[2][0]

    expected = gradients(model, images)
    np.testing.assert_allclose(jax.jit(gradients)(model, images), expected, rtol=1e-4, atol=1e-6)
    each = jax.vmap(lambda image: gradients(model, image[None])[0])(images)
    np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-6)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), model)
    outputs = jax.vmap(lambda model: model(images))(many)
    np.testing.assert_allclose(outputs[1], jax.tree.map(lambda leaf: 2 * leaf, model)(images), rtol=1e-4, atol=1e-5)
    of_weights = jax.grad(lambda model: total(model(images)))(model)
    assert jax.tree.structure(of_weights) == jax.tree.structure(model)
    one = jax.grad(lambda params: total(module.apply({**variables, "params": params}, images)))(variables["params"])
    np.testing.assert_allclose(
        of_weights.variables["params"]["conv1"]["kernel"], one["conv1"]["kernel"], rtol=1e-4, atol=1e-5
    )


def test_no_sum_over_the_devices_of_a_mesh(resnet):
    """A device's gradients are those of its own images, and not summed silently with those of the others."""
    module, variables = resnet
    images = helpers.images(2 * jax.device_count(), 32, 32)
    model = jaxcam.tap(module, variables, "layer3")

    def gradients(model, images):
        return model.gradients(images, total)[2][0]

    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    here, everywhere = jax.P("devices"), jax.P()
    run = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=(everywhere, here), out_specs=here))
    np.testing.assert_allclose(run(model, images), gradients(model, images), rtol=1e-4, atol=1e-6)


class Fused(nn.Module):
    """An image and what is known of it besides; several outputs."""

    @nn.compact
    def __call__(self, x, known, *, scale=1.0):
        features = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        joined = jnp.concatenate([features.mean((1, 2)), known], 1)
        return {"logits": scale * nn.Dense(3)(nn.tanh(nn.Dense(5)(joined))), "features": features}


@pytest.fixture(scope="module")
def fused():
    images, known = helpers.images(), jax.random.normal(jax.random.key(5), (3, 2))
    return Fused().init(jax.random.key(0), images, known), images, known


@pytest.mark.parametrize("as_context", [lambda x: x, lambda x: (x,), lambda x: {"known": x}, np.asarray])
def test_context_goes_in_by_place_or_name(fused, as_context):
    variables, images, known = fused
    model = jaxcam.tap(Fused(), variables, "conv", context=as_context(known), output="logits")
    np.testing.assert_allclose(model(images), Fused().apply(variables, images, known)["logits"], rtol=1e-6)
    assert jaxcam.layers(Fused(), images, context=as_context(known)) == model.shapes(images)


def test_rows_of_the_context_follow_their_images(fused):
    """Wherever images are repeated, so is their context: one image at a time gives the same."""
    variables, images, known = fused
    options = {"output": "logits"}
    model = jaxcam.tap(Fused(), variables, "conv", context=known, **options)
    together = jaxcam.smooth_grad(model, images, 1, num_samples=5, chunk_size=6)
    for i in range(len(images)):
        alone = jaxcam.tap(Fused(), variables, "conv", context=known[i : i + 1], **options)
        one = jaxcam.smooth_grad(alone, images[i : i + 1], 1, num_samples=5)
        np.testing.assert_allclose(one[0], together[i], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("output", ["logits", lambda out: out["logits"]])
def test_output_picks_what_is_explained(fused, output):
    variables, images, known = fused
    model = jaxcam.tap(Fused(), variables, "conv", context=known, output=output)
    assert model(images).shape == (3, 3)
    assert model.features(images).shape == (3, 12, 16, 4)
    assert jaxcam.grad_cam(model, images).shape == (3, 12, 16)


def test_output_picks_of_any_structure():
    class Output(NamedTuple):
        logits: jax.Array
        rest: jax.Array

    def function(kind):
        return lambda variables, images: kind(images.mean((1, 2)), images)

    images = helpers.images()
    for kind, places in (
        (Output, ["logits", 0]),
        (lambda *each: each, [0, -2]),
        (lambda *each: list(each), [0]),
        (lambda a, b: {"logits": a, "rest": b}, ["logits"]),
    ):
        for place in places:
            found = jaxcam.tap(function(kind), None, output=place)(images)
            np.testing.assert_array_equal(found, images.mean((1, 2)))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("logit", "output is 'logit', and the model returns a dict with the keys .'logits', 'features'"),
        (0, "output is 0, and the model returns a dict"),
    ],
)
def test_output_that_is_not_there(fused, output, message):
    variables, images, known = fused
    with pytest.raises(ValueError, match=message):
        jaxcam.tap(Fused(), variables, "conv", context=known, output=output)(images)


def test_an_index_never_picks_an_image(resnet):
    module, variables = resnet
    with pytest.raises(ValueError, match=r"output is 0, and the model returns an array \(2, 10\)"):
        jaxcam.tap(module, variables, "layer4", output=0)(helpers.images(2, 32, 32))


def test_context_errors(fused):
    variables, images, known = fused
    with pytest.raises(ValueError, match=r"context holds an array \(2, 2\), and there are 3 images"):
        jaxcam.tap(Fused(), variables, "conv", context=known[:2], output="logits")(images)
    with pytest.raises(TypeError, match="context holds a float; it must hold arrays with a row for each image"):
        jaxcam.tap(Fused(), variables, "conv", context=[1.0])
    with pytest.raises(TypeError, match="Fused is called with 'known', which a tap must know"):
        jaxcam.tap(Fused(), variables, "conv")
    with pytest.raises(TypeError, match="Fused cannot be called with what the tap was given: too many positional"):
        jaxcam.tap(Fused(), variables, "conv", context=(known, known))


class Trained(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x).mean((1, 2)))


def test_how_a_linen_module_is_called_is_asked_at_once():
    images = helpers.images()
    variables = Trained().init(jax.random.key(0), images, train=False)
    sentence = "Trained is called with 'train', which a tap must know: jaxcam.tap.*train=False"
    with pytest.raises(TypeError, match=sentence):
        jaxcam.tap(Trained(), variables, "conv")
    with pytest.raises(TypeError, match=sentence):
        jaxcam.layers(Trained(), images)
    with pytest.raises(TypeError, match="Trained cannot be called .* an unexpected keyword argument 'trian'"):
        jaxcam.tap(Trained(), variables, "conv", trian=False)
    for options in ({}, {"rngs": {"dropout": jax.random.key(0)}}):
        with pytest.raises(ValueError, match="it is in training mode.*`train=False`"):
            jaxcam.tap(Trained(), variables, "conv", train=True, **options)(images)
    assert jaxcam.tap(Trained(), variables, "conv", train=False)(images).shape == (3, 2)


def test_what_a_checkpoint_holds_instead_of_variables():
    """A training state, its parameters alone, or without the statistics."""
    images = helpers.images()
    variables = Trained().init(jax.random.key(0), images, train=False)
    with pytest.raises(
        TypeError, match=r"variables holds 'step', which module.init does not return. Of a training state"
    ):
        jaxcam.tap(Trained(), {"step": 3, "opt_state": {}, **variables}, "conv", train=False)
    with pytest.raises(TypeError, match='of parameters alone, {"params": parameters}'):
        jaxcam.tap(Trained(), variables["params"], "conv", train=False)
    with pytest.raises(ValueError, match="variables holds 'params' alone, and the module needs more: .*batch_stats"):
        jaxcam.tap(Trained(), {"params": variables["params"]}, "conv", train=False)(images)


def test_initializers_are_traced_once_and_shapes_still_compared():
    """Flax traces them at every call; one that closes over what is traced is not kept."""
    traced = []

    def ones(key, shape, dtype):
        traced.append(shape)
        return jnp.ones(shape, dtype)

    class Shifted(nn.Module):
        @nn.compact
        def __call__(self, images):
            shift = self.param("shift", lambda key: jnp.zeros(images.shape[-1:]))
            return nn.Dense(3, kernel_init=ones)((images + shift).mean((1, 2)))

    variables = Shifted().init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
    traced.clear()
    with jax.checking_leaks():
        for side in (4, 5):
            jax.eval_shape(jaxcam.tap(Shifted(), variables, "Dense_0"), jnp.ones((1, side, side, 2)))
    assert traced == [(2, 3)]
    variables["params"]["Dense_0"]["kernel"] = jnp.ones((1, 3))  # as broadcasting would hide
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r'"kernel" in "/Dense_0".*\(2, 3\).*\(1, 3\)'):
        jaxcam.tap(Shifted(), variables, "Dense_0")(jnp.ones((1, 4, 4, 2)))


def test_dropout_without_its_random_numbers():
    module, images = nn.Sequential([nn.Conv(4, (3, 3)), nn.Dropout(0.5, deterministic=False)]), helpers.images()
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, images)
    with pytest.raises(ValueError, match="it is in training mode"):
        jaxcam.tap(module, variables, "layers_0")(images)


class AnyArguments(nn.Module):
    @nn.compact
    def __call__(self, *args, **kwargs):
        return nn.Dense(2)(args[0]).mean((1, 2))


class Defaults(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, scale=1.0, *, deterministic: bool | None = None):
        return scale * nn.BatchNorm(use_running_average=not self.train)(x).mean((1, 2))


@pytest.mark.parametrize("module", [AnyArguments(), Defaults(False), nn.remat(Defaults)(False)])
def test_nothing_is_asked_that_the_module_does_not_need(module):
    images = helpers.images()
    variables = module.init(jax.random.key(0), images)
    layer = next(iter(jaxcam.layers(module, images, variables)))
    assert jaxcam.tap(module, variables, layer)(images).shape[0] == 3


class Block(nnx.Module):
    def __init__(self, features, new, rngs):
        self.conv = nnx.Conv(features, new, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(new, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(3, 4, rngs), Block(4, 6, rngs)])
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    net = Net(nnx.Rngs(0))
    net.eval()
    return net


def test_nnx_model(net):
    images = helpers.images()
    model = jaxcam.tap(net, None, "blocks.1")
    output, (activations,), (gradients,) = model.gradients(images, total)
    np.testing.assert_allclose(output, net(images), rtol=1e-6)
    np.testing.assert_allclose(activations, net.blocks[1](net.blocks[0](images)), rtol=1e-6)
    expected = jnp.broadcast_to(net.head.kernel[:, 1] / (12 * 16), activations.shape)
    np.testing.assert_allclose(gradients, expected, rtol=1e-5)
    assert type(net.blocks[1]) is Block  # the user's model is untouched


def test_nnx_methods_and_layers(net):
    images = helpers.images()
    assert jaxcam.layers(net, images) == {
        "blocks.0.conv": (3, 12, 16, 4),
        "blocks.0.norm": (3, 12, 16, 4),
        "blocks.0": (3, 12, 16, 4),
        "blocks.1.conv": (3, 12, 16, 6),
        "blocks.1.norm": (3, 12, 16, 6),
        "blocks.1": (3, 12, 16, 6),
        "head": (3, 4),
    }
    heatmaps = jaxcam.grad_cam(jaxcam.tap(net, None, "blocks.1"), images)
    weights = net.head.kernel[:, jnp.argmax(net(images), -1)].T
    features = net.blocks[1](net.blocks[0](images))
    raw = jax.nn.relu(jnp.einsum("nhwk,nk->nhw", features, weights))
    expected = (raw - raw.min((1, 2), keepdims=True)) / jnp.ptp(raw, (1, 2), keepdims=True)
    np.testing.assert_allclose(heatmaps, expected, atol=1e-5)


def test_nnx_equal_taps_do_not_recompile(net):
    images, traces = helpers.images(), []

    @jax.jit
    def run(model, images):
        traces.append(1)
        return model(images)

    run(jaxcam.tap(net, None, "head"), images)
    run(jaxcam.tap(net, None, "head"), images)
    assert len(traces) == 1


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Conv(4, (3, 3), name="inner")(x), None


class Awkward(nn.Module):
    """A list among the fields, a module called twice, rematerialisation, a scan, integer outputs."""

    sizes: list

    @nn.compact
    def __call__(self, x):
        twice = nn.Conv(3, (3, 3), name="twice")
        x = twice(twice(x))
        x = nn.remat(nn.Conv)(4, (3, 3), name="remat")(x)
        scan = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = scan(name="scan")(x, None)
        x, _ = Counted(name="counted")(x)
        return nn.Dense(4)(x.mean((1, 2)))


class Counted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(x), jnp.arange(3)


@pytest.fixture(scope="module")
def awkward():
    module, images = Awkward([1, 2]), helpers.images()
    return module, module.init(jax.random.key(0), images), images


@pytest.mark.parametrize("layer", ["twice[0]", "twice[1]", "remat", "counted"])
def test_awkward_layers_work(awkward, layer):
    module, variables, images = awkward
    output, _, (gradients,) = jaxcam.tap(module, variables, layer).gradients(images, total)
    step = 0.1 * gradients
    model = jaxcam.tap(module, variables, layer)
    difference = total(model.run(images, [step])[0]) - total(model.run(images, [-step])[0])
    np.testing.assert_allclose(difference, 2 * jnp.vdot(gradients, step), rtol=2e-2)


def test_calls_of_a_shared_module_are_told_apart(awkward):
    module, variables, images = awkward
    first = jaxcam.tap(module, variables, "twice[0]").features(images)
    second = jaxcam.tap(module, variables, "twice[1]").features(images)
    assert not np.allclose(first, second)


def test_unhashable_module_does_not_recompile(awkward):
    module, variables, images = awkward
    traces = []

    @jax.jit
    def run(model, images):
        traces.append(1)
        return model(images)

    for _ in range(2):
        run(jaxcam.tap(module, variables, "remat"), images)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("remot", "Unknown layer 'remot'. Did you mean 'remat'"),
        ("twice", "called 2 times; name one call, 'twice\\[0\\]' ... 'twice\\[1\\]'"),
        ("twice[2]", "called 2 times, so there is no"),
        ("scan.inner", "inside a scan, vmap or checkpoint"),
    ],
)
def test_layer_errors(awkward, layer, message):
    module, variables, images = awkward
    with pytest.raises(ValueError, match=message):
        jaxcam.tap(module, variables, layer).features(images)


def test_layer_without_one_array():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x, x

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(Two(name="two")(x)[0])

    images = helpers.images()
    variables = Model().init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="'two' does not return one floating-point array"):
        jaxcam.tap(Model(), variables, "two").features(images)


def test_argument_errors(as_user, net):
    module = helpers.tiny_resnet()
    with pytest.raises(TypeError, match="model is a int; it must be a flax.linen or flax.nnx module, a Keras 3 model"):
        jaxcam.tap(4, {"params": {}}, "layer4")
    with pytest.raises(TypeError, match="what module.init returned"):
        jaxcam.tap(module, {"weights": {}}, "layer4")
    with pytest.raises(TypeError, match="carries its own variables"):
        jaxcam.tap(net, {"params": {}}, "head")
    with pytest.raises(TypeError, match="dotted path"):
        jaxcam.tap(module, {"params": {}}, 4)
    with pytest.raises(TypeError, match="A tap needs a layer"):
        jaxcam.tap(module, {"params": {}})
    with pytest.raises(TypeError, match="never changes it"):
        jaxcam.tap(module, {"params": {}}, "layer4", mutable=["batch_stats"])
    with pytest.raises(TypeError, match="dtypes is a list; what is no array must be hashable"):
        jaxcam.tap(helpers.Small(), {"params": {}}, "late", dtypes=[1])


def test_model_arguments_are_static_or_leaves():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(4, (3, 3), name="conv")(x)
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x).mean((1, 2)))

    images = helpers.images()
    variables = Noisy().init(jax.random.key(0), images, train=False)
    quiet = jaxcam.tap(Noisy(), variables, "conv", train=False)
    assert quiet.options == (("train", False),)
    np.testing.assert_array_equal(quiet(images), Noisy().apply(variables, images, train=False))
    noisy = jaxcam.tap(Noisy(), variables, "conv", train=True, rngs={"dropout": jax.random.key(1)})
    expected = Noisy().apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(noisy, images), expected, rtol=1e-5)


def test_layers_lists_every_module():
    module, images = helpers.tiny_resnet(), jnp.zeros((2, 32, 32, 3))
    listed = jaxcam.layers(module, images)
    assert jaxcam.layers(jaxcam.tap(module, helpers.random_variables(module), "fc"), images) == listed
    assert listed["conv1"] == (2, 32, 32, 4)
    assert listed["layer4.0.downsample.1"] == (2, 4, 4, 32)
    assert listed["layer4"] == (2, 4, 4, 32)
    assert listed["fc"] == (2, 10)
    assert list(listed).index("layer1") < list(listed).index("layer2")


class InTraining(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.head = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


def test_nnx_model_in_training_mode_is_refused():
    images, model = jnp.ones((2, 8, 8, 3)), InTraining(nnx.Rngs(0))
    mean = np.asarray(model.norm.mean[...])
    for call in (lambda tap: tap(images), lambda tap: jaxcam.saliency(tap, images, 0)):
        with pytest.raises(
            ValueError, match=r"The model changes '.*' as it runs, so it is in training mode.*model.eval\(\)"
        ):
            call(jaxcam.tap(model, None, "conv"))
    np.testing.assert_array_equal(model.norm.mean[...], mean)
    assert jaxcam.layers(model, images)["norm"] == (2, 8, 8, 4)
    model.eval()
    assert jaxcam.saliency(jaxcam.tap(model, None, "conv"), images, 0).shape == images.shape


def test_nnx_state_is_a_copy():
    images, model = jnp.ones((2, 8, 8, 3)), InTraining(nnx.Rngs(0))
    model.eval()
    tap = jaxcam.tap(model, None, "conv")
    before = tap(images)
    model.head.kernel[...] = jnp.zeros((4, 3))  # a training step
    np.testing.assert_array_equal(tap(images), before)


def test_nnx_gradient_by_the_tap_and_no_random_leaves():
    """Random state is no leaf of a tap, so the gradient with respect to its weights exists."""
    images, model = helpers.images(2, 8, 8), InTraining(nnx.Rngs(0))
    model.eval()
    tap = jaxcam.tap(model, None, "conv")
    gradient = jax.grad(lambda tap: tap(images).sum())(tap)
    expected = jax.grad(lambda kernel: _replaced(model, kernel)(images).sum())(model.head.kernel[...])
    np.testing.assert_allclose(gradient.variables["head"]["kernel"][...], expected, rtol=1e-5)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tap))


def _replaced(model, kernel):
    copy = nnx.clone(model)
    copy.head.kernel[...] = kernel
    return copy


class Shares(nnx.Module):
    """One block under two names, called twice, the second time perhaps rematerialised."""

    def __init__(self, rngs, remat):
        self.blocks = nnx.List([Block(3, 3, rngs), Block(3, 3, rngs)])
        self.again = self.blocks[1]
        self.head = nnx.Linear(3, 4, rngs=rngs)
        self.remat = remat
        self.eval()

    def __call__(self, x):
        def call(block, x):
            return block(x)

        x = self.blocks[1](self.blocks[0](x))
        return self.head((nnx.remat(call) if self.remat else call)(self.again, x).mean((1, 2)))


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("name", ["again", "blocks.1"])
def test_nnx_shared_modules_in_both_modes(graph, name):
    model, images = Shares(nnx.Rngs(0), remat=False), helpers.images()
    second, expected = model.again(model.again(model.blocks[0](images))), model(images)
    with nnx.set_graph_mode(graph):
        assert jaxcam.layers(model, images)["again"] == (3, 12, 16, 3)
        tap = jaxcam.tap(model, None, f"{name}[1]")
        np.testing.assert_allclose(tap(images), expected, rtol=1e-5)
        np.testing.assert_allclose(tap.features(images), second, rtol=1e-5, atol=1e-6)


def test_nnx_inside_remat():
    model, images = Shares(nnx.Rngs(0), remat=True), helpers.images()
    tap = jaxcam.tap(model, None, "again[1]")
    _, (features,), (gradients,) = jax.jit(lambda tap, images: tap.gradients(images, total))(tap, images)
    np.testing.assert_allclose(features, model.again(model.again(model.blocks[0](images))), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients, jnp.broadcast_to(model.head.kernel[:, 1] / 192, gradients.shape), rtol=1e-5)
    with nnx.set_graph_mode(False), pytest.raises(ValueError, match="lies inside a scan, vmap or checkpoint"):
        tap.features(images)


def test_nnx_model_built_as_a_tree():
    images = helpers.images()
    with nnx.set_graph_mode(False):
        model = Net(nnx.Rngs(0))
        model.eval()
        inside = jaxcam.tap(model, None, "blocks.0").features(images)
    np.testing.assert_array_equal(jaxcam.tap(model, None, "blocks.0").features(images), inside)
    np.testing.assert_allclose(inside, model.blocks[0](images), rtol=1e-5)


def test_nnx_makes_one_class_for_each(net):
    """NNX keeps every class that it meets: a second trace adds none."""
    images = helpers.images()

    def count():
        return len(Block.__subclasses__())

    jaxcam.tap(net, None, "blocks.0").features(images)
    before = count()
    for layer in ("blocks.0", "blocks.1"):
        jax.make_jaxpr(lambda tap, images: tap.gradients(images, total))(jaxcam.tap(net, None, layer), images)
    assert count() == before
    assert type(net.blocks[0]) is Block
