"""GGUF files in llama.cpp itself, where llama-cpp-python is installed: logits, and how text is split."""

import numpy as np
import pytest
import torch
from format_models import model_of, quantized

from limbeck.datasets.tokenize import train_tokenizer
from limbeck.export.gguf import export_gguf
from limbeck.quantization import plain_kernels

pytestmark = pytest.mark.slow
TEXT = "First Citizen: Before we proceed any further, hear me speak. I'm 12 years old; we'll see.\n\n  Good."


class Session:
    """One file, opened without repacked weights, on one thread."""

    def __init__(self, path):
        self.api = pytest.importorskip("llama_cpp")
        settings = self.api.llama_model_default_params()
        settings.use_mmap, settings.use_extra_bufts = False, False
        self.model = self.api.llama_model_load_from_file(str(path).encode(), settings)
        self.vocabulary = self.api.llama_model_get_vocab(self.model)

    def tokens(self, text):
        found = (self.api.llama_token * 512)()
        data = text.encode()
        count = self.api.llama_tokenize(self.vocabulary, data, len(data), found, 512, False, False)
        return list(found[:count])

    def logits(self, tokens):
        settings = self.api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 128
        settings.n_threads = settings.n_threads_batch = 1
        settings.flash_attn_type = settings.type_k = settings.type_v = 0  # no fused attention, a cache in float32
        context = self.api.llama_init_from_model(self.model, settings)
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        assert self.api.llama_decode(context, batch) == 0
        size = (self.api.llama_vocab_n_tokens(self.vocabulary),)
        rows = [self.api.llama_get_logits_ith(context, place) for place in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, size).copy() for row in rows])


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_llama_cpp_computes_and_splits_the_same(tmp_path, name, kind):
    tokenizer = train_tokenizer([TEXT] * 3, kind, 320)
    model = model_of(name, vocab_size=320)
    for settings, limit in ((None, 1e-5), ({"bits": 4, "weights": 32}, 0.05), ({"bits": 8, "weights": 32}, 0.05)):
        made = model if settings is None else quantized(model, **settings)
        tokens = tokenizer(TEXT)["input_ids"]
        export_gguf(made, {"input_ids": torch.tensor([tokens])}, tmp_path / "m.gguf", tokenizer=tokenizer)
        session = Session(tmp_path / "m.gguf")
        assert session.tokens(TEXT) == tokens
        with torch.no_grad(), plain_kernels():
            expected = made(input_ids=torch.tensor([tokens])).logits[0].numpy()
        assert np.abs(session.logits(tokens) - expected).max() <= limit * np.abs(expected).max()
