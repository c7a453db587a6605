"""The configuration of a small mixture of experts of transformers."""

MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
}
