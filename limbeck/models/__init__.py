"""Small reference architectures, and real ones from transformers."""

from limbeck.models.resnet import resnet, wide_resnet

__all__ = ["resnet", "wide_resnet"]
