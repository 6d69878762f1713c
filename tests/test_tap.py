"""The tap: activations, perturbations and gradients of unmodified Flax models."""

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
    np.testing.assert_array_equal(model(images), module.apply(variables, images))


@pytest.mark.parametrize("layer", ["conv1", "layer2", "layer3.0", "layer4.0.downsample.0", "layer4.0.conv2"])
def test_activations_are_what_flax_captures(resnet, layer):
    module, variables = resnet
    images = helpers.images(2, 32, 32)
    _, state = module.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
    node = state["intermediates"]
    for name in layer.split("."):
        node = node[name]
    activations = jaxcam.tap(module, variables, layer).activations(images)
    np.testing.assert_array_equal(activations, node["__call__"][0])


def test_gradient_equals_that_of_a_model_cut_by_hand():
    model, images = helpers.small("late"), helpers.images()
    module, variables = helpers.Small(), model.variables

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1))
            return nn.Dense(4, name="head")(nn.tanh(x))

    activations = model.activations(images)
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


def test_perturbation_is_added_at_the_layer():
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
    first = jaxcam.tap(module, variables, "twice[0]").activations(images)
    second = jaxcam.tap(module, variables, "twice[1]").activations(images)
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
        ("scan.inner", "inside nn.scan"),
    ],
)
def test_layer_errors(awkward, layer, message):
    module, variables, images = awkward
    with pytest.raises(ValueError, match=message):
        jaxcam.tap(module, variables, layer).activations(images)


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
        jaxcam.tap(Model(), variables, "two").activations(images)


def test_argument_errors(as_user, net):
    module = helpers.tiny_resnet()
    with pytest.raises(TypeError, match="must be a flax.linen.Module or a flax.nnx.Module"):
        jaxcam.tap(lambda x: x, {"params": {}}, "layer4")
    with pytest.raises(TypeError, match="what module.init returned"):
        jaxcam.tap(module, {"weights": {}}, "layer4")
    with pytest.raises(TypeError, match="carries its own variables"):
        jaxcam.tap(net, {"params": {}}, "head")
    with pytest.raises(TypeError, match="dotted path"):
        jaxcam.tap(module, {"params": {}}, 4)
    with pytest.raises(TypeError, match="never changes it"):
        jaxcam.tap(module, {"params": {}}, "layer4", mutable=["batch_stats"])


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
    listed = jaxcam.layers(helpers.tiny_resnet(), jnp.zeros((2, 32, 32, 3)))
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
