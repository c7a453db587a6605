import copy

import pytest
import torch

from limbeck.conversion import BlockwiseDistil, Replace
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import gpt
from limbeck.models.state_space import StateSpaceMixer
from limbeck.objectives import Hint, MatrixOrientation
from limbeck.plan import Plan, apply
from limbeck.signals import Signals
from limbeck.training.procedures import State

MIXER = ("limbeck.models.state_space:StateSpaceMixer", {"width": 16, "heads": 2, "state": 4})
STATE = State(0, 1, 0.0, 0, torch.device("cpu"))


def teacher():
    torch.manual_seed(0)
    return gpt(20, length=8, depth=3, width=16, heads=2).eval()


def converted(keep=()):
    made = copy.deepcopy(teacher())
    return apply(made, Replace("blocks.*.attention", *MIXER, keep=keep).plan(made))


def test_what_is_named_is_replaced_and_the_rest_stays():
    old, new = teacher(), converted(keep=("blocks.1.attention",))
    kinds = [type(block.attention).__name__ for block in new.blocks]
    assert kinds == ["StateSpaceMixer", "Attention", "StateSpaceMixer"]
    assert torch.equal(new.blocks[0].feed_forward.up.weight, old.blocks[0].feed_forward.up.weight)
    assert torch.equal(new.blocks[1].attention.key.weight, old.blocks[1].attention.key.weight)
    first, last = (new.blocks[i].attention.project.weight for i in (0, 2))
    assert not torch.allclose(first, last), "each place has its own weights"
    ids = torch.randint(0, 20, (2, 8))
    assert not torch.allclose(new(ids), old(ids))
    assert converted().blocks[0].attention.project.weight.equal(first), "which follow from the seed"


def test_each_block_answers_to_what_the_teachers_block_read():
    old, new = teacher(), converted()
    batch = {"input_ids": torch.randint(0, 20, (4, 8)), "labels": torch.zeros(4, 8).long()}
    loss = BlockwiseDistil(new, old, "blocks.*.attention", Hint("logits", loss="norm")).step(batch, STATE)["main"]
    x, mask, expected = (
        old.tokens(batch["input_ids"]) + old.positions(torch.arange(8)),
        torch.ones(8, 8).tril().bool(),
        0.0,
    )
    for mine, theirs in zip(new.blocks, old.blocks):
        read = theirs.norm1(x)
        expected = expected + (mine.attention(read) - theirs.attention(read, mask)).norm(dim=-1).mean()
        x = theirs(x, mask)
    torch.testing.assert_close(loss.value, expected)
    assert set(loss.parts) == {f"blocks.{i}.attention" for i in range(3)}
    loss.value.backward()
    trained = {name for name, parameter in new.named_parameters() if parameter.grad is not None}
    assert trained and all(".attention." in name for name in trained)
    assert not any(p.requires_grad for p in old.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in (old, new) for m in model.modules())


def test_a_block_does_not_see_the_errors_of_the_one_before():
    old, new = teacher(), converted()
    batch = {"input_ids": torch.randint(0, 20, (2, 8))}
    procedure = BlockwiseDistil(new, old, "blocks.*.attention", Hint("logits"))
    before = procedure.step(batch, STATE)["main"].parts["blocks.2.attention"]
    torch.nn.init.normal_(new.blocks[0].attention.output.weight, std=5.0)
    assert torch.equal(procedure.step(batch, STATE)["main"].parts["blocks.2.attention"], before)


def test_signals_inside_a_block_are_compared():
    old, new = teacher(), converted()
    batch = {"input_ids": torch.randint(0, 20, (2, 8))}
    loss = BlockwiseDistil(new, old, "blocks.*.attention", MatrixOrientation()).step(batch, STATE)["main"]
    x, mask = old.tokens(batch["input_ids"]) + old.positions(torch.arange(8)), torch.ones(8, 8).tril().bool()
    total = 0.0
    for mine, theirs in zip(new.blocks, old.blocks):
        read = theirs.norm1(x)
        q, k = (p(read).reshape(2, 8, 2, 8).transpose(1, 2) for p in (theirs.attention.query, theirs.attention.key))
        maps = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask, float("-inf")).softmax(-1)
        signals = []
        mine.attention.matrix.register_forward_hook(lambda module, args, output, seen=signals: seen.append(output))
        mine.attention(read)
        total = total + ((signals[0] - maps) ** 2).sum((-1, -2)).sqrt().mean()
        x = theirs(x, mask)
    torch.testing.assert_close(loss.value, total)


def test_matrices_of_padding_do_not_count():
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    objective = MatrixOrientation("m", "m")
    made = objective(Signals({"m": a}), Signals({"m": b}), {"attention_mask": mask}).value
    difference = a - b
    difference[0, :, 3], difference[0, :, :, 3] = 0, 0
    torch.testing.assert_close(made, difference.square().sum((-1, -2)).sqrt().mean())
    with pytest.raises(UsageError, match="both must be"):
        objective(Signals({"m": a}), Signals({"m": b[:, :1]}), {})


def test_nonsense_is_refused():
    for make, words in (
        (lambda: Replace("", *MIXER), "path=''"),
        (lambda: Replace("blocks.*.attn", *MIXER).plan(teacher()), "blocks"),
        (lambda: Replace("blocks.0.attention", *MIXER, keep=("blocks.0.attention",)).plan(teacher()), "nothing"),
        (lambda: BlockwiseDistil(converted(), converted(), "blocks.*", None), "expected an Objective"),
        (lambda: BlockwiseDistil(converted(), StateSpaceMixer(4, 2), "blocks.*", Hint("logits")), "no block"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
    model = teacher()
    with pytest.raises(UsageError, match="same module"):
        BlockwiseDistil(model, model, "blocks.*", Hint("logits"))
    with pytest.raises(ArtifactError, match="outside limbeck"):
        apply(teacher(), Plan("replace", {"modules": {"head": {"target": "os:system", "arguments": {}}}, "seed": 0}))
