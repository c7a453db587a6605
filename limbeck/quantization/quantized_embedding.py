"""QuantizedEmbedding: a table whose rows are packed on any grid that stores row by row; only rows that are looked up are decoded.

Buffers as in `limbeck.quantization.modules`: a table of n rows and d columns is a weight matrix (n, d).
"""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import PerTensor
from limbeck.quantization.modules import QuantizedModule
from limbeck.quantization.specification import COMPUTE, Specification


def stores_rows(specification: Specification, shape: tuple[int, int]) -> bool:
    """Whether every row of a matrix (n, d) has codes and parameters of its own, or parameters that all rows share."""
    layout = dict(specification.quantizer.layout(shape))
    if isinstance(specification.granularity, PerTensor):
        layout = {"codes": layout["codes"]}
    return all(stored[:1] == shape[:1] for stored, _ in layout.values())


class QuantizedEmbedding(QuantizedModule):
    """Rows of a packed table: whole numbers (...) -> (..., d), in the specification's `compute` type."""

    kernel = "rows"

    def __init__(self, rows: int, columns: int, specification: Specification, padding_idx: int | None = None):
        super().__init__(specification, (rows, columns), None)
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, columns, padding_idx

    def rows(self, index: Tensor) -> Packed:
        """The packed rows (m, d) that `index` (m) names, as they are stored."""
        stored = self.packed
        shared = isinstance(self.specification.granularity, PerTensor)
        named = {name: t if shared else t[index] for name, t in stored.tensors.items() if name != "codes"}
        scale, zero, book = (named.get(name) for name in ("scale", "zero_point", "codebook"))
        return Packed(stored.codes[index], scale, zero, (len(index), self.embedding_dim), book)

    def forward(self, index: Tensor) -> Tensor:
        kind = COMPUTE[self.specification.compute]
        if not index.numel():
            return self.weight_codes.new_zeros((*index.shape, self.embedding_dim), dtype=kind)
        values = self.specification.quantizer.decode(self.rows(index.reshape(-1)))
        return values.to(kind).view(*index.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


def float_table(module: QuantizedEmbedding) -> nn.Embedding:
    """The table that the codes stand for, as a float module."""
    return nn.Embedding.from_pretrained(module.weight, padding_idx=module.padding_idx).train(module.training)
