"""Graphs: what is special to distilling models of graphs."""

from limbeck.graphs.frequency import HighFrequency, LowFrequency, high_pass, low_pass

__all__ = ["HighFrequency", "LowFrequency", "high_pass", "low_pass"]
