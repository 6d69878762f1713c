"""Taps of Keras and Equinox models, and of functions: each agrees with the framework's own call and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam

IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 10, 3))
KNOWN = jax.random.normal(jax.random.key(1), (2, 5))


def close(actual, desired, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=atol)


def total(output):
    return output[:, 1].sum()


def count_traces(*taps, images=IMAGES):
    traces = []

    @jax.jit
    def run(tap, images):
        traces.append(1)
        return tap(images)

    for tap in taps:
        run(tap, images)
    return len(traces)


# Keras


@pytest.fixture(scope="module")
def keras():
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend")
    return keras


@pytest.fixture(scope="module")
def functional(keras):
    """Normalisation and Dropout in a nested model, and a layer that is called twice."""
    L = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 10, 3))
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv")(x))
    inner = keras.Model(x, L.Dropout(0.5, name="drop")(y), name="inner")
    x, twice = keras.Input((8, 10, 3)), L.Dense(5, activation="tanh", name="twice")
    y = L.GlobalAveragePooling2D(name="pool")(twice(keras.ops.relu(twice(L.Dense(5, name="before")(inner(x))))))
    model = keras.Model(x, L.Dense(3, name="head")(y))
    norm = inner.get_layer("norm")
    norm.moving_mean.assign(np.array([0.1, -0.2, 0.3, 0.0]))
    norm.moving_variance.assign(np.array([1.1, 0.2, 1.3, 0.5]))
    return model


def test_keras_is_the_model_itself(functional):
    tap = jaxcam.tap(functional, None, "norm")
    close(tap(IMAGES), functional(IMAGES, training=False))
    close(tap.features(IMAGES), functional.get_layer("inner")(IMAGES, training=False))
    close(tap.head(IMAGES)(tap.features(IMAGES)), tap(IMAGES))
    assert jaxcam.layers(functional, IMAGES) == {
        "conv": (2, 6, 8, 4),
        "norm": (2, 6, 8, 4),
        "drop": (2, 6, 8, 4),
        "inner": (2, 6, 8, 4),
        "before": (2, 6, 8, 5),
        "twice": (2, 6, 8, 5),
        "pool": (2, 5),
        "head": (2, 3),
    }


def test_keras_gradients_are_those_of_plain_jax(keras, functional):
    """A model is cut at a layer by Keras itself, and both halves run by `stateless_call`."""
    model = functional
    cut = model.get_layer("before").output
    below, above = keras.Model(model.input, cut), keras.Model(cut, model.output)

    def run(part, x):
        weights = [[each.value for each in some] for some in (part.trainable_variables, part.non_trainable_variables)]
        return part.stateless_call(*weights, x, training=False)[0]

    activations = run(below, IMAGES)
    gradients = jax.grad(lambda a: total(run(above, a)))(activations)
    tap = jaxcam.tap(model, None, "before")
    _, (found,), (gradient,) = tap.gradients(IMAGES, total)
    close(found, activations)
    close(gradient, gradients)
    close(jaxcam.saliency(tap, IMAGES, 1), jax.grad(lambda x: total(run(model, x)))(IMAGES))
    expected = jnp.einsum("nhwk,nk->nhw", activations, gradients.mean((1, 2)))
    close(jaxcam.grad_cam(tap, IMAGES, 1, raw=True), expected)


@pytest.mark.parametrize("name", ["inner.conv", "inner/conv", "conv", "norm", "inner", "twice[0]", "twice[1]"])
def test_keras_layers_by_name_or_path(functional, name):
    assert jaxcam.tap(functional, None, name).features(IMAGES).shape[0] == 2


def test_keras_calls_of_a_layer_are_told_apart(functional):
    first, second = (jaxcam.tap(functional, None, f"twice[{i}]").features(IMAGES) for i in range(2))
    close(second, functional.get_layer("twice")(jax.nn.relu(first)))


def test_keras_does_not_compile_again(functional):
    assert count_traces(*(jaxcam.tap(functional, None, "norm") for _ in range(2))) == 1


def test_keras_weights_are_leaves_and_random_state_is_none(functional):
    tap = jaxcam.tap(functional, None, "norm")
    gradient = jax.grad(lambda tap: total(tap(IMAGES)))(tap)
    by_keras = jax.grad(
        lambda trainable: total(
            functional.stateless_call(trainable, [v.value for v in functional.non_trainable_variables], IMAGES)[0]
        )
    )([v.value for v in functional.trainable_variables])
    for variable, expected in zip(functional.trainable_variables, by_keras, strict=True):
        close(gradient.variables[variable.path.replace("/", ".")], expected)
    closed = jax.make_jaxpr(lambda tap, images: tap(images))(tap, IMAGES)
    assert not {(3, 3, 3, 4), (5, 5)} & {np.shape(each) for each in closed.consts}


def test_keras_model_is_untouched_after_an_error_too(functional):
    before = {layer.name: dict(layer.__dict__) for layer in functional._flatten_layers()}
    weights = [np.asarray(each.value) for each in functional.variables]
    jaxcam.grad_cam(jaxcam.tap(functional, None, "norm"), IMAGES)
    with pytest.raises(ValueError):
        jaxcam.tap(functional, None, "norm")(IMAGES[:, :2])
    for layer in functional._flatten_layers():
        assert layer.__dict__.keys() == before[layer.name].keys()
        assert "call" not in layer.__dict__
    for each, weight in zip(functional.variables, weights, strict=True):
        np.testing.assert_array_equal(each.value, weight)


def test_keras_errors(keras, functional):
    with pytest.raises(ValueError, match="^Unknown layer 'norn'. Did you mean 'norm'"):
        jaxcam.tap(functional, None, "norn")
    with pytest.raises(ValueError, match="^Layer 'twice' is called 2 times; name one call"):
        jaxcam.tap(functional, None, "twice").features(IMAGES)
    with pytest.raises(ValueError, match="^Layer 'norm\\[1\\]'|^Layer 'norm' is called 1 times, so there is no"):
        jaxcam.tap(functional, None, "norm[1]").features(IMAGES)
    with pytest.raises(TypeError, match="^A Keras model carries its own variables"):
        jaxcam.tap(functional, {}, "norm")
    with pytest.raises(ValueError, match="in inference mode"):
        jaxcam.tap(functional, None, "norm", training=True)
    with pytest.raises(ValueError, match="has no weights yet"):
        jaxcam.tap(keras.Sequential([keras.layers.Dense(3)]), None, "dense")


def test_keras_several_layers_of_one_name(keras):
    def inner(name):
        x = keras.Input((8, 10, 3))
        return keras.Model(x, keras.layers.Conv2D(3, 3, padding="same", name="same")(x), name=name)

    x = keras.Input((8, 10, 3))
    model = keras.Model(x, inner("b")(inner("a")(x)))
    with pytest.raises(ValueError, match="Several layers are called 'same'; name one of a.same, b.same"):
        jaxcam.tap(model, None, "same")
    a = model.get_layer("a")
    close(jaxcam.tap(model, None, "a.same").features(IMAGES), a(IMAGES))
    close(jaxcam.tap(model, None, "b/same").features(IMAGES), model(IMAGES))


def test_keras_applications(keras):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=7, classifier_activation=None
    )
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    cut = model.get_layer("block_6_expand").output
    below, above = keras.Model(model.input, cut), keras.Model(cut, model.output)

    def run(part):
        weights = [[each.value for each in some] for some in (part.trainable_variables, part.non_trainable_variables)]
        return jax.jit(lambda x: part.stateless_call(*weights, x, training=False)[0])

    activations = run(below)(images)
    gradients = jax.grad(lambda a: 1e6 * total(run(above)(a)))(activations)
    expected = jnp.einsum("nhwk,nk->nhw", activations, gradients.mean((1, 2)))
    tap = jaxcam.tap(model, None, "block_6_expand")
    maps = jaxcam.grad_cam(tap, images, score=lambda output, targets: 1e6 * output[:, 1], raw=True)
    close(maps, expected, 1e-3, 1e-5 * float(jnp.abs(expected).max()))
    assert list(jaxcam.layers(model, images).items())[-1] == ("predictions", (2, 7))


@pytest.fixture(scope="module")
def two_inputs(keras):
    keras.utils.set_random_seed(0)
    image, known = keras.Input((8, 10, 3), name="image"), keras.Input((5,), name="known")
    y = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    y = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(y), known])
    return image, known, keras.layers.Dense(3)(keras.layers.Dense(6, activation="tanh")(y))


@pytest.mark.parametrize("context", [KNOWN, (KNOWN,), {"known": KNOWN}], ids=["one", "tuple", "dict"])
@pytest.mark.parametrize("kind", ["list", "dict", "reversed"])
def test_keras_several_inputs(keras, two_inputs, kind, context):
    image, known, output = two_inputs
    expected = keras.Model([image, known], output)([IMAGES, KNOWN])
    structure = {"list": [image, known], "dict": {"image": image, "known": known}, "reversed": [known, image]}[kind]
    if kind == "reversed" and not isinstance(context, dict):
        pytest.skip("the images come first, where the context is not named")
    tap = jaxcam.tap(keras.Model(structure, output), None, "conv", context=context)
    close(tap(IMAGES), expected)
    maps = jaxcam.smooth_grad(tap, IMAGES, 1, num_samples=3)
    alone = jaxcam.tap(keras.Model(structure, output), None, "conv", context=jax.tree.map(lambda x: x[1:], context))
    close(jaxcam.smooth_grad(alone, IMAGES[1:], 1, num_samples=3), maps[1:])


def test_keras_inputs_that_are_missing(keras, two_inputs):
    image, known, output = two_inputs
    model = keras.Model([image, known], output)
    for context in (None, {"knwon": KNOWN}, (KNOWN, KNOWN)):
        with pytest.raises(ValueError, match="^The model takes the inputs image, known: context must hold all of them"):
            jaxcam.tap(model, None, "conv", context=context)(IMAGES)


@pytest.fixture(scope="module")
def attentive(keras):
    """A model with a `call` of its own, several outputs, and attention."""
    L = keras.layers

    class Attentive(keras.Model):
        def __init__(self):
            super().__init__()
            self.patches, self.head = L.Conv2D(4, 2, 2, name="patches"), L.Dense(3, name="head")
            self.attend, self.norm = L.MultiHeadAttention(2, 4, name="attend"), L.BatchNormalization(name="norm")

        def call(self, x, training=False):
            tokens = keras.ops.reshape(self.norm(self.patches(x), training=training), (-1, 20, 4))
            tokens = tokens + self.attend(tokens, tokens, training=training)
            return {"logits": self.head(keras.ops.mean(tokens, 1)), "tokens": tokens}

    keras.utils.set_random_seed(0)
    model = Attentive()
    model(IMAGES)
    return model


def test_keras_attention(attentive):
    tap = jaxcam.tap(attentive, None, "attend", output="logits", reshape=jaxcam.tokens((4, 5), drop=0))
    close(tap(IMAGES), attentive(IMAGES)["logits"])
    tokens = attentive.norm(attentive.patches(IMAGES)).reshape(2, 20, 4)
    [weights] = tap.attention(IMAGES)
    close(weights, attentive.attend(tokens, tokens, return_attention_scores=True)[1])
    arrived = (weights.mean(1) + jnp.eye(20)).mean(1).reshape(2, 4, 5) / 2
    close(jaxcam.attention_rollout(tap, IMAGES, token=None, raw=True), arrived)
    assert jaxcam.grad_cam(tap, IMAGES).shape == (2, 8, 10)


def test_keras_full_grad(keras):
    """Completeness: the contributions of the image and of all biases sum to the score."""
    L = keras.layers
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(4, 3, name="conv", bias_initializer="normal"), L.BatchNormalization(), L.ReLU(), L.MaxPool2D()]
    model = keras.Sequential([*layers, L.Flatten(), L.Dense(3, bias_initializer="normal")])
    model(IMAGES)
    parts = jaxcam.full_grad(jaxcam.tap(model, None, "conv"), IMAGES, 1, raw=True)
    close(sum(each.sum((1, 2)) for each in parts), model(IMAGES)[:, 1])


def test_keras_further_inputs_of_a_call(keras):
    class Named(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.head = keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Dense(3)

        def call(self, x, known):
            return self.head(keras.ops.concatenate([keras.ops.mean(self.conv(x), (1, 2)), known], -1))

    class Listed(Named):
        def call(self, inputs):
            return super().call(*inputs)

    model = Named()
    expected = model(IMAGES, KNOWN)
    for context in (KNOWN, {"known": KNOWN}):
        close(jaxcam.tap(model, None, "conv", context=context)(IMAGES), expected)
    model = Listed()
    model([IMAGES, KNOWN])
    close(jaxcam.tap(model, None, "conv", context=KNOWN)(IMAGES), model([IMAGES, KNOWN]))


# Equinox


@pytest.fixture(scope="module")
def eqx():
    return pytest.importorskip("equinox")


def per_image(function):
    """A function of one image, channels first, for a batch with channels last."""
    return lambda images: jax.vmap(function)(jnp.moveaxis(images, -1, 1))


@pytest.fixture(scope="module")
def stateful(eqx):
    """Blocks with the state of a BatchNorm, Dropout, and a layer that is called twice; and its state."""

    class Block(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return jax.nn.relu(x), state

    class Net(eqx.Module):
        blocks: list
        again: eqx.nn.Conv2d
        drop: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, 4)
            self.blocks = [
                Block(eqx.nn.Conv2d(i, o, 3, key=k), eqx.nn.BatchNorm(o, "batch", mode=mode))
                for i, o, k, mode in ((3, 4, keys[0], "ema"), (4, 5, keys[1], "batch"))
            ]
            self.again, self.drop = eqx.nn.Conv2d(5, 5, 1, key=keys[2]), eqx.nn.Dropout(0.5)
            self.head = eqx.nn.Linear(5, 3, key=keys[3])

        def __call__(self, x, state, key=None):
            for block in self.blocks:
                x, state = block(x, state)
            x = self.again(jnp.tanh(self.again(x)))
            return self.head(self.drop(x, key=key).mean((1, 2))), state

    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(7), (4, 3, 8, 10))
    _, state = jax.vmap(net, (0, None, None), (0, None), axis_name="batch")(images, state, jax.random.key(0))
    return net, eqx.nn.inference_mode(net), state


def test_equinox_is_the_model_itself(stateful):
    training, net, state = stateful
    tap = jaxcam.tap(net, None, "blocks.0", state=state)
    expected = per_image(lambda x: net(x, state)[0])(IMAGES)
    close(tap(IMAGES), expected)
    close(jax.jit(lambda tap, images: tap(images))(tap, IMAGES), expected)
    close(tap.head(IMAGES)(tap.features(IMAGES)), expected)
    assert jaxcam.layers(training, IMAGES, state=state) == {
        "blocks.0.conv": (2, 6, 8, 4),
        "blocks.0.norm": (2, 6, 8, 4),
        "blocks.0": (2, 6, 8, 4),
        "blocks.1.conv": (2, 4, 6, 5),
        "blocks.1.norm": (2, 4, 6, 5),
        "blocks.1": (2, 4, 6, 5),
        "again": (2, 4, 6, 5),
        "drop": (2, 4, 6, 5),
        "head": (2, 3),
    }
    assert type(net.blocks[0]).__subclasses__() == [type(net.blocks[0]).__subclasses__()[0]]  # one, however many traces


def test_equinox_gradients_are_those_of_plain_jax(stateful):
    _, net, state = stateful

    def above(x):
        x, _ = net.blocks[1](x, state)
        return net.head(net.again(jnp.tanh(net.again(x))).mean((1, 2)))

    activations = per_image(lambda x: net.blocks[0](x, state)[0])(IMAGES)
    gradients = jax.grad(lambda a: total(jax.vmap(above)(a)))(activations)
    tap = jaxcam.tap(net, None, "blocks.0", state=state)
    _, (found,), (gradient,) = tap.gradients(IMAGES, total)
    close(found, jnp.moveaxis(activations, 1, -1))
    close(gradient, jnp.moveaxis(gradients, 1, -1))
    expected = jnp.einsum("nkhw,nk->nhw", activations, gradients.mean((2, 3)))
    close(jaxcam.grad_cam(tap, IMAGES, 1, raw=True), expected)
    close(jaxcam.saliency(tap, IMAGES, 1), jax.grad(lambda x: total(per_image(lambda x: net(x, state)[0])(x)))(IMAGES))


def test_equinox_several_layers_and_calls(stateful):
    _, net, state = stateful
    tap = jaxcam.tap(net, None, ("again[0]", "again[1]", "blocks.1.norm"), state=state)
    first, second, norm = tap.features(IMAGES)
    close(second, jnp.moveaxis(jax.vmap(net.again)(jnp.moveaxis(jnp.tanh(first), -1, 1)), 1, -1))
    close(first, jnp.moveaxis(jax.vmap(net.again)(jnp.moveaxis(jax.nn.relu(norm), -1, 1)), 1, -1))
    with pytest.raises(ValueError, match="Layer 'again' is called 2 times"):
        jaxcam.tap(net, None, "again", state=state).features(IMAGES)
    with pytest.raises(ValueError, match="Unknown layer 'block.0'. Did you mean 'blocks.0'"):
        jaxcam.tap(net, None, "block.0", state=state).features(IMAGES)


def test_equinox_does_not_compile_again(stateful):
    _, net, state = stateful
    assert count_traces(*(jaxcam.tap(net, None, "blocks.0", state=state) for _ in range(2))) == 1


def test_equinox_in_training_mode_is_refused(eqx, stateful):
    net, _, state = stateful
    with pytest.raises(ValueError, match=r"in training mode.*eqx.nn.inference_mode\(model\)"):
        jaxcam.tap(net, None, "blocks.0", state=state)
    with pytest.raises(TypeError, match="An Equinox model carries its own arrays"):
        jaxcam.tap(net, {}, "blocks.0")


def test_equinox_state_is_not_used_up(eqx):
    """A `State` may be used once; the tap's own stays good, and so does the user's."""

    class Counts(eqx.Module):
        index: eqx.nn.StateIndex
        head: eqx.nn.Linear

        def __call__(self, x, state):
            count = state.get(self.index)
            return self.head(x.mean((1, 2))) * count, state.set(self.index, count + 1)

    make = eqx.nn.make_with_state(Counts)
    net, state = make(eqx.nn.StateIndex(jnp.array(2.0)), eqx.nn.Linear(3, 3, key=jax.random.key(0)))
    tap = jaxcam.tap(net, None, "head", state=state)
    close(tap(IMAGES), tap(IMAGES))
    close(state.get(net.index), 2.0)


def test_equinox_full_grad(eqx, stateful):
    """Completeness: the contributions of the image and of all biases, those of the norms too, sum to the score."""

    class Net(eqx.Module):
        blocks: list
        head: eqx.nn.Linear

        def __call__(self, x, state):
            for block in self.blocks:
                x, state = block(x, state)
            return self.head(x.max((1, 2))), state

    _, net, state = stateful
    net = Net(net.blocks, net.head)
    parts = jaxcam.full_grad(jaxcam.tap(net, None, "blocks.0", state=state), IMAGES, 1, raw=True)
    close(sum(each.sum((1, 2)) for each in parts), per_image(lambda x: net(x, state)[0])(IMAGES)[:, 1])


def test_equinox_sequential_key_and_lambda(eqx):
    keys = jax.random.split(jax.random.key(0), 2)
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.5),
            eqx.nn.Lambda(lambda x: x.mean((1, 2))),
            eqx.nn.Linear(4, 3, key=keys[1]),
        ]
    )
    key = jax.random.key(5)
    tap = jaxcam.tap(net, None, "layers.1", key=key)
    close(tap(IMAGES), per_image(lambda x: net(x, key=key))(IMAGES))
    close(tap.features(IMAGES), jnp.moveaxis(per_image(lambda x: jax.nn.relu(net.layers[0](x)))(IMAGES), 1, -1))
    with pytest.raises(ValueError, match="in training mode"):
        jaxcam.tap(net, None, "layers.1")
    quiet = eqx.nn.inference_mode(net)
    close(jaxcam.tap(quiet, None, "layers.1")(IMAGES), per_image(quiet)(IMAGES))


@pytest.mark.parametrize("rank", [1, 3])
def test_equinox_signals_and_volumes(eqx, rank):
    keys, axes = jax.random.split(jax.random.key(0), 2), tuple(range(1, rank + 1))
    conv = {1: eqx.nn.Conv1d, 3: eqx.nn.Conv3d}[rank](3, 4, 3, key=keys[0])
    parts = [conv, eqx.nn.Lambda(lambda x: jax.nn.relu(x).mean(axes)), eqx.nn.Linear(4, 3, key=keys[1])]
    net, images = eqx.nn.Sequential(parts), jax.random.normal(jax.random.key(0), (2, *(5, 6, 7)[:rank], 3))
    tap = jaxcam.tap(net, None, "layers.0")
    close(tap(images), per_image(net)(images))
    features = jnp.moveaxis(per_image(conv)(images), 1, -1)
    close(tap.features(images), features)
    weights = parts[2].weight[1] * (features > 0).mean(tuple(range(1, rank + 1))) / features[0, ..., 0].size
    expected = jnp.einsum("n...k,nk->n...", features, weights)
    close(jaxcam.grad_cam(tap, images, 1, raw=True), expected)


@pytest.mark.parametrize("context", [KNOWN, (KNOWN,), {"known": KNOWN}], ids=["one", "tuple", "dict"])
def test_equinox_context_has_a_row_for_each_image(eqx, context):
    class Fused(eqx.Module):
        conv: eqx.nn.Conv2d
        head: eqx.nn.Linear

        def __call__(self, x, known):
            return self.head(jnp.concatenate([jnp.tanh(self.conv(x)).mean((1, 2)), known]))

    keys = jax.random.split(jax.random.key(0), 2)
    net = Fused(eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Linear(9, 3, key=keys[1]))
    tap = jaxcam.tap(net, None, "conv", context=context)
    close(tap(IMAGES), jax.vmap(net)(jnp.moveaxis(IMAGES, -1, 1), KNOWN))
    maps = jaxcam.smooth_grad(tap, IMAGES, 1, num_samples=3)
    alone = jaxcam.tap(net, None, "conv", context=jax.tree.map(lambda x: x[1:], context))
    close(jaxcam.smooth_grad(alone, IMAGES[1:], 1, num_samples=3), maps[1:])


@pytest.fixture(scope="module")
def transformer(eqx):
    class Block(eqx.Module):
        norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        mlp: eqx.nn.Linear

        def __call__(self, tokens):
            normed = jax.vmap(self.norm)(tokens)
            tokens = tokens + self.attention(normed, normed, normed)
            return tokens + jnp.tanh(jax.vmap(self.mlp)(tokens))

    class Transformer(eqx.Module):
        patches: eqx.nn.Conv2d
        blocks: list
        head: eqx.nn.Linear

        def __call__(self, x):
            tokens = self.patches(x).reshape(4, -1).T
            tokens = self.blocks[0](tokens)
            tokens = eqx.filter_checkpoint(self.blocks[1])(tokens)
            return self.head(self.blocks[2](tokens).mean(0))

    keys = jax.random.split(jax.random.key(0), 8)
    blocks = [
        Block(eqx.nn.LayerNorm(4), eqx.nn.MultiheadAttention(2, 4, key=a), eqx.nn.Linear(4, 4, key=b))
        for a, b in zip(keys[:3], keys[3:6], strict=True)
    ]
    return Transformer(eqx.nn.Conv2d(3, 4, 2, 2, key=keys[6]), blocks, eqx.nn.Linear(4, 3, key=keys[7]))


def test_equinox_transformer(eqx, transformer):
    net = transformer
    tap = jaxcam.tap(net, None, "blocks.0", reshape=jaxcam.tokens((4, 5), drop=0))
    close(tap(IMAGES), per_image(net)(IMAGES))
    tokens = per_image(lambda x: net.blocks[0](net.patches(x).reshape(4, -1).T))(IMAGES)
    close(tap.features(IMAGES), tokens)
    above = jax.vmap(lambda tokens: net.head(net.blocks[2](net.blocks[1](tokens)).mean(0)))
    gradients = jax.grad(lambda tokens: total(above(tokens)))(tokens)
    expected = jnp.einsum("ntk,nk->nt", tokens, gradients.mean(1)).reshape(2, 4, 5)
    close(jaxcam.grad_cam(tap, IMAGES, 1, raw=True), expected)
    assert jaxcam.tap(net, None, "patches").features(IMAGES).shape == (2, 4, 5, 4)


@pytest.mark.parametrize("layer", ["blocks.0.norm", "blocks.1"])
def test_equinox_inside_the_models_own_vmap_or_checkpoint(transformer, layer):
    with pytest.raises(ValueError, match=f"Layer '{layer}' lies inside a scan, vmap or checkpoint"):
        jaxcam.tap(transformer, None, layer).features(IMAGES)


# Functions


def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def features(variables, images):
    return jax.nn.relu(conv(images, variables["conv"]))


def head(variables, activations):
    return jnp.tanh(activations).mean((1, 2)) @ variables["dense"]


VARIABLES = {
    "conv": jax.random.normal(jax.random.key(2), (3, 3, 3, 4)),
    "dense": jax.random.normal(jax.random.key(3), (4, 5)),
}


def test_two_functions():
    tap = jaxcam.tap((features, head), VARIABLES)
    activations = features(VARIABLES, IMAGES)
    close(tap(IMAGES), head(VARIABLES, activations))
    close(tap.features(IMAGES), activations)
    close(tap.head(IMAGES)(2 * activations), head(VARIABLES, 2 * activations))
    gradients = jax.grad(lambda a: total(head(VARIABLES, a)))(activations)
    close(tap.gradients(IMAGES, total)[2][0], gradients)
    expected = jnp.einsum("nhwk,nk->nhw", activations, gradients.mean((1, 2)))
    close(jaxcam.grad_cam(tap, IMAGES, 1, raw=True), expected)
    assert jaxcam.layers((features, head), IMAGES, VARIABLES) == {"features": (2, 8, 10, 4)}
    assert count_traces(*(jaxcam.tap((features, head), VARIABLES, "features") for _ in range(2))) == 1
    with pytest.raises(ValueError, match="Unknown layer 'conv'"):
        jaxcam.tap((features, head), VARIABLES, "conv")


def test_context_and_arguments_go_to_both_functions():
    def below(variables, images, known, scale):
        return scale * features(variables, images) * known[:, :1, None, None]

    def above(variables, activations, known, scale):
        return head(variables, activations) + known

    tap = jaxcam.tap((below, above), VARIABLES, context=KNOWN, scale=2.0)
    close(tap(IMAGES), head(VARIABLES, 2 * features(VARIABLES, IMAGES) * KNOWN[:, :1, None, None]) + KNOWN)


def test_one_function_has_no_layer():
    def model(variables, images):
        return head(variables, features(variables, images))

    tap = jaxcam.tap(model, VARIABLES)
    close(tap(IMAGES), model(VARIABLES, IMAGES))
    close(jaxcam.saliency(tap, IMAGES, 1), jax.grad(lambda x: total(model(VARIABLES, x)))(IMAGES))
    assert jaxcam.layers(model, IMAGES, VARIABLES) == {}
    for method in (jaxcam.grad_cam, jaxcam.eigen_cam, jaxcam.score_cam):
        with pytest.raises(TypeError, match="needs a layer, and the tap is of one function, which has none"):
            method(tap, IMAGES)
    with pytest.raises(ValueError, match="needs a layer, and a tap of one function has none"):
        tap.head(IMAGES)
    with pytest.raises(ValueError, match="layer is 'conv', and one function has no layer"):
        jaxcam.tap(model, VARIABLES, "conv")
    with pytest.raises(ValueError, match="reads the biases of every layer, and a tap of functions does not show"):
        jaxcam.full_grad(jaxcam.tap((features, head), VARIABLES), IMAGES)


def test_haiku():
    hk = pytest.importorskip("haiku")
    below = hk.without_apply_rng(hk.transform(lambda x: jax.nn.relu(hk.Conv2D(4, 3, name="conv")(x))))
    above = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3, name="head")(jnp.tanh(x).mean((1, 2)))))
    activations = below.apply(params := below.init(jax.random.key(0), IMAGES), IMAGES)
    params = params | above.init(jax.random.key(1), activations)
    tap = jaxcam.tap((below.apply, above.apply), params)
    close(tap(IMAGES), above.apply(params, activations))
    close(tap.features(IMAGES), activations)
    gradients = jax.grad(lambda a: total(above.apply(params, a)))(activations)
    expected = jnp.einsum("nhwk,nk->nhw", activations, gradients.mean((1, 2)))
    close(jaxcam.grad_cam(tap, IMAGES, 1, raw=True), expected)
    with pytest.raises(TypeError, match=r"a pair of init and apply; pass its apply, jaxcam.tap\(model.apply"):
        jaxcam.tap(below, params)
    with pytest.raises(TypeError, match="it must be a flax.linen or flax.nnx module"):
        jaxcam.tap((below.apply, above.apply, 3), params)
