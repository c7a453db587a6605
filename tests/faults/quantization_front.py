"""Faults in the front door of quantization: which bits, which examples, what a plan keeps, and text of several columns."""

TESTS = "tests/test_quantized.py::"
FRONT = "quantized.py"

FAULTS = [
    ("one call: ends as narrow as the rest", FRONT, "(*patterns[1], *outer), examples", "patterns[1], examples", TESTS + "test_layers_outside_the_blocks_keep_eight_bits"),
    ("one call: the given model is changed", FRONT, "copy.deepcopy(model).eval()", "model.eval()", TESTS + "test_every_method_gives_a_smaller_model_and_leaves_the_given_one[8-dynamic]"),
    ("one call: learned scales stay in the lineage", FRONT, '{**entry["weight"], "scale": None}', '{**entry["weight"]}', TESTS + "test_its_artifact_reloads_and_holds_the_bytes_that_it_says[trained]"),
    ("one call: the seed draws nothing", "tasks/drawn.py", "seed=self.seed)", "seed=0)", TESTS + "test_a_seed_draws_the_examples"),
    ("one call: the first default whatever is given", FRONT, "DEFAULTS[width][task is not None]", "DEFAULTS[width][0]", TESTS + "test_the_default_method_depends_on_data"),
    ("one call: the rotation is left out", "quantization/methods.py", "(Rotate(), *_gptq(s))", "_gptq(s)", TESTS + "test_methods_are_composed_as_they_say"),
    ("one call: batch norms stay", FRONT, 'return plan if plan.decisions["pairs"] else None', "return None", TESTS + "test_batch_norms_are_folded_first"),
    ("columns: the first alone", "tasks/language.py", "[text for row in zip(*texts) for text in row]", "[row[0] for row in zip(*texts)]", "tests/tasks/test_tasks_language.py::test_columns_are_joined_row_by_row"),
    ("columns: one column after the other", "tasks/language.py", "[text for row in zip(*texts) for text in row]", "[text for column in texts for text in column]", "tests/tasks/test_tasks_language.py::test_columns_are_joined_row_by_row"),
    ("int4 kernel: offsets of affine grids on the wrong side", "quantization/modules.py", "middle - zero.float() / scale", "middle + zero.float() / scale", "tests/quantization/test_quantized_grids.py"),
]  # fmt: skip
