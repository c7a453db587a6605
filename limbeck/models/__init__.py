"""Small reference architectures, and real ones from transformers."""

from limbeck.models.binary import binary_encoder
from limbeck.models.branched import branched_resnet
from limbeck.models.cnn import cnn
from limbeck.models.convnet import convnet
from limbeck.models.denoising_mlp import denoising_mlp
from limbeck.models.encoder import encoder
from limbeck.models.encoder_decoder import encoder_decoder, prefix_decoder
from limbeck.models.gpt import gpt
from limbeck.models.graph import gcn, node_perceptron
from limbeck.models.key_value_bottleneck import key_value_bottleneck
from limbeck.models.mixture_of_experts import mixture_gpt
from limbeck.models.multi_exit import exit_encoder
from limbeck.models.pretrained import load_pretrained, transformer
from limbeck.models.prototypes import prototype_resnet
from limbeck.models.resnet import resnet, wide_resnet
from limbeck.models.sentence_encoder import load_sentence_encoder, sentence_encoder, student_encoder
from limbeck.models.signal import signal_cnn, signal_transformer
from limbeck.models.spiking import spiking_vit
from limbeck.models.unet import unet
from limbeck.models.vit import vit
from limbeck.models.vq_autoencoder import vq_autoencoder

__all__ = [
    "binary_encoder",
    "branched_resnet",
    "cnn",
    "convnet",
    "denoising_mlp",
    "encoder",
    "encoder_decoder",
    "exit_encoder",
    "gcn",
    "gpt",
    "key_value_bottleneck",
    "load_pretrained",
    "load_sentence_encoder",
    "mixture_gpt",
    "node_perceptron",
    "prefix_decoder",
    "prototype_resnet",
    "resnet",
    "sentence_encoder",
    "signal_cnn",
    "signal_transformer",
    "spiking_vit",
    "student_encoder",
    "transformer",
    "unet",
    "vit",
    "vq_autoencoder",
    "wide_resnet",
]
