"""A task and a model of a few numbers, for the tests of the measure room."""

import torch
from torch import nn


def tiny_model():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


class TinyTask:
    name, metric, better = "tiny", "accuracy", "higher"
    classes, inputs, augmentation = ("a", "b", "c"), ("pixel_values",), "none"

    def __init__(self, examples=20):
        generator = torch.Generator().manual_seed(0)
        self.data = {
            split: {
                "pixel_values": torch.randn(examples, 6, generator=generator),
                "labels": torch.randint(0, 3, (examples,), generator=generator),
            }
            for split in ("train", "validation", "test")
        }

    def size(self, split):
        return len(self.data[split]["labels"])

    def example(self, batch_size=1):
        return {"pixel_values": self.data["train"]["pixel_values"][:1].repeat(batch_size, 1)}

    def evaluate(self, forward, split="validation", batch_size=256, limit=None):
        logits, labels = [], self.data[split]["labels"][:limit]
        for start in range(0, len(labels), batch_size):
            stop = min(start + batch_size, len(labels))
            batch = {name: value[start:stop] for name, value in self.data[split].items()}
            logits.append(forward(batch))
        logits = torch.cat(logits)
        return {
            "accuracy": float((logits.argmax(-1) == labels).float().mean()),
            "loss": float(nn.functional.cross_entropy(logits, labels)),
        }


def export(model, path, batch_size=None):
    """Write an ONNX file of a chain of Linear and ReLU layers with the graph helpers of onnx itself."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layers = [layer for layer in model if isinstance(layer, (nn.Linear, nn.ReLU))]
    nodes, weights, name = [], [], "pixel_values"
    for index, layer in enumerate(layers):
        last = "logits" if index == len(layers) - 1 else f"h{index}"
        if isinstance(layer, nn.Linear):
            for kind in ("weight", "bias"):
                weights.append(numpy_helper.from_array(getattr(layer, kind).detach().numpy(), f"{kind}{index}"))
            nodes.append(helper.make_node("Gemm", [name, f"weight{index}", f"bias{index}"], [last], transB=1))
        else:
            nodes.append(helper.make_node("Relu", [name], [last]))
        name = last
    size = batch_size or "batch"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [size, layers[0].in_features])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, layers[-1].out_features])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path
