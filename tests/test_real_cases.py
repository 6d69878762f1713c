"""Outputs that are no logits, as people have them: segmentation, detection, an image beside a text."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcam
from jaxcam import score
from jaxcam._engine import scan

SIDE, CELL = 32, 4


def scenes(key, count):
    """A bright rectangle and a dark one on grey noise: images, `boxes [count, 2, 4]` of the bright and the dark one."""
    keys = jax.random.split(key, 3)
    size = jax.random.randint(keys[0], (count, 2, 2), 7, 12)
    corner = jax.random.uniform(keys[1], (count, 2, 2)) * jnp.array([SIDE, SIDE / 2]) - size * jnp.array([1.0, 1.0])
    low = jnp.array([[0, 0], [0, SIDE / 2]])  # rows and columns: one on the left, one on the right
    corner = jnp.floor(jnp.clip(corner + low, low, jnp.array([SIDE, SIDE / 2]) + low - size))
    places = jnp.arange(SIDE) + 0.5
    inside = (places >= corner[..., None]) & (places < (corner + size)[..., None])  # [count, 2, axis, SIDE]
    masks = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]
    flip = jax.random.bernoulli(keys[2], 0.5, (count,))
    masks = jnp.where(flip[:, None, None, None], masks[:, ::-1], masks)
    corner, size = (jnp.where(flip[:, None, None], each[:, ::-1], each) for each in (corner, size))
    shade = jnp.where(masks[:, 0], 1.5, 0.0) - jnp.where(masks[:, 1], 1.5, 0.0)
    noise = 0.2 * jax.random.normal(keys[2], (count, SIDE, SIDE, 1))
    boxes = jnp.stack([corner[..., 1], corner[..., 0], (corner + size)[..., 1], (corner + size)[..., 0]], -1)
    return shade[..., None] + noise, boxes, masks


class Detector(nn.Module):
    """An anchor-free detector (as FCOS): each cell of 4 x 4 pixels says how far the edges of its object are."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), 2, name="conv1")(x))
        x = nn.relu(nn.Conv(32, (3, 3), 2, name="conv2")(x))
        x = nn.relu(nn.Conv(32, (3, 3), name="conv3")(x))
        x = nn.Conv(7, (1, 1), name="head")(x)
        centre = (jnp.arange(SIDE // CELL) + 0.5) * CELL
        centres = jnp.stack(jnp.meshgrid(centre, centre), -1).reshape(-1, 2)
        x = x.reshape(len(x), -1, 7)
        distance = jnp.exp(jnp.clip(x[..., :4], -4, 4))
        boxes = jnp.concatenate([centres - distance[..., :2], centres + distance[..., 2:]], -1)
        return {"boxes": boxes, "classes": x[..., 4:6], "objectness": x[..., 6]}


def detector_loss(output, boxes):
    """Distances where a cell's centre lies in an object, its class, and whether it does."""
    centre = (jnp.arange(SIDE // CELL) + 0.5) * CELL
    centres = jnp.stack(jnp.meshgrid(centre, centre), -1).reshape(-1, 2)
    inside = ((centres >= boxes[:, :, None, :2]) & (centres <= boxes[:, :, None, 2:])).all(-1)  # [n, object, cell]
    there, kind = inside.any(1), inside.argmax(1)
    own = jnp.take_along_axis(boxes, kind[..., None], 1)
    off = jnp.where(there, jnp.abs(output["boxes"] - own).mean(-1), 0).sum() / there.sum()
    wrong = optax.softmax_cross_entropy_with_integer_labels(output["classes"], kind)
    lost = optax.sigmoid_binary_cross_entropy(output["objectness"], there)
    return 0.3 * off + jnp.where(there, wrong, 0).sum() / there.sum() + lost.mean()


def trained(module, loss, draw, num_steps, rate=5e-3):
    variables, optimizer = module.init(jax.random.key(0), draw(jax.random.key(0), 1)[0]), optax.adam(rate)

    def step(carry, key):
        variables, state = carry
        images, *rest = draw(key, 16)
        value, gradients = jax.value_and_grad(lambda each: loss(module.apply(each, images), *rest))(variables)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(variables, updates), state), value

    run = jax.jit(lambda carry, keys: scan(step, carry, keys))  # convolutions in the forms that are fast in a loop
    (variables, _), losses = run((variables, optimizer.init(variables)), jax.random.split(jax.random.key(1), num_steps))
    assert losses[-10:].mean() < 0.5 * losses[:10].mean()
    return variables


def read(output):
    return output["boxes"], jax.nn.softmax(output["classes"]), jax.nn.sigmoid(output["objectness"])


def test_a_detector_explains_each_of_its_boxes():
    """D-RISE and the gradient: what finds the box of each image is that image's own, as plain JAX has it."""
    variables = trained(Detector(), detector_loss, lambda key, n: scenes(key, n)[:2], 250)
    images, boxes, _ = scenes(jax.random.key(9), 4)
    model = jaxcam.tap(Detector(), variables, "conv2")
    explained = score.box(boxes[:, 0], 0, read=read)
    assert float(explained(model(images), jnp.zeros(4, jnp.int32)).min()) > 0.3  # it does find them

    def found(image, box):
        return score.box(box, 0, read=read)(Detector().apply(variables, image[None]), jnp.zeros(1, jnp.int32))[0]

    expected = jax.vmap(jax.grad(found))(images, boxes[:, 0])
    saliency = jaxcam.saliency(model, images, 0, score=explained)
    np.testing.assert_allclose(saliency, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    together = jaxcam.rise(model, images, 0, score=explained, num_samples=20, cells=8)
    for index in range(4):
        own = score.box(boxes[index, 0], 0, read=read)
        alone = jaxcam.rise(model, images[index : index + 1], 0, score=own, num_samples=20, cells=8)
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)


class Segmenter(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), name="conv1")(x))
        x = nn.relu(nn.Conv(16, (3, 3), name="conv2")(x))
        return nn.Conv(3, (1, 1), name="head")(x), {"features": x}


def segmentation_loss(output, masks):
    labels = jnp.where(masks[:, 0], 1, jnp.where(masks[:, 1], 2, 0))
    return optax.softmax_cross_entropy_with_integer_labels(output[0], labels).mean()


def test_a_segmentation_network_explains_a_region_of_each_image():
    draw = lambda key, n: (lambda images, boxes, masks: (images, masks))(*scenes(key, n))  # noqa: E731
    variables = trained(Segmenter(), segmentation_loss, draw, 60)
    images, _, masks = scenes(jax.random.key(9), 3)
    model = jaxcam.tap(Segmenter(), variables, "conv2", output=0)
    predicted = model(images).argmax(-1)
    assert float((predicted == jnp.where(masks[:, 0], 1, jnp.where(masks[:, 1], 2, 0))).mean()) > 0.9
    regions = score.pixels(score.Rows(masks[:, 0].astype(jnp.float32)))  # another region for each image
    for method in (jaxcam.grad_cam, jaxcam.saliency, jaxcam.integrated_gradients, jaxcam.layer_cam):
        maps = method(model, images, 1, score=regions)
        heatmaps = maps if maps.ndim == 3 else jaxcam.heatmap(maps)
        assert float(jaxcam.metrics.energy_pointing_game(heatmaps, masks[:, 0]).min()) > 0.5, method.__name__
        alone = method(model, images[:1], 1, score=score.pixels(masks[0, 0]))
        np.testing.assert_allclose(maps[:1], alone, atol=1e-5 * float(jnp.abs(maps).max()))


class TwoTowers(nn.Module):
    """An image and a text (word numbers) in one space of embeddings."""

    @nn.compact
    def __call__(self, images, words):
        x = nn.relu(nn.Conv(16, (3, 3), 2, name="conv1")(images))
        x = nn.relu(nn.Conv(16, (3, 3), name="conv2")(x)).max((1, 2))
        text = nn.Embed(4, 16, name="words")(words).mean(1)
        return {"image": nn.Dense(8, name="image")(x), "text": nn.Dense(8, name="text")(text)}


BRIGHT, DARK = jnp.array([0, 1]), jnp.array([0, 2])  # "the bright one", "the dark one"


def pairs(key, count):
    """One of the two rectangles, and the words for it."""
    images, _, masks = scenes(key, count)
    kind = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, (count,)).astype(jnp.int32)
    other = jnp.take_along_axis(masks, (1 - kind)[:, None, None, None], 1)[:, 0]
    return jnp.where(other[..., None], 0, images), jnp.stack([BRIGHT, DARK])[kind]


def similarity(output, targets):
    """Of each image to its own text."""
    return score.cosine_similarity(score.Rows(output["text"]))(output["image"], targets)


def test_an_image_text_model_explains_the_similarity_to_a_text():
    """The text goes in as context: its row follows the image into every chunk."""
    module = TwoTowers()

    class Trained(nn.Module):  # images and words come as one
        @nn.compact
        def __call__(self, batch):
            return module.copy(name="towers")(*batch)

    def loss(output, other):
        right = similarity(output, None)
        wrong = similarity({**output, "text": output["text"][::-1]}, None)
        same = (other == other[::-1]).all(-1)
        return jnp.where(same, 0, jax.nn.relu(wrong - right + 0.5)).mean()

    def draw(key, count):
        images, words = pairs(key, count)
        return (images, words), words

    variables = trained(Trained(), loss, draw, 150)
    variables = {"params": variables["params"]["towers"]}
    images = scenes(jax.random.key(9), 4)[0]
    both = jnp.stack([BRIGHT, DARK, BRIGHT, DARK])  # another text for each image
    model = jaxcam.tap(TwoTowers(), variables, "conv2", context={"words": both})

    def similar(image, words):
        return similarity(TwoTowers().apply(variables, image[None], words[None]), None)[0]

    expected = jax.vmap(jax.grad(similar))(images, both)
    saliency = jaxcam.saliency(model, images, 0, score=similarity)
    np.testing.assert_allclose(saliency, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    together = jaxcam.score_cam(model, images, 0, score=similarity, chunk_size=8)
    for index in range(4):
        own = jaxcam.tap(TwoTowers(), variables, "conv2", context={"words": both[index : index + 1]})
        alone = jaxcam.score_cam(own, images[index : index + 1], 0, score=similarity)
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)
