"""The leaderboard's data sets: each a model, images that it gets right, and what is known about them."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from experiments import _pasted, _study
from jaxcam import data, train

NORMALIZE = train.Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
STAGES = ("layer1", "layer2", "layer3")
OPTIONS = {  # where the defaults take a thousand forward passes and more
    "ss_cam": {"num_samples": 8, "max_channels": 32},
    "is_cam": {"max_channels": 32},
    "lime": {"num_samples": 256},
    "kernel_shap": {"num_samples": 256},
    "shapley_sampling": {"num_samples": 8},
    "sobol": {"num_samples": 16},
    "hsic": {"num_samples": 256},
}
FEW_PASSES = {  # about a hundred forward passes a map at most: at 224 pixels, or where a method is run forty times
    "score_cam": {"max_channels": 64},
    "ss_cam": {"num_samples": 4, "max_channels": 16},
    "is_cam": {"num_samples": 4, "max_channels": 16},
    **{name: {"num_samples": 8} for name in ("smooth_grad", "smooth_grad_squared", "var_grad")},
    **{name: {"num_steps": 16} for name in ("integrated_gradients", "blur_integrated_gradients", "xrai")},
    "guided_integrated_gradients": {"num_steps": 32},
    "expected_gradients": {"num_samples": 16},
    "rise": {"num_samples": 96},
    "lime": {"num_samples": 96},
    "kernel_shap": {"num_samples": 96},
    "shapley_sampling": {"num_samples": 2},
    "sobol": {"num_samples": 2},
    "hsic": {"num_samples": 96},
}
LARGE = FEW_PASSES | {"occlusion": {"window": 64, "stride": 32}}  # of 224 pixels


@dataclass(frozen=True, eq=False)
class Case:
    """One data set: a model, the images that it gets right, and what is known about them."""

    model: jaxcam.Tap
    images: jax.Array
    targets: jax.Array
    weights: str  # what they are, so that results of others are not taken for theirs
    masks: np.ndarray | None = None
    twin: jaxcam.Tap | None = None  # the same network trained on shuffled labels
    rerun: bool = True  # whether to measure what runs a method some twenty times
    large: bool = False  # images of which a forward pass takes long: fewer steps, and no metric of a hundred passes
    layers: tuple[str, ...] = STAGES  # where CAMs are measured too, beside the last
    options: dict = field(default_factory=lambda: OPTIONS)
    views: np.ndarray | None = None  # the images, to be shown, and what is written beside them
    labels: list[str] | None = None
    draws: int = 10  # of random_cam's weights; one says little about random weights


def shapes_case(args) -> Case:
    """A ResNet-18 of width 8, trained on which shapes are there, and the images in which it finds them all."""
    count, least = (64, 64) if args.smoke else (6000, 256)
    module = _study.resnet18(args, num_classes=len(data.SHAPES_LABELS), width=8)
    training, test = data.shapes(count, seed=1), data.shapes(max(least, 4 * args.images), seed=2)
    there = {"train": training.masks.any((2, 3)), "test": test.masks.any((2, 3))}
    shuffled = np.random.default_rng(0).permutation(there["train"])
    optimizer = train.sgd(train.cosine(0.1, args.epochs * (count // 64)))  # one for both: compiled once
    models = {}
    for name, labels in {"shapes": there["train"], "shuffled": shuffled}.items():
        state, history = train.fit(
            module,
            (training.images, distribution(labels)),
            (test.images, distribution(there["test"])),
            optimizer=optimizer,
            num_epochs=args.epochs,
            normalize=NORMALIZE,
            batch_size=64,
            checkpoint_dir=args.output / "checkpoints" / name,
            progress=False,
        )
        print(f"{name}: {history[-1]['test_accuracy']:.1%} of the test images' predictions are in the image")
        models[name] = jaxcam.tap(module, state.variables, "layer4")
    images = NORMALIZE(jnp.asarray(test.images))
    logits = np.asarray(train.predict(module, models["shapes"].variables, test.images, normalize=NORMALIZE))
    found = np.array(
        [set(np.argsort(z)[-t.sum() :]) == set(np.flatnonzero(t)) for z, t in zip(logits, there["test"], strict=True)]
    )
    chosen = np.flatnonzero(found | args.smoke)[: args.images]
    masks = test.masks[chosen, test.labels[chosen]]
    return Case(
        models["shapes"],
        images[chosen],
        jnp.asarray(test.labels[chosen]),
        f"{args.epochs} epochs on {count} images",
        masks,
        models["shuffled"],
        rerun="shapes" in args.rerun_on,
    )


def distribution(there):
    return (there / there.sum(1, keepdims=True)).astype(np.float32)


def cifar10_case(args) -> Case:
    """The bundled model, and the first test images that it classifies correctly."""
    classifier = _study.bundled(args)
    training, test = _study.cifar10(args)
    model, weights = classifier.tap(), classifier.about["sha256"]
    images = classifier.preprocess(test.images[: 4 * args.images])
    right = np.argmax(model(images), -1) == test.labels[: len(images)]
    chosen = np.flatnonzero(right | args.smoke)[: args.images]
    rerun, twin = "cifar10" in args.rerun_on, None
    if rerun:
        twin = knows_by_heart(args, classifier, training, test)
        weights += f", twin of {args.twin_epochs} epochs on {len(training.images[:2560])} images"
    targets = jnp.asarray(test.labels[chosen])
    return Case(model, images[chosen], targets, weights, twin=twin, rerun=rerun, large=args.smoke)


def knows_by_heart(args, classifier, training, test) -> jaxcam.Tap:
    """The classifier's network, trained until it knows shuffled labels by heart."""
    images = training.images[:2560]
    shuffled = np.random.default_rng(0).permutation(training.labels[: len(images)])
    state, history = train.fit(
        classifier.module,
        (images, shuffled),
        (test.images[:512], test.labels[:512]),
        optimizer=train.sgd(train.cosine(0.1, args.twin_epochs * (len(images) // 64)), weight_decay=0),
        num_epochs=args.twin_epochs,
        normalize=train.Normalization(classifier.preprocess.mean, classifier.preprocess.std),
        batch_size=64,
        augment=False,
        checkpoint_dir=args.output / "checkpoints" / "cifar10-shuffled",
        progress=not args.smoke,
    )
    print(f"twin for CIFAR-10: {history[-1]['accuracy']:.1%} of {len(images)} shuffled labels learned by heart")
    return jaxcam.tap(classifier.module, state.variables, classifier.layer)


def photographs_case(args) -> Case:
    """EfficientNet-Lite0, and two objects pasted on a photograph; the target is the object that the model names.

    In smoke mode an untrained network at 64 pixels, and whatever it says.
    """
    pasted = _pasted.pasted(args.photos, size=64 if args.smoke else 224)
    if args.smoke:
        module = _study.resnet18(args, num_classes=len(data.SHAPES_LABELS), width=8)
        model = jaxcam.tap(module, module.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)), "layer4")
        images = NORMALIZE(jnp.asarray(pasted.images[: args.images]))
        targets = jnp.argmax(model(images), -1)
        masks, views = pasted.masks[: args.images, 0], pasted.images[: args.images]
        names = [str(pair) for pair in pasted.names[: args.images]]
        return Case(model, images, targets, "none", masks, rerun=False, draws=1, views=views, labels=names)
    classifier = jaxcam.load("efficientnet_lite0")
    preprocess, model = classifier.preprocess, classifier.tap()
    images = (pasted.images / np.float32(255) - np.float32(preprocess.mean)) / np.float32(preprocess.std)
    targets = np.argmax(model(jnp.asarray(images)), -1)
    named = np.array(
        [
            [classifier.labels[target] in _pasted.CUTOUTS[name].labels for name in pair]
            for target, pair in zip(targets, pasted.names, strict=True)
        ]
    )
    print(f"photographs: in {named.any(1).sum()} of {len(images)} the model names one of the two objects")
    chosen = np.flatnonzero(named.any(1))[: args.pasted_images]
    return Case(
        model,
        jnp.asarray(images[chosen]),
        jnp.asarray(targets[chosen]),
        classifier.about["sha256"],
        pasted.masks[chosen, named[chosen].argmax(1)],
        rerun=False,
        large=True,
        layers=("blocks.4",),
        options=LARGE,
        views=pasted.images[chosen],
        labels=[classifier.labels[target] for target in targets[chosen]],
        draws=4,
    )


def can_paste(photos) -> bool:
    """Whether there are two objects and a background."""
    return len(_pasted.photographs(photos)) > 3
