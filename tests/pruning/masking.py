"""The reference of structured pruning: what a model gives where zeros stand in place of what is cut."""

import torch
from torch import nn

from limbeck.signals import call, first_tensor


def outputs(model, task, mode=False):
    with torch.no_grad():
        return first_tensor(call(model.train(mode), task.example(3)))


def masked_outputs(model, plan, task):
    """The unpruned model with zeros where a cut module would have read: written without any slicing."""
    handles = []
    for path, axes in plan.decisions["kept"].items():
        if "in" in axes:
            module = model.get_submodule(path)
            axis = 1 if isinstance(module, nn.Conv2d) else -1

            def hook(_, args, axis=axis, kept=tuple(axes["in"])):
                mask = torch.zeros(args[0].shape[axis])
                mask[list(kept)] = 1
                return (args[0] * mask.reshape([-1] + [1] * (args[0].dim() - 2) if axis == 1 else [-1]), *args[1:])

            handles.append(module.register_forward_pre_hook(hook))
    result = outputs(model, task)
    for handle in handles:
        handle.remove()
    return result
