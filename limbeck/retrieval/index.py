"""An index of documents in a few bytes each: inverted lists, and product-quantized residuals within them.

d -> R d = c(d) + r,    stored: the number of the list c(d) is the centroid of, and P codes of r
query q: the `probe` lists with the largest <R q, c>, and in them the documents with the largest <R q, c(d) + r'>
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limbeck.codecs.vector_quantization import kmeans, nearest
from limbeck.errors import UsageError
from limbeck.retrieval import product_quantization as product


class QuantizedIndex(nn.Module):
    """Inverted lists and product quantization over fixed document vectors; centroids and codebooks are parameters.

    Buffers: rotation (D, D), lists (N,) and codes (N, P), both uint8 or int32. Parameters: centroids (L, D), codebooks (P, K, D / P).
    `QuantizedIndex.fit` learns all of it by k-means; `assign` recomputes the codes when the parameters moved. The lists of the
    documents stay what they were.
    """

    def __init__(self, rotation: Tensor, centroids: Tensor, codebooks: Tensor, lists: Tensor):
        super().__init__()
        parts, count, piece = codebooks.shape
        if parts * piece != rotation.shape[0] or centroids.shape[1] != rotation.shape[0]:
            raise UsageError(
                f"QuantizedIndex: rotation {tuple(rotation.shape)}, centroids {tuple(centroids.shape)} and codebooks "
                f"{tuple(codebooks.shape)} must be (D, D), (L, D) and (P, K, D / P)"
            )
        self.register_buffer("rotation", rotation.detach().clone())
        self.register_buffer("lists", lists.to(_small(len(centroids))))
        self.register_buffer("codes", torch.zeros(len(lists), parts, dtype=_small(count)))
        self.centroids = nn.Parameter(centroids.detach().clone())
        self.codebooks = nn.Parameter(codebooks.detach().clone())

    @classmethod
    def fit(
        cls,
        documents: Tensor,
        lists: int = 16,
        parts: int = 8,
        codes: int = 16,
        rounds: int = 0,
        iterations: int = 25,
        generator: torch.Generator | None = None,
    ) -> QuantizedIndex:
        """The index of documents (N, D) that minimizes the distortion.

        rounds: of the rotation's optimization (OPQ); 0: no rotation. iterations: of every k-means. Raises UsageError for sizes that
        cannot be.
        """
        for name, value in (("lists", lists), ("parts", parts), ("codes", codes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < (2 if name == "codes" else 1):
                raise UsageError(f"QuantizedIndex: {name}={value!r} is too small or no whole number")
        centroids = kmeans(documents, lists, iterations, generator)
        members = nearest(documents.unsqueeze(1), centroids.unsqueeze(0))[:, 0]
        residual = documents - centroids[members]
        if rounds:
            rotation, codebooks = product.fit_rotation(residual, parts, codes, generator, rounds, iterations)
        else:
            rotation = torch.eye(documents.shape[1])
            codebooks = product.fit_codebooks(residual, parts, codes, generator, iterations)
        made = cls(rotation, centroids @ rotation, codebooks, members)
        made.assign(documents)
        return made

    @torch.no_grad()
    def assign(self, documents: Tensor) -> None:
        """Compute the documents' codes anew."""
        members = self.lists.long()
        self.codes = product.encode(documents @ self.rotation - self.centroids[members], self.codebooks).to(self.codes)

    def reconstruct(self, documents: Tensor, rows: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """For training: rotated centroids and rotated reconstructions (U, D) of the documents (U, D) numbered `rows` (U,).

        temperature: of the soft choice of codes, which only the gradient sees."""
        centres = self.centroids[self.lists[rows].long()]
        residual = documents @ self.rotation - centres
        return centres, centres + product.straight_through(residual, self.codebooks, temperature)

    @property
    def bytes_per_document(self) -> float:
        """Of the list's number and the codes, as bits packed one after the other."""
        parts, count, _ = self.codebooks.shape
        return (math.ceil(math.log2(max(len(self.centroids), 2))) + parts * math.ceil(math.log2(count))) / 8

    @torch.no_grad()
    def search(self, queries: Tensor, count: int = 10, probe: int | None = None) -> Tensor:
        """Numbers (Q, count) of the best documents by the quantized inner product, best first; -1 where the lists hold too few.

        probe: how many lists are looked into; None: all. Scores are sums of P + 1 table entries, no vector is reconstructed.
        """
        if not 1 <= count <= len(self.lists) or (probe is not None and not 1 <= probe <= len(self.centroids)):
            raise UsageError(
                f"search: count={count}, probe={probe}: there are {len(self.lists)} documents in {len(self.centroids)} lists"
            )
        rotated = queries @ self.rotation
        by_list = rotated @ self.centroids.T
        tables = torch.einsum("pqd,pkd->qpk", product.cut(rotated, len(self.codebooks)), self.codebooks)
        members = self.lists.long()
        scores = by_list[:, members]
        for part in range(tables.shape[1]):
            scores = scores + tables[:, part, self.codes[:, part].long()]
        if probe is not None:
            seen = torch.zeros_like(by_list, dtype=torch.bool).scatter_(1, by_list.topk(probe).indices, True)
            scores = scores.masked_fill(~seen[:, members], -torch.inf)
        best = scores.topk(count)
        return best.indices.masked_fill(best.values == -torch.inf, -1)


def _small(count: int) -> torch.dtype:
    return torch.uint8 if count <= 256 else torch.int32
