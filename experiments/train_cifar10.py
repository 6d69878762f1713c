"""Trains the CIFAR-10 model that ships in the package: a ResNet-18 with the CIFAR stem.

    python -m experiments.train_cifar10 --data-dir DIR

Muon under one cosine cycle, on images that grow from 20 to 32 pixels: `docs/training.md` says what each of the two
gives. It resumes from its checkpoint where it was interrupted, and writes metrics.json, a table of epochs, a picture of
the curves and the weights as float16 safetensors in torchvision's layout.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

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
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--smallest", type=int, default=20, help="side of the images in the first epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.2, help="peak of the cosine schedule")
    parser.add_argument("--weight-decay", type=float, default=2e-3, help="times the learning rate, of the kernels")
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    _study.add_dtype(parser)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.smoke:
        args.width, args.epochs = 4, 1

    train_data, test_data = _study.cifar10(args)
    options = {"num_classes": 10, "width": args.width, "stem": "cifar", "dtype": jnp.dtype(args.dtype)}
    module = ARCHITECTURES[args.architecture](**options)
    normalize = train.Normalization(MEAN, STD)
    schedule = train.cosine(args.learning_rate, args.epochs * (len(train_data.images) // args.batch_size))
    state, history = train.fit(
        module,
        train_data,
        test_data,
        optimizer=train.muon(schedule, weight_decay=args.weight_decay, num_iterations=3),
        num_epochs=args.epochs,
        normalize=normalize,
        batch_size=args.batch_size,
        label_smoothing=args.label_smoothing,
        image_sizes=train.progressive(args.smallest, train_data.images.shape[1], args.epochs),
        seed=args.seed,
        checkpoint_dir=args.output / "checkpoints",
        optimizer_settings={name: getattr(args, name) for name in ("learning_rate", "weight_decay", "epochs")},
    )

    # What ships is float16 and computes in float32, so that is what is measured.
    module = module.clone(dtype=jnp.float32)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), state.variables)
    loss, accuracy = train.evaluate(module, rounded, test_data, normalize=normalize)
    _, mirrored = train.evaluate(module, rounded, test_data, normalize=normalize, mirrored=True)
    weights = args.output / f"{args.architecture}_cifar10.safetensors"
    save(weights, state.variables, dtype=np.float16)
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
        "recipe": f"{args.epochs} epochs, images of {args.smallest} to {train_data.images.shape[1]} pixels; "
        f"Muon, cosine schedule with a tenth of warm-up, peak learning rate {args.learning_rate}, "
        f"weight decay {args.weight_decay}, batch {args.batch_size}, label smoothing {args.label_smoothing}, "
        f"random crop and alternating flip, seed {args.seed}",
        "dtype": args.dtype,
        "training_seconds": round(sum(record["seconds"] for record in history)),
        **_study.environment(),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    _files.write(weights.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    found = {"test_accuracy": accuracy, "test_loss": loss, "test_accuracy_mirrored": mirrored, "epochs": history}
    _study.write_metrics(args, found)
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
    mirrored = f"{100 * found['test_accuracy_mirrored']:.2f} %"
    after = f"after {len(found['epochs'])} epochs in {hours:.1f} h"
    return f"{right} of the test images ({mirrored} with their mirror images), {after}."


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
