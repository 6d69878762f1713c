"""Training: it learns, it resumes exactly, it refuses what does not belong together."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny_resnet

from jaxcam import train

NORMALIZE = train.Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def data():
    """Two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(0, 120, (64, 16, 16, 3)) + 120 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def run(data):
    """One setting for all tests, so that one compilation serves."""
    module, optimizer = tiny_resnet(num_classes=2), train.sgd(train.cosine(0.05, 16))

    def run(**options):
        options = {"num_epochs": 4, "batch_size": 16, "progress": False} | options
        return train.fit(module, data, data, optimizer=optimizer, normalize=NORMALIZE, **options)

    return run


@pytest.fixture(scope="module")
def finished(run):
    return run()


def test_it_learns(finished):
    state, history = finished
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["test_accuracy"] > 0.95
    assert int(state.step) == 16


def test_resuming_ends_in_the_same_weights(run, finished, tmp_path):
    run(num_epochs=2, checkpoint_dir=tmp_path / "c")
    seen = []
    state, history = run(checkpoint_dir=tmp_path / "c", on_epoch=lambda record, state: seen.append(record["epoch"]))
    assert seen == [3, 4]
    jax.tree.map(np.testing.assert_array_equal, state, finished[0])
    assert [record["loss"] for record in history] == [record["loss"] for record in finished[1]]
    again, _ = run(checkpoint_dir=tmp_path / "c", on_epoch=lambda record, state: seen.append("more"))
    assert seen == [3, 4]
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_other_settings_do_not_resume(run, tmp_path):
    run(num_epochs=1, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="made with other settings \\(seed\\)"):
        run(checkpoint_dir=tmp_path, seed=1)
    with pytest.raises(ValueError, match="made with other settings \\(optimizer_settings\\)"):
        run(checkpoint_dir=tmp_path, optimizer_settings={"learning_rate": 1e-4})


def test_other_data_do_not_resume(data, run, tmp_path):
    run(num_epochs=1, checkpoint_dir=tmp_path)
    images, labels = data
    with pytest.raises(ValueError, match="made with other settings \\(normalize, train_data\\)"):
        train.fit(
            tiny_resnet(num_classes=2),
            (images, labels[::-1]),
            data,
            optimizer=train.sgd(0.05),
            num_epochs=4,
            batch_size=16,
            normalize=train.Normalization((0.5,) * 3, (0.5,) * 3),
            checkpoint_dir=tmp_path,
        )


def test_a_run_does_not_go_back(run, tmp_path):
    run(num_epochs=2, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="has 2 epochs already, and num_epochs is 1"):
        run(num_epochs=1, checkpoint_dir=tmp_path)


def flip_a_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [flip_a_bit, lambda content: content[: len(content) // 2]], ids=["bit", "half"])
def test_an_altered_checkpoint_is_noticed(run, tmp_path, damage):
    run(num_epochs=1, checkpoint_dir=tmp_path)
    largest = max(tmp_path.rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(damage(largest.read_bytes()))
    with pytest.raises(ValueError, match="was altered since it was written"):
        run(checkpoint_dir=tmp_path)


def test_an_incomplete_checkpoint_does_not_count(run, tmp_path):
    """A run that was killed while it wrote goes on from the checkpoint before."""
    run(num_epochs=2, checkpoint_dir=tmp_path)
    (tmp_path / "8" / train.DIGEST).unlink()
    seen = []
    run(num_epochs=2, checkpoint_dir=tmp_path, on_epoch=lambda record, state: seen.append(record["epoch"]))
    assert seen == [2]


def test_batch_larger_than_the_data(run):
    with pytest.raises(ValueError, match="batch_size is 65, but there are only 64 training images"):
        run(batch_size=65)


def test_sgd_is_torchs():
    """Two steps of Nesterov momentum with weight decay, by hand."""
    optimizer = train.sgd(0.1, momentum=0.9, weight_decay=0.5)
    weight, velocity, state = jnp.array(1.0), 0.0, optimizer.init(jnp.array(1.0))
    expected = 1.0
    for gradient in (2.0, -1.0):
        updates, state = optimizer.update(jnp.array(gradient), state, weight)
        weight = optax.apply_updates(weight, updates)
        total = gradient + 0.5 * expected
        velocity = 0.9 * velocity + total
        expected -= 0.1 * (total + 0.9 * velocity)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_muon_turns_kernels_alone():
    """A kernel's step has singular values of about the rate, whatever its gradient's; all else is Adam's."""
    params = {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}
    gradients = {"kernel": 1e-3 * jax.random.normal(jax.random.key(0), (3, 3, 4, 8)), "bias": jnp.full(8, 5.0)}
    optimizer = train.muon(lambda step: 0.2)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    values = jnp.linalg.svd(updates["kernel"].reshape(36, 8), compute_uv=False) / 0.2
    assert values.min() > 0.5 and values.max() < 1.5
    assert (updates["bias"] == updates["bias"][0]).all() and -0.006 < updates["bias"][0] < -0.002
    fewer = train.muon(0.2, num_iterations=1)  # farther from orthogonal
    updates, _ = fewer.update(gradients, fewer.init(params), params)
    assert jnp.linalg.svd(updates["kernel"].reshape(36, 8), compute_uv=False).min() < 0.9 * 0.2 * values.min()

    def step(params, **options):
        optimizer = train.muon(0.2, **options)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    ones = jax.tree.map(jnp.ones_like, params)
    decayed = jax.tree.map(jnp.subtract, step(ones, weight_decay=0.1), step(ones))
    np.testing.assert_allclose(decayed["kernel"], -0.2 * 0.1, rtol=1e-3)  # times the rate, of the kernels alone
    np.testing.assert_array_equal(decayed["bias"], 0)


def test_cosine_rises_and_falls():
    schedule = train.cosine(0.4, 100)
    assert float(schedule(0)) == 0 and float(schedule(100)) == pytest.approx(0, abs=1e-6)
    assert float(schedule(10)) == pytest.approx(0.4) and float(schedule(55)) == pytest.approx(0.2, rel=1e-5)


def test_random_crop():
    image = jnp.arange(1, 65, dtype=jnp.uint8).reshape(1, 8, 8, 1)
    padded = jnp.pad(image[0, ..., 0], 4)
    allowed = {np.asarray(padded[i : i + 8, j : j + 8]).tobytes() for i in range(9) for j in range(9)}
    batch = train.random_crop(jax.random.key(0), jnp.repeat(image, 200, axis=0))
    found = {np.asarray(each[..., 0]).tobytes() for each in batch}
    assert batch.dtype == jnp.uint8 and found <= allowed and len(found) > 60


def test_two_epochs_in_a_row_show_both_sides_of_each_image():
    """Whatever batch an image is in: what counts is its index."""
    images = jnp.tile(jnp.arange(4, dtype=jnp.uint8)[:, None], (64, 1, 1, 1))
    images = images.at[:, :, 0].set(9)
    order = jnp.asarray(np.random.default_rng(0).permutation(64))

    def mirrored(epoch):
        shown = train.alternating_flip(jax.random.key(0), images[order], order, epoch)
        return np.asarray(shown[:, 0, 3, 0] == 9)[np.argsort(order)]

    assert 0.3 < mirrored(0).mean() < 0.7
    np.testing.assert_array_equal(mirrored(1), ~mirrored(0))
    np.testing.assert_array_equal(mirrored(2), mirrored(0))


def test_small_images_come_first(run, tmp_path):
    assert train.progressive(20, 32, 6) == [20, 20, 24, 28, 28, 32] and train.progressive(20, 32, 2) == [28, 32]
    with pytest.raises(ValueError, match="image_sizes has 2 sizes for 4 epochs; give one for each"):
        run(image_sizes=[8, 16])
    sizes = [8, 8, 16, 16]
    state, history = run(image_sizes=sizes, checkpoint_dir=tmp_path)
    assert history[-1]["test_accuracy"] > 0.95
    with pytest.raises(ValueError, match="other settings \\(image_sizes\\)"):
        run(image_sizes=[16, 16, 16, 16], checkpoint_dir=tmp_path)


def test_predict_pads_the_last_batch(finished, data):
    module = tiny_resnet(num_classes=2)
    whole = jax.jit(module.apply)(finished[0].variables, NORMALIZE(jnp.asarray(data[0])))
    logits = train.predict(module, finished[0].variables, data[0], normalize=NORMALIZE, batch_size=24)
    np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-5)
    _, accuracy = train.evaluate(module, finished[0].variables, data, normalize=NORMALIZE, batch_size=24)
    assert accuracy == np.mean(np.argmax(whole, -1) == data[1])


def test_progress_shows_loss_accuracy_and_speed(run, capsys):
    run(num_epochs=1, progress=True)
    printed = capsys.readouterr().out
    assert "loss" in printed and "test accuracy" in printed and "images/s" in printed


def test_distributions_as_labels():
    logits = jnp.array([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    labels = jnp.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    log_softmax = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(train.cross_entropy(logits, labels), -(labels * log_softmax).sum(-1), rtol=1e-6)
    assert train.correct(logits, labels).tolist() == [True, False]
    assert train.correct(logits, jnp.array([2, 1])).tolist() == [True, False]


def test_label_smoothing_mixes_in_the_uniform_distribution():
    logits, label = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([2])
    log_softmax = jax.nn.log_softmax(logits)[0]
    expected = -(0.7 * log_softmax[2] + 0.1 * log_softmax.sum())
    np.testing.assert_allclose(train.cross_entropy(logits, label, 0.3)[0], expected, rtol=1e-6)


def test_the_mirror_image_has_half_a_say(data):
    class Left(nn.Module):
        """Sees the left half of the image alone."""

        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2)(x[:, :, : x.shape[2] // 2].mean((1, 2)))

    module = Left()
    variables = {**module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))}
    options = {"normalize": NORMALIZE, "batch_size": 64}
    sides = (data[0], data[0][:, :, ::-1])
    logits = sum(train.predict(module, variables, images, **options) for images in sides) / 2
    loss, accuracy = train.evaluate(module, variables, data, mirrored=True, **options)
    assert loss == pytest.approx(float(train.cross_entropy(logits, jnp.asarray(data[1])).mean()), rel=1e-5)
    assert accuracy == np.mean(logits.argmax(-1) == data[1])
    assert train.evaluate(module, variables, data, **options)[0] != pytest.approx(loss, rel=1e-4)


class Dropped(nn.Module):
    """Asks for `train`, without a default, and for random numbers."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x.mean((1, 2)))))
        return nn.Dense(2)(x)


def test_a_module_with_dropout(data):
    kept = []
    options = {"num_epochs": 2, "batch_size": 16, "normalize": NORMALIZE, "progress": False}
    options |= {"on_epoch": lambda record, state: kept.append(state)}
    state, _ = train.fit(Dropped(), data, data, optimizer=train.sgd(0.1), **options)
    again, _ = train.fit(Dropped(), data, data, optimizer=train.sgd(0.1), **options)
    jax.tree.map(np.testing.assert_array_equal, state.params, again.params)
    jax.tree.map(np.testing.assert_array_equal, state.params, kept[-1].params)
    loss, _ = train.evaluate(Dropped(), kept[0].variables, data, normalize=NORMALIZE)  # of an epoch that is over
    assert np.isfinite(loss)


def test_wrong_data(run, data):
    images, labels = data
    wrong = {
        r"train_data has labels from 5 to 6, and the module has 2 classes, 0 to 1": (images, labels + 5),
        r"they must be uint8 \[n, h, w, c\]": (images / np.float32(255), labels),
        r"distributions over 3 classes, and the module has 2": (images, np.full((64, 3), 1 / 3, np.float32)),
    }
    for message, train_data in wrong.items():
        with pytest.raises(ValueError, match=message):
            train.fit(
                tiny_resnet(num_classes=2),
                train_data,
                data,
                optimizer=train.sgd(0.1),
                num_epochs=1,
                normalize=NORMALIZE,
            )


def test_another_optimizer_does_not_resume(data, tmp_path):
    options = {"num_epochs": 1, "batch_size": 64, "normalize": NORMALIZE, "checkpoint_dir": tmp_path, "progress": False}
    train.fit(Dropped(), data, data, optimizer=train.sgd(0.1), **options)
    with pytest.raises(ValueError, match="was made with another optimizer"):
        train.fit(Dropped(), data, data, optimizer=optax.adam(1e-3), **options)
