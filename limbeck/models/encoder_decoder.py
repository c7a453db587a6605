"""A small encoder-decoder, the same with token deletion in its encoder, and a decoder-only model behind the same interface."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.deletion import DeleteGate, FixedGate, delete
from limbeck.models.gpt import GPT, gpt
from limbeck.models.layers import Attention, Block, FeedForward, SoftmaxOne, check_length, check_sizes, initialize

if TYPE_CHECKING:
    from limbeck.inference.kv_cache import KeyValueCache

GATES = ("learnt", "random", "stride")


class DecoderBlock(nn.Module):
    """x += attention(norm1(x));  x += reading(norm2(x), source);  x += feed_forward(norm3(x)).  (B, L, width) -> (B, L, width)"""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads)
        self.reading = Attention(width, heads)
        self.feed_forward = FeedForward(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, memory: tuple[Tensor, Tensor], source_mask=None, cache=None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache))
        x = x + self.dropout(self.reading(self.norm2(x), source_mask, memory=memory))
        return x + self.dropout(self.feed_forward(self.norm3(x)))


class EncoderDecoder(nn.Module):
    """One token embedding for source, target and head; learnt positions; pre-norm blocks.

    `forward(input_ids, decoder_input_ids, attention_mask=None)`: source (B, S) and targets so far (B, D) -> logits
    (B, D, vocabulary), where logits[:, t] predicts the target after decoder_input_ids[:, t].

    With a gate (`limbeck.models.deletion`) the encoder deletes tokens after `gate_after` blocks: softly while it trains, hard in
    evaluation, so that later blocks and the decoder compute and read fewer tokens; `soft` (None: as said) decides otherwise.
    All attention that reads gated tokens then has a `SoftmaxOne`.
    """

    def __init__(
        self,
        vocabulary: int,
        source: int,
        target: int,
        encoder_depth: int,
        decoder_depth: int,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        gate: nn.Module | None,
        gate_after: int,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(source, width)
        self.target_positions = nn.Embedding(target, width)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(encoder_depth))
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderBlock(width, heads, hidden, dropout) for _ in range(decoder_depth))
        self.last_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        initialize(self, encoder_depth + decoder_depth)
        self.head.weight = self.tokens.weight
        self.gate, self.gate_after, self.soft = gate, gate_after, None
        if gate is not None:
            for block in self.encoder[gate_after:]:
                block.attention.weights = SoftmaxOne()
            for block in self.decoder:
                block.reading.weights = SoftmaxOne()

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The states of the source and the mask that attention to them needs: (B, K, width) and (B, 1, 1, K)."""
        length = input_ids.shape[1]
        check_length("encoder_decoder", length, self.positions.num_embeddings)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.dropout(self.tokens(input_ids) + self.positions(torch.arange(length, device=input_ids.device)))
        for index, block in enumerate(self.encoder):
            if self.gate is not None and index == self.gate_after:
                x, mask = self._gated(x, attention_mask)
            x = block(x, mask)
        return self.norm(x), mask

    def _gated(self, x: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        gate = self.gate(x)
        if attention_mask is not None:
            gate = gate.masked_fill(~attention_mask.bool(), float("-inf"))
        if not (self.training if self.soft is None else self.soft):
            x, gate = delete(x, gate, self.gate.floor)
        return x, gate[:, None, None, :]

    def decode(
        self,
        decoder_input_ids: Tensor,
        memories: list[tuple[Tensor, Tensor]],
        source_mask: Tensor | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Logits (B, D, vocabulary) of targets that continue the cache, from `memories` of the source."""
        start = 0 if cache is None else cache.length
        total = start + decoder_input_ids.shape[1]
        check_length("encoder_decoder", total, self.target_positions.num_embeddings)
        place = torch.arange(total, device=decoder_input_ids.device)
        mask = place <= place[start:, None]
        x = self.dropout(self.tokens(decoder_input_ids) + self.target_positions(place[start:]))
        for index, (block, memory) in enumerate(zip(self.decoder, memories)):
            extend = None if cache is None else functools.partial(cache.extend, index)
            x = block(x, mask, memory, source_mask, extend)
        return self.head(self.last_norm(x))

    def memories(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The keys and values every decoder block reads of the source: computed once per source."""
        return [block.reading.memory(states) for block in self.decoder]

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states, mask = self.encode(input_ids, attention_mask)
        return self.decode(decoder_input_ids, self.memories(states), mask)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, start: int, count: int, attention_mask: Tensor | None = None) -> Tensor:
        """The likeliest `count` targets one by one, with a cache: (B, count)."""
        from limbeck.inference.kv_cache import KeyValueCache

        states, mask = self.encode(input_ids, attention_mask)
        memories, cache = self.memories(states), KeyValueCache(len(self.decoder))
        token = torch.full_like(input_ids[:, :1], start)
        out = []
        for _ in range(count):
            token = self.decode(token, memories, mask, cache)[:, -1:].argmax(-1)
            out.append(token)
        return torch.cat(out, 1)


class PrefixDecoder(nn.Module):
    """A decoder-only model that takes and answers what an encoder-decoder does, so that one can teach the other.

    It reads the source, moved to the right end of `source` positions (padding to its left), then the targets without their start
    token; of its logits those from the source's last token on are returned: (B, D, vocabulary), aligned with an
    encoder-decoder's. Source: the scheme of Elfeki et al., "Return of the Encoder", 2025, and of the authors' code.
    """

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        source, mask = left_padded(input_ids, attention_mask)
        whole = torch.cat([source, decoder_input_ids[:, 1:]], 1)
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(decoder_input_ids[:, 1:])], 1)
        return self.model(whole, mask)[:, input_ids.shape[1] - 1 :]

    @torch.no_grad()
    def generate(self, input_ids: Tensor, start: int, count: int, attention_mask: Tensor | None = None) -> Tensor:
        """As of `EncoderDecoder`; `start` is not read."""
        from limbeck.inference.kv_cache import KeyValueCache

        token, mask = left_padded(input_ids, attention_mask)
        cache, out = KeyValueCache(len(self.model.blocks)), []
        for _ in range(count):
            token = self.model(token, mask, cache=cache)[:, -1:].argmax(-1)
            mask = None if mask is None else torch.cat([mask, torch.ones_like(token)], 1)
            out.append(token)
        return torch.cat(out, 1)


def left_padded(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The tokens that count at the right end of each row, in their order, and their mask: (B, S) each."""
    if attention_mask is None:
        return input_ids, None
    order = attention_mask.bool().to(torch.int8).argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def encoder_decoder(
    vocabulary: int,
    source: int = 128,
    target: int = 32,
    encoder_depth: int = 4,
    decoder_depth: int = 2,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.0,
    gate: str | None = None,
    gate_after: int = 1,
    rate: float = 0.5,
) -> EncoderDecoder:
    """An encoder-decoder for up to `source` and `target` tokens; `hidden` is the feed-forward width, by default 4 x width.

    gate: None; "learnt" (a `DeleteGate`), "random" or "stride" (a `FixedGate` that deletes the share `rate`), after `gate_after`
    encoder blocks. Raises UsageError for bad sizes.
    """
    hidden = 4 * width if hidden is None else hidden
    sizes = {"vocabulary": vocabulary, "source": source, "target": target, "hidden": hidden}
    sizes |= {"encoder_depth": encoder_depth, "decoder_depth": decoder_depth}
    check_sizes("encoder_decoder", width, heads, dropout, **sizes)
    if gate not in (None, *GATES):
        raise UsageError(f"encoder_decoder: gate={gate!r} must be one of {', '.join(GATES)}, or None")
    if gate and not 1 <= gate_after < encoder_depth:
        raise UsageError(
            f"encoder_decoder: gate_after={gate_after} must lie between 1 and encoder_depth - 1 = {encoder_depth - 1}: tokens "
            "need a block to pass on what they hold, and deletion a block to save"
        )
    made = None if gate is None else DeleteGate(width) if gate == "learnt" else FixedGate(rate, gate)
    model = EncoderDecoder(
        vocabulary, source, target, encoder_depth, decoder_depth, width, heads, hidden, dropout, made, gate_after
    )
    arguments = {**sizes, "width": width, "heads": heads, "dropout": dropout}
    arguments |= {"gate": gate, "gate_after": gate_after, "rate": rate} if gate else {}
    return with_lineage(model, Factory("limbeck.models.encoder_decoder:encoder_decoder", arguments))


def prefix_decoder(
    vocabulary: int, source: int = 128, target: int = 32, depth: int = 4, width: int = 128, heads: int = 4, **more
) -> PrefixDecoder:
    """A `PrefixDecoder` around a GPT for sources and targets of these lengths; `more` as in `limbeck.models.gpt`."""
    inner = gpt(vocabulary, source + target, depth, width, heads, **more)
    arguments = {"vocabulary": vocabulary, "source": source, "target": target, "depth": depth, "width": width}
    factory = Factory("limbeck.models.encoder_decoder:prefix_decoder", {**arguments, "heads": heads, **more})
    return with_lineage(PrefixDecoder(inner), factory)
