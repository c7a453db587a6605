"""Images as grids of code numbers: the stream, smaller codebooks by clustering, and training what surrounds them."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from limbeck.codecs import rans
from limbeck.codecs.vector_quantization import VectorQuantizer, kmeans
from limbeck.errors import ArtifactError, UsageError
from limbeck.objectives.base import Loss
from limbeck.training.procedures import Losses, Procedure, State

KIND = b"VQ"
PARTS = ("encoder", "before", "quantizer", "after", "decoder")
MOST = 1 << 24  # numbers in one stream


class IndexCodec:
    """Images to bytes and back through an autoencoder with a codebook (see `limbeck.models.vq_autoencoder`).

        kind | model's checksum | N | h | w | code numbers, entropy coded | CRC-32

    usage: (K,) how often each code occurs, as whole numbers; a code then costs -log2 of its share. None: all alike, log2 K bits, as
    the paper's stream has it. encode: images in 0..1 (N, C, H, W) -> bytes; decode: bytes -> images. Lossy through the autoencoder,
    lossless for the code numbers. Raises ArtifactError for a stream that is cut off, altered or of another model.
    """

    def __init__(self, model: nn.Module, usage: Tensor | None = None):
        self.model, self.size = model.eval(), model.quantizer.size
        counts = torch.ones(self.size) if usage is None else usage
        if tuple(counts.shape) != (self.size,) or float(counts.min()) < 0 or float(counts.sum()) <= 0:
            raise UsageError(f"IndexCodec: usage {tuple(counts.shape)} must be ({self.size},), at least 0, not all 0")
        share = counts.double().numpy() + 0.5 * (usage is not None)
        self.table = rans.frequencies(share / share.sum())
        self.checksum = zlib.crc32(self.table.tobytes())
        for value in model.state_dict().values():
            self.checksum = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), self.checksum)

    def encode(self, images: Tensor) -> bytes:
        return self.pack(self.model.indices(images))

    def decode(self, data: bytes) -> Tensor:
        return self.model.decode(self.unpack(data))

    def pack(self, indices: Tensor) -> bytes:
        """Code numbers (N, h, w) to bytes."""
        if indices.dim() != 3 or (indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.size):
            raise UsageError(f"IndexCodec: code numbers {tuple(indices.shape)} must be (N, h, w) below {self.size}")
        flat = indices.flatten().cpu().numpy()
        begins = rans.starts(self.table)
        payload = rans.encode(begins[flat].tolist(), self.table[flat].tolist())
        return rans.seal(KIND, (self.checksum, *indices.shape), payload)

    def unpack(self, data: bytes) -> Tensor:
        """Bytes to code numbers (N, h, w)."""
        (checksum, *shape), payload = rans.unseal(KIND, 4, data)
        if checksum != self.checksum:
            raise ArtifactError("the stream was made with another model: decode it with that one")
        if math.prod(shape) > MOST:
            raise ArtifactError(f"the stream says that it holds {shape} code numbers; {MOST} are allowed")
        coder, begins = rans.Decoder(payload), rans.starts(self.table)
        found = numpy.array([coder.pop(begins) for _ in range(math.prod(shape))], numpy.int64)
        coder.finish()
        return torch.from_numpy(found).reshape(shape)


def with_fewer_codes(model: nn.Module, count: int, generator: torch.Generator | None = None) -> nn.Module:
    """A copy of an autoencoder whose codebook is the `count` k-means centres of its codes.

    Source: Mao et al., "Extreme Image Compression using Fine-tuned VQGANs", DCC 2024, section 3.2. Raises UsageError for more codes than
    there are.
    """
    old: VectorQuantizer = model.quantizer
    if not 2 <= count <= old.size:
        raise UsageError(f"with_fewer_codes: count={count} must be 2 to {old.size}, the codes there are")
    made = copy.deepcopy(model)
    new = VectorQuantizer(count, old.width, 1, old.decay, old.least_use, initial="random")
    with torch.no_grad():
        new.codes.copy_(kmeans(old.codes[0].detach(), count, 25, generator)[None])
        new.sums.copy_(new.codes)
    made.quantizer = new
    return made


class Autoencode(Procedure):
    """Train parts of a vector-quantized autoencoder to reproduce its input.

    L = mean |x - x'|^2 + commitment |z - sg(code)|^2 (+ |sg(z) - code|^2 where codes learn by gradient)

    parts: which of encoder, before, quantizer, after and decoder are trained; the others stay. A codebook smaller than the one that
    was trained is tuned with ("before", "quantizer", "after"), as the paper does (see `with_fewer_codes`). Batches: pixel_values in 0..1.
    Deviation: squared error alone, without the perceptual and adversarial losses of the paper.
    """

    def __init__(self, model: nn.Module, parts: tuple[str, ...] = PARTS, commitment: float = 0.25):
        unknown = set(parts) - set(PARTS)
        if unknown or not set(parts) - {"quantizer"}:
            raise UsageError(f"Autoencode: parts={parts!r} must be some of {', '.join(PARTS)}, not the quantizer alone")
        if commitment < 0:
            raise UsageError(f"Autoencode: commitment={commitment!r} must be at least 0")
        self.autoencoder, self.parts, self.commitment = model, tuple(parts), commitment
        self.modules = {name: getattr(model, name) for name in PARTS if name in parts}

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {"main": tuple(n for n, m in self.modules.items() if any(p.requires_grad for p in m.parameters()))}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.autoencoder.to(device).eval()

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        x = batch["pixel_values"]
        made, found = self.autoencoder.reconstruct(x)
        error = (made - x).square().mean()
        parts = {"error": error.detach(), "commitment": found.commitment.detach()}
        return {"main": Loss(error + self.commitment * found.commitment + found.codebook, parts)}

    def model(self) -> nn.Module | None:
        return None

    def describe(self) -> Any:
        return {"procedure": type(self).__name__, "parts": list(self.parts), "commitment": self.commitment}
