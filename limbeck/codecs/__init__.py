"""Codecs: signals to bytes and back; what they report is the length of the bytes."""

from limbeck.codecs.entropy import Huffman, code_lengths

__all__ = ["Huffman", "code_lengths"]
