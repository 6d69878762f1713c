"""ResNets, EfficientNets and MobileNets, VGGs, DenseNets, vision transformers and ConvNeXts, and their weights."""

from jaxcam.models._convert import state_dict as state_dict
from jaxcam.models._families import ARCHITECTURES as ARCHITECTURES
from jaxcam.models._find import models as models
from jaxcam.models._labels import CIFAR10_LABELS as CIFAR10_LABELS
from jaxcam.models.convnext import ConvNeXt as ConvNeXt
from jaxcam.models.densenet import DenseNet as DenseNet
from jaxcam.models.efficientnet import EfficientNet as EfficientNet
from jaxcam.models.resnet import ResNet as ResNet
from jaxcam.models.vgg import VGG as VGG
from jaxcam.models.vit import ViT as ViT
from jaxcam.models.weights import Classifier as Classifier
from jaxcam.models.weights import load as load
from jaxcam.models.weights import save as save
