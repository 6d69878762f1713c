"""Trains the CIFAR-10 model that ships in the package: a ResNet-18 with the CIFAR stem.

    python -m experiments.train_cifar10 --data-dir DIR

One cosine cycle, then some epochs at a small constant learning rate whose weights are averaged (Izmailov et al. 2018,
https://arxiv.org/abs/1803.05407). It resumes from its checkpoint where it was interrupted, and writes metrics.json, a
table of epochs, a picture of the curves and the weights as float16 safetensors in torchvision's layout.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcam
from experiments import _report, _study
from jaxcam import _files, plot, train
from jaxcam.data import CIFAR10_LABELS
from jaxcam.models.resnet import ARCHITECTURES
from jaxcam.models.weights import save

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


COMMAND = "python -m experiments.train_cifar10 --data-dir DIR"


def main(argv=None):
    parser = _study.arguments("train_cifar10", __doc__.splitlines()[0])
    parser.add_argument("--architecture", default="resnet18", choices=ARCHITECTURES)
    parser.add_argument("--width", type=int, default=32, help="features of the first stage (torchvision: 64)")
    parser.add_argument("--epochs", type=int, default=16, help="of the cosine cycle")
    parser.add_argument("--averaged-epochs", type=int, default=6, help="after it; 0 for none")
    parser.add_argument("--averaged-rate", type=float, default=0.01, help="their learning rate")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.05, help="peak of the cosine schedule")
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.smoke:
        args.width, args.epochs, args.averaged_epochs = 4, 1, 1

    train_data, test_data = _study.cifar10(args)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    module = ARCHITECTURES[args.architecture](num_classes=10, width=args.width, stem="cifar", dtype=dtype)
    normalize = train.Normalization(MEAN, STD)
    steps = args.epochs * (len(train_data.images) // args.batch_size)
    cycle, rest = train.cosine(args.learning_rate, steps), optax.constant_schedule(args.averaged_rate)

    def weights_after(epoch):
        return args.output / "parts" / f"epoch-{epoch}.safetensors"

    def keep(record, state):
        if record["epoch"] >= args.epochs:
            save(weights_after(record["epoch"]), state.variables)

    state, history = train.fit(
        module,
        train_data,
        test_data,
        optimizer=train.sgd(optax.join_schedules([cycle, rest], [steps])),
        num_epochs=args.epochs + args.averaged_epochs,
        normalize=normalize,
        batch_size=args.batch_size,
        label_smoothing=args.label_smoothing,
        seed=args.seed,
        checkpoint_dir=args.output / "checkpoints",
        optimizer_settings={name: getattr(args, name) for name in ("learning_rate", "epochs", "averaged_rate")},
        on_epoch=keep,
    )
    variables = state.variables
    if args.averaged_epochs:
        files = map(weights_after, range(args.epochs, args.epochs + args.averaged_epochs + 1))
        every = [jaxcam.load(file, architecture=args.architecture).variables for file in files]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *every)
        variables = train.measure_batch_stats(module, mean, train_data.images, normalize=normalize)

    # What ships is float16, so that is what is measured.
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), variables)
    loss, accuracy = train.evaluate(module, rounded, test_data, normalize=normalize)
    weights = args.output / f"{args.architecture}_cifar10.safetensors"
    save(weights, variables, dtype=np.float16)
    about = {
        "architecture": args.architecture,
        "stem": "cifar",
        "width": args.width,
        "labels": CIFAR10_LABELS,
        "mean": MEAN,
        "std": STD,
        "top1": round(100 * accuracy, 2),
        "test_loss": loss,
        "data": "CIFAR-10, all 50,000 training and 10,000 test images, JPEG re-encoded (quality 75)",
        "recipe": f"{args.epochs} epochs, cosine schedule with a tenth of warm-up, peak learning rate "
        f"{args.learning_rate}, and {args.averaged_epochs} more at {args.averaged_rate} whose weights are averaged; "
        f"SGD with Nesterov momentum 0.9, batch {args.batch_size}, weight decay 5e-4, "
        f"label smoothing {args.label_smoothing}, random crop and flip, seed {args.seed}",
        "dtype": jnp.dtype(dtype).name,
        "training_seconds": round(sum(record["seconds"] for record in history)),
        **_study.environment(),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    _files.write(weights.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    _study.write_metrics(args, {"test_accuracy": accuracy, "test_loss": loss, "epochs": history})
    write_table(args.output / "table.md", history)
    curves = {
        "train": [1 - record["accuracy"] for record in history],
        "test": [1 - record["test_accuracy"] for record in history],
    }
    title = f"The weights that ship, rounded to float16: {1 - accuracy:.1%} test error"
    plot.save(plot.curves(curves, xlabel="epoch", ylabel="error rate", title=title), args.output / "curves.png")
    _report.publish_results(args, "train_cifar10")
    print(f"test accuracy {accuracy:.2%} (float16 weights); written to {args.output}")


def answer(found) -> str:
    hours = sum(epoch["seconds"] for epoch in found["epochs"]) / 3600
    right = f"{100 * found['test_accuracy']:.2f} %"
    return f"{right} of the test images, after {len(found['epochs'])} epochs in {hours:.1f} h."


def write_table(path, history):
    rows = ["| epoch | loss | accuracy | test loss | test accuracy | seconds |", "|--:|--:|--:|--:|--:|--:|"]
    for record in history:
        rows.append(
            f"| {record['epoch']} | {record['loss']:.3f} | {record['accuracy']:.2%} | {record['test_loss']:.3f} "
            f"| {record['test_accuracy']:.2%} | {record['seconds']:.0f} |"
        )
    _files.write(path, "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
