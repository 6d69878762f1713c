"""Runs small models of torchvision, timm and transformers, and writes what `test_architectures.py` compares with.

    python -m pip install -e ".[torch]" torchvision transformers
    python -m tests.golden.make_architectures

`architectures.json` lists, for each model, the names and shapes of the file that its library writes.
`architectures.npz` holds logits and activations for random tensors of these shapes, which both sides draw by
`rebuild.random_tensors`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from . import rebuild
from .make_golden import import_torchvision

import_torchvision()

import timm  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torchvision.models.convnext import CNBlockConfig  # noqa: E402
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt  # noqa: E402
from torchvision.models.densenet import DenseNet as TorchvisionDenseNet  # noqa: E402
from torchvision.models.efficientnet import EfficientNet as TorchvisionEfficientNet  # noqa: E402
from torchvision.models.efficientnet import _efficientnet_conf  # noqa: E402
from torchvision.models.mobilenetv2 import MobileNetV2 as TorchvisionMobileNetV2  # noqa: E402
from torchvision.models.resnet import Bottleneck  # noqa: E402
from torchvision.models.resnet import ResNet as TorchvisionResNet  # noqa: E402
from torchvision.models.vgg import VGG as TorchvisionVGG  # noqa: E402
from torchvision.models.vgg import make_layers  # noqa: E402
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT  # noqa: E402

FOLDER = Path(__file__).parent
NUM_CLASSES, SEED, SIZE = 7, 13, 48
WIDTHS, SIZES = (8, 16, 24, 32), (1, 2, 1, 1)
VGG = [8, "M", 16, 16, "M", 16, "M"]
RESNET = {"embedding_size": 8, "depths": list(SIZES), "num_labels": NUM_CLASSES}


def transformers_resnet(**options):
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET, **options))


def bottleneck(**options):
    return transformers_resnet(layer_type="bottleneck", hidden_sizes=[32, 64, 128, 256], **options)


def vit(cls, config):
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192}
    return cls(config(**sizes, image_size=SIZE, patch_size=16, num_labels=NUM_CLASSES))


def narrow(module):
    """A VGG whose dense layers have 16 features, which neither library offers."""
    if hasattr(module, "classifier"):
        for place, (inputs, outputs) in {0: (49 * VGG[-2], 16), 3: (16, 16), 6: (16, NUM_CLASSES)}.items():
            module.classifier[place] = torch.nn.Linear(inputs, outputs)
    else:
        module.pre_logits = timm.models.vgg.ConvMlp(VGG[-2], 16)
        module.head.fc = torch.nn.Linear(16, NUM_CLASSES)
    return module


# Name -> the model, and the layers that are compared: theirs, and what jaxcam calls them.
MODELS = {
    "torchvision_resnext": (
        lambda: TorchvisionResNet(Bottleneck, (1, 1, 1, 1), NUM_CLASSES, groups=4, width_per_group=32),
        {f"layer{index}": f"layer{index}" for index in (1, 2, 3, 4)},
    ),
    "transformers_resnet": (
        bottleneck,
        {f"resnet.encoder.stages.{index}": f"layer{index + 1}" for index in range(4)},
    ),
    "transformers_resnet_v1": (
        lambda: bottleneck(downsample_in_bottleneck=True),
        {f"resnet.encoder.stages.{index}": f"layer{index + 1}" for index in range(4)},
    ),
    "transformers_resnet_basic": (
        lambda: transformers_resnet(layer_type="basic", hidden_sizes=[8, 16, 32, 64]),
        {f"resnet.encoder.stages.{index}": f"layer{index + 1}" for index in range(4)},
    ),
    **{
        f"timm_{name}": (
            lambda name=name: timm.create_model(name, num_classes=NUM_CLASSES),
            {"blocks.0": "blocks.0", "blocks.1.1": "blocks.1.1", "blocks.4": "blocks.4", "bn2": "head"},
        )
        for name in ("tf_efficientnet_lite0", "tf_efficientnet_b0", "mobilenetv2_035")
    },
    "torchvision_efficientnet": (
        lambda: TorchvisionEfficientNet(
            _efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.5)[0], 0.0, num_classes=NUM_CLASSES
        ),
        {"features.1": "blocks.0", "features.3.0": "blocks.2.0", "features.5": "blocks.4", "features.8": "head"},
    ),
    "torchvision_mobilenet": (
        lambda: TorchvisionMobileNetV2(NUM_CLASSES, width_mult=0.25),
        {"features.1": "blocks.0", "features.3": "blocks.1.1", "features.13": "blocks.4", "features.18": "head"},
    ),
    "torchvision_vgg": (
        lambda: narrow(TorchvisionVGG(make_layers(VGG, batch_norm=True))),
        {name: name for name in ("features.1", "features.3", "features.5", "features.8", "features.10")},
    ),
    "timm_vgg": (
        lambda: narrow(timm.models.vgg.VGG(VGG)),
        {name: name for name in ("features.0", "features.1", "features.2", "features.4", "features.6")},
    ),
    "torchvision_densenet": (
        lambda: TorchvisionDenseNet(4, (1, 2, 1), 8, 2, num_classes=NUM_CLASSES),
        {
            name: name
            for name in (
                "features.conv0",
                "features.denseblock1",
                "features.transition1",
                "features.denseblock2.denselayer2",
                "features.norm5",
            )
        },
    ),
    "torchvision_vit": (
        lambda: TorchvisionViT(SIZE, 16, 2, 2, 128, 192, num_classes=NUM_CLASSES),
        {
            name: name
            for name in (
                "encoder.layers.encoder_layer_0.ln_1",
                "encoder.layers.encoder_layer_0.mlp",
                "encoder.layers.encoder_layer_0",
                "encoder.layers.encoder_layer_1",
                "encoder.ln",
            )
        },
    ),
    "timm_vit": (
        lambda: timm.models.vision_transformer.VisionTransformer(
            SIZE, 16, embed_dim=128, depth=2, num_heads=2, mlp_ratio=1.5, num_classes=NUM_CLASSES
        ),
        {
            "blocks.0.norm1": "encoder.layers.encoder_layer_0.ln_1",
            "blocks.0.attn": "encoder.layers.encoder_layer_0.self_attention",
            "blocks.0": "encoder.layers.encoder_layer_0",
            "blocks.1": "encoder.layers.encoder_layer_1",
            "norm": "encoder.ln",
        },
    ),
    "transformers_vit": (
        lambda: vit(transformers.ViTForImageClassification, transformers.ViTConfig),
        {
            "vit.layers.0.layernorm_before": "encoder.layers.encoder_layer_0.ln_1",
            "vit.layers.0": "encoder.layers.encoder_layer_0",
            "vit.layers.1": "encoder.layers.encoder_layer_1",
            "vit.layernorm": "encoder.ln",
        },
    ),
    "torchvision_convnext": (
        lambda: TorchvisionConvNeXt(
            [CNBlockConfig(*each) for each in zip(WIDTHS, (*WIDTHS[1:], None), SIZES, strict=True)],
            num_classes=NUM_CLASSES,
        ),
        {name: name for name in ("features.0", "features.1", "features.2", "features.3.1.block.0", "features.7")},
    ),
    "timm_convnext": (
        lambda: timm.models.convnext.ConvNeXt(depths=SIZES, dims=WIDTHS, num_classes=NUM_CLASSES),
        {
            "stem": "features.0",
            "stages.0": "features.1",
            "stages.1.blocks.1.conv_dw": "features.3.1.block.0",
            "stages.3": "features.7",
            "head.norm": "classifier.0",
        },
    ),
    "transformers_convnext": (
        lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(hidden_sizes=list(WIDTHS), depths=list(SIZES), num_labels=NUM_CLASSES)
        ),
        {
            "convnext.embeddings": "features.0",
            "convnext.encoder.stages.0": "features.1",
            "convnext.encoder.stages.1.layers.1.dwconv": "features.3.1.block.0",
            "convnext.encoder.stages.3": "features.7",
            "convnext.layernorm": "classifier.0",
        },
    ),
}

# What is refused, and by which of its names a sentence should say so.
REFUSED = {
    "timm_resnet50d": lambda: timm.create_model("resnet50d"),
    "timm_deit_distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
    "timm_convnextv2": lambda: timm.create_model("convnextv2_atto"),
    "timm_mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050"),
    "transformers_deit_distilled": lambda: vit(transformers.DeiTForImageClassification, transformers.DeiTConfig),
}


def written(module) -> dict[str, list[int]]:
    """The names and shapes of the file that the library itself writes."""
    state = module.state_dict()
    if isinstance(module, transformers.PreTrainedModel):
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            state = load_file(Path(folder) / "model.safetensors")
    return {name: list(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}


def loaded(make, tensors) -> torch.nn.Module:
    """The model with these tensors, read as the library reads its own file."""
    module = make().eval()
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    if not isinstance(module, transformers.PreTrainedModel):
        missing = module.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys and all("tracked" in name for name in missing.missing_keys)
        return module
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        from safetensors.torch import save_file

        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return type(module).from_pretrained(folder).eval()


@torch.no_grad()
def outputs(module, layers: dict[str, str], images: np.ndarray) -> dict[str, np.ndarray]:
    """The logits, and a summary of each layer's activation, channels last."""
    found = {}

    def keep(name):
        def hook(_, __, output):
            output = output[0] if isinstance(output, tuple) else output
            output = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
            found[name] = rebuild.summary(output.numpy())

        return hook

    for theirs, ours in layers.items():
        module.get_submodule(theirs).register_forward_hook(keep(ours))
    logits = module(torch.from_numpy(images).permute(0, 3, 1, 2))
    found["logits"] = getattr(logits, "logits", logits).numpy()
    return found


def main() -> None:
    names, arrays = {}, {}
    images = rebuild.rebuild_images(SIZE, SIZE, (1, 2))
    for name, (make, layers) in MODELS.items():
        names[name] = written(make())
        tensors = rebuild.random_tensors(names[name], SEED)
        arrays[f"{name}/fingerprint"] = rebuild.fingerprint(tensors)
        for layer, value in outputs(loaded(make, tensors), layers, images).items():
            arrays[f"{name}/{layer}"] = value
    refused = {name: sorted(written(make())) for name, make in REFUSED.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in names.items()]
    lines += [f"{json.dumps(name)}: {json.dumps(dict.fromkeys(listed))}" for name, listed in refused.items()]
    (FOLDER / "architectures.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(FOLDER / "architectures.npz", **arrays)


if __name__ == "__main__":
    main()
