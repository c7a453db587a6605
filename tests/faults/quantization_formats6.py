"""Faults in the formats that others load."""

NBITS = "tests/export/test_export_nbits.py"
FOLDER = "tests/export/test_compressed_tensors.py"
GPTQ = "tests/export/test_gptq_layout.py"
GGUF = "tests/export/test_gguf.py"

FAULTS = [
    (
        "nbits: scales of the wrong group",
        "export/integers.py",
        "first = torch.arange(0, self.shape[1], size) // self.group",
        "first = torch.arange(0, self.shape[1], size) // size",
        NBITS,
    ),
    (
        "nbits: the middle is one off",
        "export/integers.py",
        "middle = 2 ** (bits - 1)",
        "middle = 2 ** (bits - 1) - 1",
        GGUF,
    ),
    (
        "nbits: the sign of real zero points",
        "export/nbits.py",
        "weight.blocks(-weight.offset / weight.scale",
        "weight.blocks(weight.offset / weight.scale",
        NBITS,
    ),
    (
        "nbits: the level is never set",
        "export/onnx.py",
        "            nbits.set_accuracy_level(file, accuracy_level)\n",
        "",
        NBITS,
    ),
    (
        "compressed-tensors: input zero points unsigned",
        "export/compressed_tensors.py",
        "inputs.zero_point - 128",
        "inputs.zero_point - 127",
        FOLDER,
    ),
    (
        "compressed-tensors: float layers not named",
        "export/compressed_tensors.py",
        '"ignore": other_linears(model)',
        '"ignore": []',
        FOLDER,
    ),
    (
        "compressed-tensors: zero points packed along the inputs",
        "export/compressed_tensors.py",
        "words(zero, bits, axis=0)",
        "words(zero, bits)",
        FOLDER,
    ),
    (
        "gptq: zero points as they are in the first version",
        "export/gptq.py",
        "zero if second else zero - 1",
        "zero",
        GPTQ,
    ),
    (
        "gptq: a zero point of 0 in the first version",
        "export/gptq.py",
        "(weight.zero == 0).any()",
        "(weight.zero < 0).any()",
        GPTQ,
    ),
    (
        "gptq: codes packed along the outputs",
        "export/gptq.py",
        "words(codes.t(), bits, axis=0)",
        "words(codes, bits).t()",
        GPTQ,
    ),
    (
        "gguf: head rows left in transformers' order",
        "export/gguf.py",
        "data = data[row_order(len(data), count).numpy()]",
        "data = data[row_order(len(data), count).sort().values.numpy()]",
        GGUF,
    ),
    (
        "gguf: the key's heads counted as the query's",
        "export/gguf.py",
        '"self_attn.k_proj": config.num_key_value_heads',
        '"self_attn.k_proj": config.num_attention_heads',
        GGUF,
    ),
    (
        "gguf: neighbours share a byte",
        "export/gguf_blocks.py",
        "halves[:, :, 0] | halves[:, :, 1] << 4",
        "halves[:, :, 1] | halves[:, :, 0] << 4",
        GGUF,
    ),
    (
        "gguf: the minima of the last four parts",
        "export/gguf_blocks.py",
        "ones | zero << 4",
        "ones",
        GGUF,
    ),
    (
        "gguf: scales rounded in silence",
        "export/integers.py",
        "if not torch.equal(half.float(), weight.scale):",
        "if not torch.allclose(half.float(), weight.scale, rtol=1e-2):",
        GGUF,
    ),
]
