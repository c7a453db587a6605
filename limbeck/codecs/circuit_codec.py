"""Lossless coding with a hidden tree: every pixel at its conditional probability given those before it, in exact numbers.

Pixels go in depth-first order of the tree. Then all that was coded before a pixel reaches its hidden state through one parent, and each
edge is used once on the way down and once on the way up:

    naive           every pixel: sum the whole circuit again                           D (D - 1) products
    root path       every pixel: sum again what depends on the last one, up to the root     sum of depths
    depth first     every edge once in each direction                                  2 (D - 1)

A product is one K x K matrix with the messages of one edge. Probabilities are computed in float64 by additions, multiplications and
divisions of single numbers in a fixed order, never by a library's matrix product: a decoder elsewhere gets the same bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator

import numpy
import torch
from torch import Tensor

from limbeck.codecs import rans
from limbeck.codecs.circuits import HiddenTree
from limbeck.errors import ArtifactError, UsageError

KIND = b"PC"
MOST = 1 << 20  # images of one stream: a forged header cannot ask for more memory than that


class CircuitCodec:
    """uint8 images (N, D), or values below V, to bytes and back without loss, all images in one stream.

        kind | model's checksum | N | D | coder state and bytes | CRC-32

    `products` counts the matrix products of the last call. encode: values (N, D) whole numbers -> bytes. decode: bytes -> (N, D) uint8,
    or int64 where values exceed a byte. Raises UsageError for values that the model does not have, ArtifactError for a stream
    that is cut off, altered or of another model.
    Source: Liu, Mandt and Van den Broeck, "Lossless Compression with Probabilistic Circuits", ICLR 2022, section 3: their order and
    partial evaluation bound the cost by O(log D) circuits; on a tree, depth-first messages need two.
    """

    def __init__(self, model: HiddenTree):
        self.parents: list[int] = model.parents.tolist()
        self.transitions, self.emissions = (
            x.detach().cpu().to(torch.float64).numpy() for x in (model.transitions, model.emissions)
        )
        self.values = self.emissions.shape[2]
        contents = (model.parents, model.transitions, model.emissions)
        self.checksum = 0
        for tensor in contents:
            self.checksum = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), self.checksum)
        self.visits = _visits(self.parents)
        self.products = 0

    def encode(self, x: Tensor) -> bytes:
        count, width = x.shape
        if (
            x.is_floating_point()
            or width != len(self.parents)
            or (x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.values)
        ):
            raise UsageError(
                f"values of shape {tuple(x.shape)} ({x.dtype}) must be whole numbers (N, {len(self.parents)}) below {self.values}"
            )
        data = x.cpu().numpy().astype(numpy.int64)
        begins, sizes, rows = [], [], numpy.arange(count)
        walk = self.conditionals(count)
        node, table = next(walk)
        while True:
            symbols = data[:, node]
            begins.append(rans.starts(table)[rows, symbols])
            sizes.append(table[rows, symbols])
            try:
                node, table = walk.send(symbols)
            except StopIteration:
                break
        payload = rans.encode(numpy.concatenate(begins).tolist(), numpy.concatenate(sizes).tolist())
        return rans.seal(KIND, (self.checksum, count, width), payload)

    def decode(self, data: bytes) -> Tensor:
        (checksum, count, width), payload = rans.unseal(KIND, 3, data)
        if checksum != self.checksum or width != len(self.parents):
            raise ArtifactError("the stream was made with another model: decode it with that one")
        if count > MOST:
            raise ArtifactError(f"the stream says that it holds {count} images; {MOST} are allowed")
        coder, made = rans.Decoder(payload), numpy.zeros((count, width), numpy.int64)
        walk = self.conditionals(count)
        node, table = next(walk)
        while True:
            begins = rans.starts(table)
            made[:, node] = [coder.pop(begins[row]) for row in range(count)]
            try:
                node, table = walk.send(made[:, node])
            except StopIteration:
                break
        coder.finish()
        return torch.from_numpy(made if self.values > 256 else made.astype(numpy.uint8))

    def conditionals(self, count: int) -> Generator[tuple[int, numpy.ndarray], numpy.ndarray, None]:
        """Yields (pixel, frequencies (N, V)) in coding order and takes the pixel's values (N,) back.

        belief[i]: P(z_i, all coded so far); up[i]: P(coded pixels of i's subtree | z_i); both scaled, both (K, N).
        """
        self.products = 0
        belief: dict[int, numpy.ndarray] = {}
        up: dict[int, numpy.ndarray] = {}
        for node, enter in self.visits:
            parent = self.parents[node]
            if enter:
                if parent < 0:
                    prior = numpy.repeat(self.transitions[node, 0][:, None], count, 1)
                else:
                    prior = self._product(self.transitions[node].T, belief[parent])
                prior = _scaled(prior)
                symbols = yield node, rans.frequencies(_mix(self.emissions[node].T, prior).T)
                own = self.emissions[node][:, symbols]
                up[node], belief[node] = own, _scaled(prior * own)
            else:
                below, _ = up.pop(node), belief.pop(node)
                if parent >= 0:
                    message = self._product(self.transitions[node], below)
                    up[parent], belief[parent] = _scaled(up[parent] * message), _scaled(belief[parent] * message)

    def _product(self, matrix: numpy.ndarray, x: numpy.ndarray) -> numpy.ndarray:
        self.products += 1
        return _mix(matrix, x)


def _mix(matrix: numpy.ndarray, x: numpy.ndarray) -> numpy.ndarray:
    """matrix (A, K) times x (K, N), added up state by state in order."""
    made = matrix[:, 0, None] * x[0]
    for state in range(1, len(x)):
        made = made + matrix[:, state, None] * x[state]
    return made


def _scaled(x: numpy.ndarray) -> numpy.ndarray:
    """x (K, N) divided by its sum over the states, added up in order."""
    total = x[0]
    for state in range(1, len(x)):
        total = total + x[state]
    return x / numpy.where(total > 0, total, 1.0)


def _visits(parents: list[int]) -> list[tuple[int, bool]]:
    """The walk around the tree: (node, true) when it is entered, (node, false) when it is left."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    walk, open_ = [], [(children[-1][0], True)]
    while open_:
        node, enter = open_.pop()
        walk.append((node, enter))
        if enter:
            open_.append((node, False))
            open_ += [(child, True) for child in reversed(children.get(node, []))]
    return walk


def depths(parents: Tensor) -> Tensor:
    """How many edges lie between each node and the root: (D,)."""
    made = torch.zeros_like(parents)
    at = parents
    while bool((at >= 0).any()):
        made += (at >= 0).long()
        at = torch.where(at >= 0, parents[at.clamp_min(0)], at)
    return made
