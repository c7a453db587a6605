"""The tables: transformer blocks and whole models by class, and the layers that each of their parts consists of."""

from __future__ import annotations

from dataclasses import dataclass

NORMS = (
    "LayerNorm",
    "RMSNorm",
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "Qwen2RMSNorm",
)  # output: weight * normalized (+ bias)


@dataclass(frozen=True)
class Part:
    """One residual branch of a block: `norm` (None where the branch reads the stream as it is), the submodule `inside` which
    holds exactly the layers that read its input (`readers`) and that write its output (`writers`); `factor`: the layer of a
    product. Names within `inside`, with `*`."""

    norm: str | None
    inside: str
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    factor: str | None = None


@dataclass(frozen=True)
class Root:
    """A whole model: what its residual stream begins with, its blocks, the last norm and the heads that alone read it.

    `embeddings`: modules (embedding tables, a convolution of patches), `parameters`: bare parameters (..., width); of both those
    that are there."""

    embeddings: tuple[str, ...]
    blocks: str
    norm: str
    heads: tuple[str, ...]
    parameters: tuple[str, ...] = ()


_LLAMA = (
    Part("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj"), ("o_proj",)),
    Part("post_attention_layernorm", "mlp", ("gate_proj", "up_proj"), ("down_proj",), "up_proj"),
)
_OURS = (
    Part("norm1", "attention", ("query", "key", "value"), ("output",)),
    Part("norm2", "feed_forward", ("up",), ("down",)),
    Part("norm2", "feed_forward", ("router", "experts.*.up"), ("experts.*.down",)),
)
BLOCKS: dict[str, tuple[Part, ...]] = {
    "limbeck.models.layers:Block": _OURS,
    "transformers.models.llama.modeling_llama:LlamaDecoderLayer": _LLAMA,
    "transformers.models.mistral.modeling_mistral:MistralDecoderLayer": _LLAMA,
    "transformers.models.qwen2.modeling_qwen2:Qwen2DecoderLayer": _LLAMA,
    "transformers.models.gpt2.modeling_gpt2:GPT2Block": (
        Part("ln_1", "attn", ("c_attn",), ("c_proj",)),
        Part("ln_2", "mlp", ("c_fc",), ("c_proj",)),
    ),
    "transformers.models.vit.modeling_vit:ViTLayer": (
        Part("layernorm_before", "attention", ("q_proj", "k_proj", "v_proj"), ("o_proj",)),
        Part("layernorm_after", "mlp", ("fc1",), ("fc2",)),
    ),
    # the norm comes after the sum, so the stream itself is what the next layers read: only value -> output is free
    "transformers.models.bert.modeling_bert:BertLayer": (
        Part(None, "attention", ("self.query", "self.key", "self.value"), ("output.dense", "output.LayerNorm")),
    ),
}
_CAUSAL = ("model.embed_tokens",), "model.layers.*", "model.norm", ("lm_head",)
ROOTS: dict[str, Root] = {
    "limbeck.models.gpt:GPT": Root(("tokens", "positions"), "blocks.*", "norm", ("head",)),
    "limbeck.models.encoder:Encoder": Root(("tokens", "positions"), "blocks.*", "norm", ("head",)),
    "limbeck.models.vit:ViT": Root(
        ("patches",),
        "blocks.*",
        "norm",
        ("head", "distillation_head"),
        ("class_token", "distillation_token", "positions"),
    ),
    "transformers.models.llama.modeling_llama:LlamaForCausalLM": Root(*_CAUSAL),
    "transformers.models.mistral.modeling_mistral:MistralForCausalLM": Root(*_CAUSAL),
    "transformers.models.qwen2.modeling_qwen2:Qwen2ForCausalLM": Root(*_CAUSAL),
    "transformers.models.gpt2.modeling_gpt2:GPT2LMHeadModel": Root(
        ("transformer.wte", "transformer.wpe"), "transformer.h.*", "transformer.ln_f", ("lm_head",)
    ),
    "transformers.models.vit.modeling_vit:ViTForImageClassification": Root(
        ("vit.embeddings.patch_embeddings.projection",),
        "vit.layers.*",
        "vit.layernorm",
        ("classifier",),
        ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings"),
    ),
}
