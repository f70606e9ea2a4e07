"""Networks that are no models of transformers: objects of timm, torchvision's, modules of one's own, compiled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, DenseNet, MobileNetV2, ResNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from helpers.models import make_model

CLASSES = 5
TRANSFORM = Compose([Resize((32, 32)), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


class LeNet(nn.Module):
    """Layers under names of their own, in no container."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 5)
        self.fc1, self.fc2 = nn.Linear(200, 16), nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.max_pool2d(torch.relu(self.conv1(images)), 2)
        maps = torch.max_pool2d(torch.relu(self.conv2(maps)), 2)
        return self.fc2(torch.relu(self.fc1(maps.flatten(1))))


class WithTokens(nn.Module):
    """A small transformer that returns a dictionary, has a parameter of its own and a child called base_model."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 16, 16) / 4)
        self.embed = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.base_model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.base_model(self.embed(images).flatten(2).transpose(1, 2) + self.place)
        return {"features": tokens, "logits": self.head(tokens.mean(1))}


def _convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=CLASSES)


def _in_place() -> nn.Module:
    maps = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(True), nn.Conv2d(4, 4, 3, 2), nn.ReLU(True)]
    return nn.Sequential(*maps, nn.Flatten(), nn.Linear(196, CLASSES))


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.ReLU(), nn.Linear(16, CLASSES))


OWN: dict[str, Callable[[], nn.Module]] = {
    "timm object ViT": lambda: timm.create_model("test_vit", num_classes=CLASSES, img_size=32),
    "timm object ConvNeXt": lambda: timm.create_model("test_convnext", num_classes=CLASSES),
    "timm object of other arguments": lambda: timm.create_model("deit_tiny_patch16_224", num_classes=CLASSES, **_VIT),
    "torchvision ResNet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
    "torchvision ViT": lambda: VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=CLASSES),
    "torchvision Swin": lambda: SwinTransformer([2, 2], 8, [2, 2], [1, 2], [4, 4], num_classes=CLASSES),
    "torchvision ConvNeXt": _convnext,
    "torchvision DenseNet": lambda: DenseNet(4, (2, 2, 2), 8, num_classes=CLASSES),
    "torchvision MobileNetV2": lambda: MobileNetV2(CLASSES, width_mult=0.1),
    "own LeNet": LeNet,
    "own transformer": WithTokens,
    "own Sequential in place": _in_place,
    "own perceptron": _perceptron,
    "compiled ViT": lambda: torch.compile(make_model("ViT")),
    "compiled LeNet": lambda: torch.compile(LeNet()),
    "compiled timm object": lambda: torch.compile(timm.create_model("test_resnet", num_classes=CLASSES)),
}
"""Kind and name -> makes one, for images of 32x32 in five classes."""


def make_own(name: str, seed: int = 0) -> Any:
    """A randomly initialised network of five classes, as its owner has it."""
    torch.manual_seed(seed)
    return OWN[name]()
