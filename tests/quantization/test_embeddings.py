"""Tables of embeddings on grids: rows against the whole table, what is stored, what is left alone and refused."""

import copy

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import encoder, transformer
from limbeck.plan import Plan, apply
from limbeck.quantization import Quantize, QuantizedEmbedding, QuantizeEmbeddings
from limbeck.quantization.packing import unpack_bits
from limbeck.signals import call, first_tensor

SETTINGS = [
    {},
    {"weights": "tensor"},
    {"bits": 4, "weights": 16},
    {"bits": 3, "symmetric": False, "method": "mse"},
    {"grid": "affine", "bits": 2, "weights": 8},
    {"grid": "nf4", "weights": 16},
    {"grid": "ternary"},
    {"grid": "kmeans", "bits": 3},
    {"grid": "kmeans", "bits": 3, "weights": "tensor"},
    {"grid": "e8", "bits": 2},
    {"grid": "binary", "weights": "tensor"},
]
each = pytest.mark.parametrize("settings", SETTINGS, ids=str)


class Words(nn.Module):
    """A table and a layer that reads it."""

    def __init__(self, **how):
        super().__init__()
        self.table = nn.Embedding(50, 48, **how)
        self.head = nn.Linear(48, 5)

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


def quantized(model, **settings):
    model = copy.deepcopy(model)
    return apply(model, QuantizeEmbeddings(**settings).plan(model))


@each
def test_a_lookup_gives_the_rows_of_the_whole_table(settings):
    model = Words()
    made = quantized(model, **settings).table
    index = torch.randint(0, 50, (3, 4, 2))
    assert isinstance(made, QuantizedEmbedding) and made(index).shape == (3, 4, 2, 48)
    assert torch.equal(made(index), made.weight[index])
    quantizer = QuantizeEmbeddings(**settings).settings.specification.quantizer
    assert torch.equal(made.weight, quantizer.decode(quantizer.encode(model.table.weight.detach())))
    assert made.nbytes == sum(t.numel() * t.element_size() for t in made.state_dict().values()) < 50 * 48 * 4
    assert made(torch.zeros(0, 4, dtype=torch.long)).shape == (0, 4, 48)


def test_8_bits_by_hand():
    table = Words().table
    made = quantized(nn.Sequential(table))[0]
    scale = table.weight.detach().abs().amax(1) / 127
    torch.testing.assert_close(made.weight_scale, scale)
    expected = (table.weight.detach() / scale[:, None]).round() * scale[:, None]
    torch.testing.assert_close(made(torch.arange(50)), expected, rtol=0, atol=1e-6)
    assert made.nbytes == 50 * 48 + 50 * 4


def test_4_bits_by_hand():
    table = Words().table
    made = quantized(nn.Sequential(table), bits=4, weights=16)[0]
    rows, row = table.weight.detach().view(50, 3, 16), 7
    assert made.nbytes == 50 * 24 + 2 * 50 * 3 + 50 * 3  # codes, bfloat16 scales, zero points
    codes = unpack_bits(made.weight_codes[row], 4, 48).view(3, 16).float()
    expected = (codes - made.weight_zero_point[row].float()[:, None]) * made.weight_scale[row].float()[:, None]
    torch.testing.assert_close(made(torch.tensor(row)), expected.flatten())
    low, high = rows[row].amin(1).clamp(max=0), rows[row].amax(1).clamp(min=0)
    half = (high - low) / 15 / 2
    assert ((made(torch.tensor(row)).view(3, 16) - rows[row]).abs() <= 1.02 * half[:, None]).all()


def test_the_type_of_the_table_is_that_of_what_is_read():
    model = Words().to(torch.bfloat16)
    made = quantized(model)
    assert made.table(torch.tensor([1])).dtype is torch.bfloat16
    assert made(torch.tensor([[1, 2]])).dtype is torch.bfloat16


def test_padding_rows_stay_zero():
    made = quantized(Words(padding_idx=3)).table
    assert made.padding_idx == 3 and not made(torch.tensor(3)).any() and made(torch.tensor(4)).any()


def test_a_saved_model_is_the_same_and_smaller(tmp_path):
    torch.manual_seed(0)
    model = encoder(200, 2, 16, 2, 32, 4).eval()
    tables = quantized(model)
    both = apply(tables, Quantize(activations=None).plan(tables))
    batch = {"input_ids": torch.randint(0, 200, (3, 9))}
    expected = first_tensor(call(both, batch))
    lb.save(both, tmp_path / "small")
    again = lb.load(tmp_path / "small")
    assert torch.equal(first_tensor(call(again, batch)), expected)
    stored = sum(v.numel() * v.element_size() for v in again.state_dict().values())
    assert stored < 0.4 * sum(v.numel() * v.element_size() for v in model.state_dict().values())


def test_one_call_quantizes_tables_when_asked():
    torch.manual_seed(0)
    model = encoder(200, 2, 16, 2, 32, 4).eval()
    floating, at_8, at_4 = (lb.quantize(model, 4, group_size=16, embeddings=bits) for bits in (None, 8, 4))
    assert "tokens" in floating.left_alone and "QuantizeEmbeddings" in floating.left_alone["tokens"]
    assert "tokens" not in at_8.left_alone and isinstance(at_8.model.tokens, QuantizedEmbedding)
    assert at_4.model.tokens.bits == 4 and at_4.nbytes < at_8.nbytes < floating.nbytes
    assert floating.nbytes - at_8.nbytes == (200 + 16) * (4 * 32 - 32 - 4)
    again = apply(copy.deepcopy(model), at_8.plan)
    batch = {"input_ids": torch.randint(0, 200, (3, 9))}
    assert torch.equal(first_tensor(call(again.eval(), batch)), first_tensor(call(at_8.model, batch)))
    half = lb.quantize(model, 4, group_size=16, scale_type="float16").model.tokens
    assert half.weight_scale.dtype is torch.float16 and at_8.model.tokens.weight_scale.dtype is torch.float32
    with pytest.raises(UsageError, match="embeddings=1: 2 to 8 bits"):
        lb.quantize(model, 4, embeddings=1)
    image = lb.models.vit(8, 4, 10, depth=2, width=32, heads=4, channels=1)
    assert lb.quantize(image, 8, embeddings=8).nbytes == lb.quantize(image, 8, embeddings=None).nbytes
    assert lb.quantize(model, 4, group_size=16).plan == at_8.plan


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64}


def test_tied_tables_are_left_alone_and_named():
    torch.manual_seed(0)
    tied = transformer("AutoModelForCausalLM", {"model_type": "llama", "tie_word_embeddings": True, **SIZES})
    with pytest.raises(UsageError, match=r"model.embed_tokens: its weight is tied to lm_head"):
        QuantizeEmbeddings().plan(tied)
    assert lb.quantize(tied, 8, embeddings=8).left_alone["model.embed_tokens"] == "its weight is tied to lm_head"
    bert = transformer("AutoModelForSequenceClassification", {"model_type": "bert", **SIZES}).eval()
    plan = QuantizeEmbeddings(ignore="*position*").plan(bert)
    assert len(plan.decisions["modules"]) == 2
    assert plan.decisions["left_alone"] == {"bert.embeddings.position_embeddings": "ignored"}
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    expected = first_tensor(call(bert, batch))
    found = first_tensor(call(apply(bert, plan), batch))
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


def test_refused():
    class Scaled(nn.Embedding):
        pass

    class Model(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table = table

    for table, message in (
        (nn.Embedding(4, 8, max_norm=1.0), "max_norm"),
        (Scaled(4, 8), "a Scaled is no plain table"),
        (nn.Embedding(4, 8).half(), "float16"),
        (nn.Embedding(0, 8), "empty"),
        (nn.Embedding.from_pretrained(torch.full((4, 8), torch.nan)), "NaN"),
        (quantized(Words()).table, "it has no float tables"),
    ):
        with pytest.raises(UsageError, match=message):
            QuantizeEmbeddings().plan(Model(table))
    with pytest.raises(UsageError, match="bare Linear"):
        QuantizeEmbeddings().plan(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="it has no float tables"):
        QuantizeEmbeddings().plan(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="share what the grid stores"):
        QuantizeEmbeddings(weights="16 rows").plan(Words())
    with pytest.raises(UsageError, match="bits=9"):
        QuantizeEmbeddings(bits=9)
    assert QuantizeEmbeddings(bits=32).plan(Words()).decisions["modules"] == {}
    plan = QuantizeEmbeddings().plan(Words())
    with pytest.raises(ArtifactError, match="max_norm"):
        apply(Words(max_norm=1.0), Plan(plan.kind, plan.decisions))


def test_training_on_the_grid_is_for_layers(tmp_path):
    from limbeck.quantization import prepare_qat

    model = Words()
    with pytest.raises(UsageError, match="embedding"):
        prepare_qat(model, QuantizeEmbeddings().plan(model))
