"""Measuring: every number shown to a user comes from here, with its runs, spread, settings and what was really run."""

from limbeck.measure.alignment import layer_similarities, parameter_distance
from limbeck.measure.attention import attention_patterns, head_distance, normalized_mutual_information
from limbeck.measure.base import Measurement
from limbeck.measure.environment import environment
from limbeck.measure.exposure import continuations, exposure, mean_exposure
from limbeck.measure.flops import flops
from limbeck.measure.latency import (
    Comparison,
    interleaved,
    latency_onnx,
    latency_torch,
    measure_latency,
    throughput_onnx,
    throughput_torch,
)
from limbeck.measure.memory import peak_memory_artifact, peak_memory_of, peak_memory_onnx
from limbeck.measure.model import cost_model, cost_onnx, measure_model, measure_onnx
from limbeck.measure.probe import linear_probe
from limbeck.measure.quality import Quality, assess, quality_onnx, quality_torch
from limbeck.measure.segmentation import confusion_matrix, intersection_over_union, segmentation_metrics
from limbeck.measure.simulated import reports_real_cost, simulated_modules
from limbeck.measure.size import count_parameters, disk_bytes, layer_table, model_bytes, parameters, state_bytes

__all__ = [
    "Comparison",
    "Measurement",
    "Quality",
    "assess",
    "attention_patterns",
    "confusion_matrix",
    "continuations",
    "cost_model",
    "cost_onnx",
    "count_parameters",
    "disk_bytes",
    "environment",
    "exposure",
    "flops",
    "head_distance",
    "interleaved",
    "intersection_over_union",
    "latency_onnx",
    "latency_torch",
    "layer_similarities",
    "layer_table",
    "linear_probe",
    "mean_exposure",
    "measure_latency",
    "measure_model",
    "measure_onnx",
    "model_bytes",
    "normalized_mutual_information",
    "parameter_distance",
    "parameters",
    "peak_memory_artifact",
    "peak_memory_of",
    "peak_memory_onnx",
    "quality_onnx",
    "quality_torch",
    "reports_real_cost",
    "segmentation_metrics",
    "simulated_modules",
    "state_bytes",
    "throughput_onnx",
    "throughput_torch",
]
