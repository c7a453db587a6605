"""Faults in quantized tables of embeddings, in caches of keys and values, in models read block by block, and in dynamic ranges."""

TABLES, CACHE, FOLDER = (
    "tests/quantization/test_embeddings.py",
    "tests/inference/test_quantized_cache.py",
    "tests/quantization/test_from_folder.py",
)
GENERATION = "inference/kv_cache/generation.py"

RATE = "tests/test_quantized.py::test_training_takes_the_rate_of_its_width"
FAULTS = [
    ("tables: parameters of the first rows", "quantization/quantized_embedding.py", "t if shared else t[index]", "t if shared else t[: len(index)]", TABLES),
    ("tables: a scale per column", "quantization/quantized_embedding.py", "all(stored[:1] == shape[:1] for", "all(True for", TABLES),
    ("tables: always float32", "quantization/embeddings.py", '"compute": compute}', '"compute": "float32"}', TABLES),
    ("tables: tied ones as well", "quantization/quantize.py", "if id(model.get_submodule(name)) != id(module)]", "if False]", TABLES),
    ("tables: trained as layers", "quantization/quantize.py", "isinstance(module, nn.Embedding) and not embeddings", "False", TABLES),
    ("tables in graphs: zero points left out", "export/qdq.py", "if self.zero is not None:", "if False:", "tests/export/test_quantized_tables.py"),
    ("tables: scales as usual whatever is asked for", "quantized.py", '"scale_type": settings.scale_type, ', "", TABLES),
    ("gptq folders: heads are packed", "export/gptq.py", "[path for path in linears if is_head(model, path)]", "[]", "tests/export/test_gptq_layout.py"),
    ("cache: keys along the token", "inference/kv_cache/quantized.py", 'turned = along == "channel"', 'turned = along == "token"', CACHE),
    ("cache: recent tokens packed", "inference/kv_cache/quantized.py", "max(0, length - self.recent)", "max(0, length)", CACHE),
    ("cache: new tokens rounded at once", GENERATION, "[piece.unpack() for piece in self.pieces] + [tuple(recent)]", "[piece.unpack() for piece in self.pieces] + [self.settings.pack(*recent).unpack()]", CACHE),
    ("cache: packed pieces keep the order of the beam", GENERATION, "self.pieces = [piece.select(rows) for piece in self.pieces]", "pass", CACHE),
    ("cache: the length stays after a crop", GENERATION, "self.length -= tokens_to_remove", "pass", CACHE),
    ("cache: packed tokens are cropped silently", GENERATION, "if tokens_to_remove > self.keys.shape[-2]:", "if False:", CACHE),
    ("folder: what calibration changed is lost", "quantization/from_folder.py", "model.get_parameter(name).data.copy_(value)", "pass", FOLDER),
    ("folder: to the nearest whatever was asked", "quantization/from_folder.py", "rounding.layer(weight, None, quantizers[path]) if data_free", "specification.encode(weight) if data_free", FOLDER),
    ("one call: scales of the ends as usual", "quantized.py", "batch_size, compute, scale_type).quantize(bits=ends)", "batch_size, compute).quantize(bits=ends)", "tests/test_quantized.py"),
    ("an empty model searches scales", "quantization/modules.py", "weight.is_meta or weights_follow()", "weight.is_meta", "tests/quantization/test_quantize.py"),
    ("gptq: errors move the columns before", "quantization/gptq.py", "yield low, middle, high", "yield low, high, middle", "tests/quantization/test_gptq.py"),
    ("calibration keeps what is rounded", "quantization/streaming.py", "segment.release()", "pass", "tests/quantization/test_memory.py tests/quantization/test_shards.py"),
    ("dynamic inputs: one range for all rows", "quantization/modules.py", "scale.flatten(), 0, grid, PerChannel(0)", "scale.amax().expand(len(x)), 0, grid, PerChannel(0)", "tests/quantization/test_quantize.py"),
    ("quantized: one rate for every width", "quantized.py", "dataclasses.replace(TRAINING, learning_rate=RATES[width])", "TRAINING", RATE),
    ("methods: decoupleQ at one rate", "quantization/methods.py", "learning_rate=1e-3 * 4.0 ** (2 - s.bits)", "learning_rate=1e-3", "tests/test_quantized.py::test_the_rate_of_decoupleq_falls_with_the_steps_of_its_grid"),
    ("bits: the rest of a code from the wrong bit", "quantization/packing.py", "<< (8 - shift)", "<< (7 - shift)", "tests/laws/test_packed_bytes.py tests/laws/test_grid_laws.py"),
    ("bits: the rest of a code into the wrong bit", "quantization/packing.py", ">> (8 - shift)", ">> (7 - shift)", "tests/laws/test_packed_bytes.py tests/laws/test_grid_laws.py"),
    ("levels: the middle belongs to the upper one", "quantization/levels.py", "found += ratio > limit", "found += ratio >= limit", "tests/quantization/test_level_grids.py"),
    ("blocks: the error of the block as it was", "quantization/reconstruction.py", "first_tensor(c.run(run, x)) for c, x in zip(segment.calls, segment.hidden))", "first_tensor(c.run(segment.block, x)) for c, x in zip(segment.calls, segment.hidden))", "tests/quantization/test_decoupled.py tests/quantization/test_adaptive_rounding.py"),
    ("quantized: codes move at one rate", "quantized.py", ", rate=CODE_RATE * config.learning_rate", "", RATE),
]  # fmt: skip
