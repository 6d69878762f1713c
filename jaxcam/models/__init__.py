"""ResNets and EfficientNets, and their weights."""

from jaxcam.models._families import ARCHITECTURES as ARCHITECTURES
from jaxcam.models._labels import CIFAR10_LABELS as CIFAR10_LABELS
from jaxcam.models.efficientnet import EfficientNet as EfficientNet
from jaxcam.models.resnet import ResNet as ResNet
from jaxcam.models.weights import Classifier as Classifier
from jaxcam.models.weights import load as load
from jaxcam.models.weights import models as models
from jaxcam.models.weights import save as save
from jaxcam.models.weights import state_dict as state_dict
