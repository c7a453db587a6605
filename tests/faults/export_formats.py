"""Faults in the formats that others load."""

NBITS = "tests/export/test_export_nbits.py::test_every_grid_computes_what_its_weights_say"
LEVEL = "tests/export/test_export_nbits.py::test_a_decoder_with_any_batch_and_length_and_integer_activations"
FOLDER = "tests/export/test_compressed_tensors.py::test_transformers_loads_the_same_weights"
SEVERAL = "tests/export/test_compressed_tensors.py::test_several_widths_and_float_layers"
GPTQ = "tests/export/test_gptq_layout.py::test_the_layout_holds_the_stored_weights"
SECOND = "tests/export/test_gptq_layout.py::test_a_zero_point_of_0_needs_the_second_version"
BLOCKS = "tests/export/test_gguf.py::test_blocks_decode_to_the_stored_weights"
HEADS = "tests/export/test_gguf.py::test_transformers_reads_the_same_weights"
EXACT = "tests/export/test_gguf.py::test_what_no_block_holds"
LOST = "tests/test_exports.py::test_what_lost_quality_is_put_aside"
FRONT = "tests/test_exports.py::test_names_and_settings"
TOKENS = "tests/export/test_export_qdq.py::test_dynamic_inputs_with_a_range_per_token_are_what_torch_computes"

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
        NBITS,
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
        LEVEL,
    ),
    (
        "compressed-tensors: input zero points unsigned",
        "export/compressed_tensors.py",
        "inputs.zero_point - 128",
        "inputs.zero_point - 127",
        FOLDER + "[static_inputs]",
    ),
    (
        "compressed-tensors: float layers not named",
        "export/compressed_tensors.py",
        '"ignore": other_linears(model)',
        '"ignore": []',
        SEVERAL,
    ),
    (
        "compressed-tensors: zero points packed along the inputs",
        "export/compressed_tensors.py",
        "words(zero, bits, axis=0)",
        "words(zero, bits)",
        FOLDER + "[zero_points]",
    ),
    (
        "gptq: zero points as they are in the first version",
        "export/gptq.py",
        "zero if second else zero - 1",
        "zero",
        GPTQ + "[symmetric]",
    ),
    (
        "gptq: a zero point of 0 in the first version",
        "export/gptq.py",
        "(weight.zero == 0).any()",
        "(weight.zero < 0).any()",
        SECOND,
    ),
    (
        "gptq: inputs dealt out to the groups in turn",
        "export/gptq.py",
        "(torch.arange(columns) // weight.group)",
        "(torch.arange(columns) % weight.scale.shape[1])",
        GPTQ + "[symmetric]",
    ),
    (
        "gguf: head rows left in transformers' order",
        "export/gguf.py",
        "data = data[row_order(len(data), count).numpy()]",
        "data = data[row_order(len(data), count).sort().values.numpy()]",
        HEADS + "[llama]",
    ),
    (
        "gguf: the key's heads counted as the query's",
        "export/gguf.py",
        '"self_attn.k_proj": config.num_key_value_heads',
        '"self_attn.k_proj": config.num_attention_heads',
        HEADS + "[llama]",
    ),
    (
        "gguf: neighbours share a byte",
        "export/gguf_blocks.py",
        "halves[:, :, 0] | halves[:, :, 1] << 4",
        "halves[:, :, 1] | halves[:, :, 0] << 4",
        BLOCKS,
    ),
    (
        "gguf: the minima of the last four parts",
        "export/gguf_blocks.py",
        "ones | zero << 4",
        "ones",
        BLOCKS,
    ),
    (
        "gguf: scales rounded in silence",
        "export/integers.py",
        "if not torch.equal(half.float(), weight.scale):",
        "if not torch.allclose(half.float(), weight.scale, rtol=1e-2):",
        EXACT,
    ),
    (
        "exports: a folder's lost quality goes unseen",
        "exports.py",
        '    refuse_loss(path, task, reference, metrics, allowed, f"as {form}")\n',
        "",
        LOST,
    ),
    (
        "exports: settings of another form pass",
        "exports.py",
        "if unknown := set(given) - set(SETTINGS.get(name, ())):",
        "if unknown := set():",
        FRONT,
    ),
    (
        "graphs: the tokens' scales are left out",
        "export/qdq.py",
        "product * self.weight_scale * scale if self.by_token",
        "product * self.weight_scale if self.by_token",
        TOKENS,
    ),
    (
        "graphs: one range for all tokens",
        "export/qdq.py",
        "x.abs().amax(-1, keepdim=True) / 127",
        "x.abs().amax() / 127",
        TOKENS,
    ),
]
