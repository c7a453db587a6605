import torch

from limbeck.beds.answers import stored_answers
from limbeck.beds.language import LanguageBed
from limbeck.experiments import Run, Store
from limbeck.objectives import SoftTargets


def test_stored_answers_are_the_models_and_serve_every_seed(tiny_text, tmp_path):
    bed = LanguageBed(dataset=tiny_text, length=16, batch_size=4)
    model = bed.model(depth=1, width=8, heads=2).eval()
    for seed in (0, 1):
        run = Run(seed, "validation", Store(tmp_path / "store"))
        teacher = stored_answers(run, bed.task, model, 40)
        batch = next(bed.task.batches("train", 7, seed=seed, limit=40))
        expected = model(batch["input_ids"])
        torch.testing.assert_close(teacher.signals(batch, frozenset({"logits"})).logits, expected, rtol=1e-3, atol=1e-3)
        settings = {"steps": 12, "limit": 40, "augment": False}
        bed.fit(run, bed.student(run, depth=1, width=8, heads=2), SoftTargets(1.0), teacher, **settings)
    assert len(list((tmp_path / "store").glob("answers-*"))) == 1
