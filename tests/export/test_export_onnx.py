"""Exported graphs against torch, at several sizes, precisions and with faults planted on the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from limbeck.export import OnnxModel, export_onnx


def small_bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50, max_position_embeddings=32
    )  # fmt: skip
    return BertModel(config).eval()


def tokens(rows: int = 2, length: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    return {"input_ids": torch.randint(0, 50, (rows, length), generator=generator), "attention_mask": mask}


class SmallConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values).flatten(1))


@pytest.mark.parametrize(
    ("precision", "optimize", "tolerance"),
    [("float32", None, 1e-4), ("float32", "bert", 1e-4), ("int8_dynamic", None, 0.1), ("int8_dynamic", "bert", 0.1)],
)
def test_bert_equals_torch_at_other_sizes_and_paddings(tmp_path, precision, optimize, tolerance):
    model = small_bert()
    result = export_onnx(model, tokens(), tmp_path / "m.onnx", precision=precision, optimize=optimize)
    assert result.difference <= tolerance and result.checks >= 5
    assert result.bytes == (tmp_path / "m.onnx").stat().st_size and len(list(tmp_path.iterdir())) == 1
    runner = OnnxModel(tmp_path / "m.onnx", threads=1)
    for rows, length in ((1, 3), (7, 20)):
        batch = tokens(rows, length)
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
        assert (runner(batch) - expected).abs().max() <= tolerance * expected.abs().max()
