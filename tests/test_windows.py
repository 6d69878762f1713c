"""What a window changes is computed as if everything were, for less; whatever the model does on the way."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam._windows import covered, windowed
from jaxcam.models.resnet import BasicBlock, ResNet

SHAPE = (2, 40, 48, 3)
SIZE = (6, 5)
# In the corners, along the edges, at odd places inside.
STARTS = np.array([[0, 0], [34, 43], [0, 17], [13, 0], [11, 22], [20, 7], [34, 20], [7, 43]])


class Strided(nn.Module):
    """Large, strided, spread, grouped and 1x1 convolutions with every padding, and pooling of both kinds."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (7, 7), 2, padding=3)(x)) - 3
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        shortcut = nn.Conv(12, (1, 1), 2)(x)
        x = nn.Conv(12, (3, 3), 2, padding=((0, 1), (1, 0)))(nn.silu(nn.Conv(8, (3, 3), kernel_dilation=2)(x)))
        x = nn.relu(x + shortcut)
        x = nn.Conv(12, (2, 3), padding="VALID", feature_group_count=4)(nn.avg_pool(x, (2, 2), (1, 1), "SAME"))
        return nn.Dense(5)(x.mean((1, 2)))


class Dense(nn.Module):
    """Joined channels, pixels that are moved inwards, choices, and constants that differ from pixel to pixel."""

    @nn.compact
    def __call__(self, x):
        x = jnp.pad(x, ((0, 0), (1, 2), (2, 0), (0, 0)), constant_values=0.5)
        x = x + self.param("positions", nn.initializers.normal(), (1, *x.shape[1:3], 1))
        x = x * self.param("rows", nn.initializers.normal(), (1, x.shape[1], 1, 3))
        for _ in range(3):
            new = nn.Conv(4, (3, 3), padding="VALID" if x.shape[-1] > 8 else "SAME")(jnp.where(x > 0.1, x, 0.2 * x))
            x = jnp.concatenate([x, new], -1) if new.shape[1] == x.shape[1] else new
        return nn.Dense(5)(jnp.clip(x, -2, 2).mean((1, 2)))


class Normalised(nn.Module):
    """Normalisation and dense layers over channels, as in ConvNeXt; then a block that sees all pixels at once."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(8, (4, 4), 4, padding="VALID")(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(nn.Conv(8, (3, 3), feature_group_count=8)(x)))))
        x = nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x))
        gates = nn.sigmoid(nn.Dense(8)(x.mean((1, 2))))
        x = nn.Conv(8, (3, 3))(x * gates[:, None, None])
        x = x.reshape(len(x), -1, 8)
        x = nn.softmax(x @ x.mT) @ x
        return nn.Dense(5)(x.mean(1))


# And the share of a forward pass that windows of these sizes leave to be computed, at most.
MODELS = [
    (Strided(), 0.1),
    (Dense(), 0.01),
    (Normalised(), 0.7),
    (ResNet((1, 1), BasicBlock, num_classes=5, width=4, stem="imagenet"), 0.4),
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda each: type(each[0]).__name__)
def model(request):
    """A model none of whose biases is zero, so that what lies outside of the image is not what lies inside."""

    module, share = request.param

    @jax.jit
    def variables(key):
        leaves, structure = jax.tree.flatten(module.init(key, jnp.zeros(SHAPE)))
        keys = jax.random.split(key, len(leaves))
        leaves = [leaf + 0.1 * abs(jax.random.normal(key, leaf.shape)) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    return jax.jit(partial(module.apply, variables(jax.random.key(0)))), share


@pytest.fixture(scope="module")
def altered():
    """Images, and copies of which one window each was replaced."""
    images, other = jax.random.normal(jax.random.key(2), (2, *SHAPE))
    image, window = (each.ravel() for each in np.indices((2, len(STARTS))))
    mask = np.zeros((len(window), *SHAPE[1:3], 1), bool)
    for each, (row, column) in zip(mask, STARTS[window], strict=True):
        each[row : row + SIZE[0], column : column + SIZE[1]] = True
    return images, image, window, jnp.where(mask, other[image], images[image])


def test_changed_windows_give_what_the_whole_images_give_for_less(model, altered):
    (function, share), (images, *changes) = model, altered
    output = function(images)

    @jax.jit
    def run(*changes):
        return windowed(function, images, STARTS, SIZE)[1](*changes)

    local, once, whole = (
        each.lower(*given).compile() for each, given in ((run, changes), (function, [images]), (function, changes[-1:]))
    )
    result = local(*changes)
    np.testing.assert_allclose(result, whole(changes[-1]), rtol=1e-5, atol=1e-5)
    assert abs(result - output[changes[0]]).max(1).min() > 1e-4  # every window matters
    local, once, whole = (each.cost_analysis()["flops"] for each in (local, once, whole))
    assert local < once + share * whole


def test_windows_of_the_whole_image(model, altered):
    (function, _), (images, image, window, changed) = model, altered
    run = jax.jit(windowed(function, images, np.zeros((1, 2), int), SHAPE[1:3])[1])
    np.testing.assert_allclose(run(image, 0 * window, changed), function(changed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x.sum(1),
        lambda x: jnp.einsum("nhwc,hk->nwck", x, jnp.eye(6) + 1),
        lambda x: jnp.broadcast_to(x.sum(3)[:, :, None], x.shape),
        lambda x: jnp.concatenate([x, x], 1)[:, 3:9],
        lambda x: jnp.einsum("nhwc,k->nhwck", jnp.sum(x, ()), jnp.arange(3.0)),
    ],
    ids=["sum", "product", "broadcast", "joined", "nothing summed"],
)
def test_rows_and_columns_are_not_told_by_their_length(mixed):
    images, other = jax.random.normal(jax.random.key(0), (2, 1, 6, 6, 6))
    changed = images.at[:, 4:, 1:3].set(other[:, 4:, 1:3])
    weights = jax.random.normal(jax.random.key(1), jax.eval_shape(mixed, images).shape)

    def function(images):
        return (jnp.sin(mixed(images)) * weights).reshape(1, -1).sum(1)

    _, run = windowed(function, images, np.array([[4, 1]]), (2, 2))
    index = jnp.zeros(1, int)
    np.testing.assert_allclose(run(index, index, changed), function(changed), rtol=1e-4)


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, change: (2 * change,))


@pytest.mark.parametrize("own", [rounded, jax.lax.stop_gradient, nn.relu])
def test_derivatives_are_those_of_the_function(own, altered):
    images, image, window, changed = altered
    weights = jax.random.normal(jax.random.key(0), (3,))

    def function(images):
        return nn.avg_pool(own(4 * jnp.where(images > 0.3, 0, images)), (3, 3), (2, 2)).mean((1, 2))

    def of_windows(changed):
        return (jnp.sin(windowed(function, images, STARTS, SIZE)[1](image, window, changed)) * weights).sum()

    result = jax.jit(jax.grad(of_windows))(changed)
    expected = jax.jit(jax.grad(lambda changed: (jnp.sin(function(changed)) * weights).sum()))(changed)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "other",
    [lambda x, n: jnp.sin(x) if n > 2 else x, lambda x, n: x * (2.0 if n > 2 else 3.0)],
    ids=["steps", "numbers"],
)
def test_another_program_for_another_number_of_images(other, altered):
    images, image, window, changed = altered

    def function(images):
        return other(images, len(images)).mean((1, 2))

    _, run = windowed(function, images, STARTS, SIZE)
    np.testing.assert_allclose(run(image, window, changed), function(changed), rtol=1e-6)


def test_outputs_that_are_numbers_types_without_infinity_and_wide_indices(altered):
    images, image, window, changed = altered
    small = images.astype(jnp.float8_e4m3fn), changed.astype(jnp.float8_e4m3fn)

    def function(images):
        return nn.max_pool(images, (3, 3), (2, 2), "SAME").astype(jnp.float32).mean((1, 2)), 2.0

    result, number = windowed(function, small[0], STARTS, SIZE)[1](image, window, small[1])
    np.testing.assert_allclose(result, function(small[1])[0], rtol=1e-5)
    assert number == 2
    with jax.enable_x64(True):
        run = windowed(function, images, STARTS, SIZE)[1]
        result, _ = run(jnp.asarray(image, jnp.int32), jnp.asarray(window, jnp.int32), changed)
        np.testing.assert_allclose(result, function(changed)[0], rtol=1e-5)


@pytest.mark.parametrize("targets, chunk_size", [(None, 1), (None, 2), ((2, 0, 1), 2), ((2, 0, 1), 50)])
def test_occlusion_is_the_same_for_any_chunk(targets, chunk_size):
    def function(images):
        return (nn.avg_pool(images, (5, 5), (3, 3), "SAME") ** 2).mean((1, 2))

    images = jax.random.normal(jax.random.key(3), (3, *SHAPE[1:]))
    options = {"baseline": 1.0, "window": 16, "stride": 12}
    classes = np.asarray(function(images).argmax(-1)) if targets is None else np.array(targets)
    result = jaxcam.occlusion(function, images, targets and classes, chunk_size=chunk_size, **options)
    rows, columns = covered(40, 16, 12), covered(48, 16, 12)
    expected = np.zeros(images.shape[:3])
    for row in rows:
        for column in columns:
            mask = row[:, None] * column
            logits = function(jnp.where(mask[..., None] > 0, 1.0, images))
            drop = np.take_along_axis(np.asarray(function(images) - logits), classes[:, None], 1)
            expected += drop[:, :, None] * mask / (rows.sum(0)[:, None] * columns.sum(0))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
