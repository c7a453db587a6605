"""One's own paper, named by a dotted path, so that other processes can import it."""

from miniature_paper import paper

__all__ = ["paper"]
