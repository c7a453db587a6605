"""Objectives on the primary output: labels, the teacher's logits, and what is made of them."""
