"""Training a classifier on images that fit in memory: a state, one jitted step, one loop.

The module, the optimizer and the data are arguments; augmentation and normalisation happen inside the step, on raw
uint8 images that stay on the device. Everything random is derived from the seed and the step, so a run that was
interrupted and resumed from its Orbax checkpoint ends in the same weights as one that was not.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcam import _files
from jaxcam._engine import repeated
from jaxcam._progress import can_rewrite

DIGEST = _files.DIGEST  # in each checkpoint's folder; written last, so a checkpoint without it is not complete


class Normalization(NamedTuple):
    """Mean and standard deviation per channel, of images scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images):
        return (images.astype(jnp.float32) / 255 - jnp.asarray(self.mean)) / jnp.asarray(self.std)


class State(NamedTuple):
    """Everything that changes in training; a checkpoint is this and nothing else."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self):
        return {"params": self.params, "batch_stats": self.batch_stats}


def sgd(learning_rate, *, momentum: float | int = 0.9, nesterov: bool = True, weight_decay: float | int = 5e-4):
    """SGD with momentum and weight decay on every parameter, as `torch.optim.SGD` does it.

    `learning_rate` is a number or an optax schedule, such as `cosine(0.1, total_steps)`.

    Example:
      >>> optimizer = sgd(cosine(0.1, total_steps=1000))
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov))


def muon(
    learning_rate, *, momentum: float = 0.9, weight_decay: float = 0.0, rest: float = 0.015, num_iterations: int = 5
):
    """Muon for convolution kernels, and Adam at `rest` of the learning rate for all else.

    A kernel `[h, w, i, o]` is a matrix `[h w i, o]`: `W <- W - learning_rate (orthogonal(momentum) + weight_decay W)`,
    the orthogonal matrix that is nearest to the averaged gradients, by `num_iterations` of Newton and Schulz. Three are
    enough for narrow networks, whose steps they slow down.

    `learning_rate` is a number or an optax schedule, such as `cosine(0.2, total_steps)`.

    Reference: Jordan et al. 2024, Muon, https://kellerjordan.github.io/posts/muon/.

    Example:
      >>> optimizer = muon(cosine(0.2, total_steps=1000))
    """
    from optax import contrib

    def kernels(params):
        return jax.tree.map(lambda leaf: contrib.MuonDimensionNumbers((0, 1, 2), 3) if leaf.ndim == 4 else None, params)

    def of_the_rest(count):
        return rest * (learning_rate(count) if callable(learning_rate) else learning_rate)  # pyright: ignore[reportOperatorIssue]

    return contrib.muon(
        learning_rate,
        ns_steps=num_iterations,
        beta=momentum,
        weight_decay=weight_decay,
        weight_decay_mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim == 4, params),
        muon_weight_dimension_numbers=kernels,
        adam_learning_rate=of_the_rest,
    )


def cosine(peak: float, total_steps: int, warmup: float = 0.1) -> optax.Schedule:
    """Linear warm-up over the first tenth of the steps, then a half cosine down to zero."""
    warmup_steps = int(total_steps * warmup)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, max(total_steps, warmup_steps + 1))


def random_crop(key, images, padding: int = 4):
    """Each image shifted by up to `padding` pixels, black outside."""
    n, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (n, 2), 0, 2 * padding + 1)
    crop = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))
    return crop(padded, corners)


def alternating_flip(key, images, indices, epoch):
    """Images mirrored in every other epoch: those of a random half, by their indices, in the even ones.

    Two epochs in a row show both sides of each (Jordan 2024, arXiv:2404.00498).
    """
    first = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(key, index)))(indices)
    return jnp.where((first ^ (epoch % 2 == 1))[:, None, None, None], images[:, :, ::-1], images)


def progressive(start: int, end: int, num_epochs: int, step: int = 4) -> list[int]:
    """The side of the images in each epoch, from `start` to `end` by `step` pixels, for equally many epochs each.

    Small images cost less, and large ones need not be seen from the beginning (Howard 2018, Page 2018).

    Example:
      >>> progressive(20, 32, num_epochs=6)
      [20, 20, 24, 28, 28, 32]
    """
    sizes = [*range(start, end, step), end][-num_epochs:]
    return [sizes[epoch * len(sizes) // num_epochs] for epoch in range(num_epochs)]


def cross_entropy(logits, labels, smoothing: float = 0.0):
    """Cross-entropy `[n]` of labels `int[n]` or distributions `float[n, k]`, with label smoothing."""
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, smoothing))


def correct(logits, labels):
    """Whether the predicted class is the label or, for a distribution, one of its classes; `bool[n]`."""
    predicted = jnp.argmax(logits, axis=-1)
    if labels.ndim == 2:
        return jnp.take_along_axis(labels, predicted[:, None], axis=-1)[:, 0] > 0
    return predicted == labels


def init(module: nn.Module, optimizer, images, seed: int = 0) -> State:
    """A fresh state for `module`, whose input has the shape of `images [n, h, w, c]`."""
    example = jnp.zeros((1, *images.shape[1:]), jnp.float32)
    variables = _init(jax.random.key(seed), example, module=module)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return State(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


@partial(jax.jit, static_argnames="module")
def _init(key, example, *, module):
    return module.init(key, example, train=False)


@partial(
    repeated,
    static_argnames=("module", "optimizer", "normalize", "augment", "label_smoothing", "size"),
    donate_argnames=("state", "sums"),
)
def train_step(
    state: State,
    sums,
    images,
    labels,
    batch,
    epoch,
    key,
    *,
    module,
    optimizer,
    normalize,
    augment,
    label_smoothing=0.0,
    size=None,
):
    """One update on the images at the indices `batch`; `sums` gathers loss and correct predictions."""
    x, y = images[batch], labels[batch]
    flip_key, step_key = jax.random.split(key)
    step_key = jax.random.fold_in(step_key, state.step)
    if augment:
        x = random_crop(step_key, alternating_flip(flip_key, x, batch, epoch))
    x = normalize(x if size is None else _resized(x, size))
    dropout = {"dropout": jax.random.fold_in(step_key, 1)}

    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = module.apply(variables, x, train=True, rngs=dropout, mutable=["batch_stats"])
        loss = cross_entropy(logits, y, label_smoothing).mean()
        return loss, (logits, updates.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    sums = sums + jnp.array([loss * len(batch), jnp.sum(correct(logits, y))])
    return State(state.step + 1, params, batch_stats, opt_state), sums


def _resized(images, size: int):
    return jax.image.resize(images.astype(jnp.float32), (len(images), size, size, images.shape[-1]), "linear")


@partial(repeated, static_argnames=("module", "normalize"))
def _logits(variables, images, *, module, normalize):
    return module.apply(variables, normalize(images), train=False)


def predict(module, variables, images, *, normalize, batch_size: int = 500) -> np.ndarray:
    """Logits `float32[n, k]` of raw uint8 images, in batches; the last batch is padded, so one compilation serves."""
    outputs = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padded = np.concatenate([batch, np.zeros((batch_size - len(batch), *batch.shape[1:]), batch.dtype)])
        outputs.append(np.asarray(_logits(variables, padded, module=module, normalize=normalize))[: len(batch)])
    return np.concatenate(outputs)


def evaluate(
    module, variables, data, *, normalize, batch_size: int = 500, mirrored: bool = False
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of `variables` on `data = (images uint8[n, h, w, c], labels int[n])`.

    With `mirrored`, of the mean of the logits of each image and of its mirror image.
    """
    images, labels = np.asarray(data[0]), jnp.asarray(data[1])
    sides = (images, images[:, :, ::-1]) if mirrored else (images,)
    options = {"normalize": normalize, "batch_size": min(batch_size, len(images))}
    logits = sum(predict(module, variables, side, **options) for side in sides) / len(sides)
    return float(cross_entropy(logits, labels).mean()), float(np.mean(correct(logits, labels)))


def fit(
    module: nn.Module,
    train_data,
    test_data,
    *,
    optimizer: optax.GradientTransformation,
    num_epochs: int,
    normalize: Normalization,
    batch_size: int = 128,
    augment: bool = True,
    label_smoothing: float = 0.0,
    image_sizes: Sequence[int] | None = None,
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    optimizer_settings: Mapping | None = None,
    on_epoch: Callable[[dict, State], None] | None = None,
    progress: bool = True,
) -> tuple[State, list[dict]]:
    """Trains `module` and returns the final state and one record per epoch.

    Args:
      module: Flax Linen module, called as `module(images, train=...)`; dropout gets its random numbers.
      train_data, test_data: `(images uint8[n, h, w, c], labels)`; labels are `int[n]`, or `float[n, k]`, a distribution
        over the classes for each image, where several objects are in it.
      optimizer: an optax transformation, such as `sgd(cosine(0.1, total_steps))`.
      normalize: mean and standard deviation of the images.
      augment: random crop and alternating flip.
      label_smoothing: share of the uniform distribution in the training targets (Szegedy et al. 2016,
        arXiv:1512.00567).
      image_sizes: the side of the images in each epoch, to which they are resized, such as
        `progressive(20, 32, num_epochs)`; `None` leaves them as they are.
      checkpoint_dir: where to save after each epoch, and to resume from. Other data or settings than the saved run's
        are an error; so is an altered checkpoint.
      optimizer_settings: what the optimizer was made with, such as `{"learning_rate": 0.1}`, to be compared on resuming
        as well: an optax transformation cannot say it.
      on_epoch: called with each epoch's record and a copy of the state.

    Raises:
      ValueError: images that are not uint8, labels that are no class of the module's, a batch larger than the data, or
        a checkpoint that belongs to other settings, was altered or has more epochs already.

    Example:
      >>> state, history = fit(module, train, test, optimizer=sgd(0.1), num_epochs=1, normalize=cifar)  # doctest: +SKIP
    """
    _check_data(module, "train_data", train_data)
    _check_data(module, "test_data", test_data)
    images, labels = jnp.asarray(train_data[0]), jnp.asarray(train_data[1])
    if image_sizes is not None and len(image_sizes) < num_epochs:
        raise ValueError(f"image_sizes has {len(image_sizes)} sizes for {num_epochs} epochs; give one for each.")
    if batch_size > len(images):
        raise ValueError(f"batch_size is {batch_size}, but there are only {len(images)} training images.")
    settings = {
        "module": repr(module),
        "batch_size": batch_size,
        "augment": augment,
        "label_smoothing": label_smoothing,
        "image_sizes": image_sizes and list(image_sizes),
        "seed": seed,
        "normalize": repr(normalize),
        "train_data": _hash(train_data),
        "optimizer_settings": dict(optimizer_settings or {}),
    }
    state, history = _resumed(init(module, optimizer, images, seed), settings, checkpoint_dir, num_epochs)
    order_key, augment_key = jax.random.split(jax.random.key(seed))
    options = {"normalize": normalize, "augment": augment, "label_smoothing": label_smoothing}
    step = partial(train_step, key=augment_key, module=module, optimizer=optimizer, **options)
    with _Progress(num_epochs, len(images) // batch_size, enabled=progress) as bar:
        for epoch in range(len(history), num_epochs):
            batches = _batches(jax.random.fold_in(order_key, epoch), len(images), batch_size)
            one = partial(step, epoch=epoch, size=image_sizes and image_sizes[epoch])
            state, record = _epoch(one, state, images, labels, batches, partial(bar.update, epoch))
            test_loss, test_accuracy = evaluate(module, state.variables, test_data, normalize=normalize)
            history.append({"epoch": epoch + 1, **record, "test_loss": test_loss, "test_accuracy": test_accuracy})
            bar.epoch(history[-1])
            if on_epoch is not None:
                on_epoch(history[-1], jax.tree.map(jnp.copy, state))  # the next step overwrites its own
            if checkpoint_dir is not None:  # last: an epoch that was interrupted here is done again
                save(checkpoint_dir, state, history, settings)
    return state, history


def _resumed(state: State, settings: dict, checkpoint_dir, num_epochs: int) -> tuple[State, list[dict]]:
    """The fresh state and an empty history, or those of the checkpoint."""
    history: list[dict] = []
    if checkpoint_dir is not None:
        state, history = restore(checkpoint_dir, state, settings) or (state, history)
    if len(history) > num_epochs:
        raise ValueError(
            f"The checkpoint in {checkpoint_dir} has {len(history)} epochs already, and num_epochs is {num_epochs}. "
            "Choose another checkpoint folder, or delete this one to start again."
        )
    return state, history


def _batches(key, count: int, batch_size: int) -> jax.Array:
    """The indices of each batch `[steps, batch_size]`, in an order that is drawn; what fills no batch is left out."""
    steps = count // batch_size
    return jax.random.permutation(key, count)[: steps * batch_size].reshape(steps, batch_size)


def _epoch(step, state: State, images, labels, batches, shown: Callable) -> tuple[State, dict]:
    """One pass over the batches: the new state, and what the record says of it."""
    start, sums = time.perf_counter(), jnp.zeros(2)
    loss = accuracy = 0.0
    for index in range(len(batches)):
        state, sums = step(state, sums, images, labels, batches[index])
        if index % 10 == 9 or index == len(batches) - 1:  # reading the sums waits for the device
            seen = (index + 1) * batches.shape[1]
            loss, accuracy = map(float, np.asarray(sums) / seen)
            shown(index + 1, loss, accuracy, seen / (time.perf_counter() - start))
    return state, {"loss": loss, "accuracy": accuracy, "seconds": time.perf_counter() - start}


def _check_data(module, name: str, data) -> None:
    """Raw images, and labels that are among the module's classes: one beyond them would train for nothing."""
    images, labels = np.asarray(data[0]), np.asarray(data[1])
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels):
        raise ValueError(
            f"{name} is images {images.dtype} {images.shape} and labels {labels.shape}; "
            "they must be uint8 [n, h, w, c] with one label each. Normalisation happens inside the step."
        )
    example = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    count = jax.eval_shape(partial(_init_and_run, module), jax.random.key(0), example).shape[-1]
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= count):
        given = f"labels from {labels.min()} to {labels.max()}"
        raise ValueError(f"{name} has {given}, and the module has {count} classes, 0 to {count - 1}.")
    if labels.ndim == 2 and labels.shape[1] != count:
        raise ValueError(f"{name} has distributions over {labels.shape[1]} classes, and the module has {count}.")


def _init_and_run(module, key, example):
    return module.init_with_output(key, example, train=False)[0]


def _named_leaves(state: State) -> dict[str, np.ndarray]:
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in paths}


def _hash(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _checkpointer(directory):
    from orbax.checkpoint import v1 as ocp

    latest = ocp.training.preservation_policies.LatestN(2)
    return ocp.training.Checkpointer(str(Path(directory).absolute()), preservation_policy=latest)  # pyright: ignore[reportArgumentType]


def save(directory, state: State, history: list[dict], settings: dict) -> None:
    """Writes the state after an epoch; the two latest are kept. The digest notices bits that flip on the disk."""
    metadata = {"history": json.dumps(history), "settings": json.dumps(settings)}
    with _checkpointer(directory) as checkpointer:
        checkpointer.save(int(state.step), _named_leaves(state), custom_metadata=metadata, overwrite=True)
    folder = Path(directory) / str(int(state.step))
    _files.write(folder / DIGEST, _files.digest(folder))


def restore(directory, like: State, settings: dict) -> tuple[State, list[dict]] | None:
    """The latest complete checkpoint below `directory` as `(state, history)`, or `None` where there is none."""
    complete = [file.parent for file in Path(directory).glob(f"*/{DIGEST}") if file.parent.name.isdigit()]
    if not complete:
        return None
    folder = max(complete, key=lambda folder: int(folder.name))
    if (
        _files.digest(folder) != (folder / DIGEST).read_text()
    ):  # checked first: Orbax reports a damaged file in many voices
        raise ValueError(f"The checkpoint {folder} was altered since it was written; delete that folder.")
    with _checkpointer(directory) as checkpointer:
        metadata = checkpointer.metadata(int(folder.name)).custom_metadata
        saved = json.loads(metadata["settings"])
        if saved != settings:
            differing = sorted(name for name in saved | settings if saved.get(name) != settings.get(name))
            raise ValueError(
                f"The checkpoint in {directory} was made with other settings ({', '.join(differing)}). "
                "Choose another checkpoint folder, or delete this one to start again."
            )
        leaves = checkpointer.load(int(folder.name))
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    if set(names) != set(leaves):
        raise ValueError(
            f"The checkpoint in {directory} was made with another optimizer. "
            "Choose another checkpoint folder, or delete this one to start again."
        )
    state = jax.tree_util.tree_unflatten(structure, [jnp.asarray(np.asarray(leaves[name])) for name in names])
    return state, json.loads(metadata["history"])


class _Progress:
    """A live bar with loss, accuracy and images per second, and one line per finished epoch."""

    def __init__(self, num_epochs: int, steps: int, enabled: bool):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self.num_epochs, self.steps, self.enabled = num_epochs, steps, enabled
        self.progress = Progress(*columns, disable=not (enabled and can_rewrite()))
        self.task = self.progress.add_task("epoch", total=steps, numbers="")

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *exception):
        self.progress.stop()

    def update(self, epoch, done, loss, accuracy, rate):
        numbers = f"loss {loss:.3f}  accuracy {accuracy:.1%}  {rate:,.0f} images/s"
        self.progress.update(
            self.task, completed=done, description=f"epoch {epoch + 1}/{self.num_epochs}", numbers=numbers
        )

    def epoch(self, record):
        if self.enabled:
            self.progress.console.print(
                f"epoch {record['epoch']:3d}  loss {record['loss']:.3f}  accuracy {record['accuracy']:.2%}  "
                f"test loss {record['test_loss']:.3f}  test accuracy {record['test_accuracy']:.2%}  "
                f"{record['seconds']:.0f} s"
            )
