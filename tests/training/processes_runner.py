"""Trains on as many processes as it was launched with; the main one writes the weights to FILE.

python processes_runner.py FILE FOLDER STOP
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_examples import TinyTask, tiny_model

from limbeck.training import Supervised, Trainer, TrainingConfig

SETTINGS = {
    "steps": 9,
    "batch_size": 10,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "checkpoint_every": 2,
    "average": 0.5,
}
SETTINGS |= {"gradient_clipping": 0.5, "mixup": 0.3, "gradient_accumulation": 2, "channels_last": True}


class Stops(Supervised):
    stop = -1

    def describe(self):
        return "stops"

    def after_step(self, state):
        if state.step == self.stop:
            raise KeyboardInterrupt


def main(file, folder, stop):
    torch.set_num_threads(1)
    task, model = TinyTask(), tiny_model(dropout=0, norm=False)
    procedure = Stops(model, task)
    procedure.stop = int(stop)
    trainer = Trainer(TrainingConfig(**SETTINGS), folder, progress=False)
    try:
        trainer.run(procedure, task)
    except KeyboardInterrupt:
        assert int(stop) >= 0
        trainer.run(Stops(model, task), task)
    from accelerate import PartialState

    state = PartialState()
    save_file(model.state_dict(), f"{file}.{state.process_index}")
    state.destroy_process_group()


if __name__ == "__main__":
    main(*(Path(argument) if i < 2 else argument for i, argument in enumerate(sys.argv[1:])))
