"""Held-out examples, chosen by a hash and therefore the same on every machine and with every version."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from limbeck.errors import UsageError


def holdout(groups: Sequence[int] | int, fraction: float, salt: str = "") -> tuple[list[int], list[int]]:
    """Split 0..n-1 into (rest, held out), stratified: of every group, round(fraction * size) are held out.

    `groups` is the class of every example, or just n. Within a group those with the smallest SHA-256 of "salt:position"
    are held out; both lists are in ascending order. Raises UsageError for a fraction outside (0, 1) or when one side
    would be empty.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"holdout must lie between 0 and 1, not {fraction!r}")
    labels = [0] * groups if isinstance(groups, int) else groups
    members = defaultdict(list)
    for position, label in enumerate(labels):
        members[int(label)].append(position)
    held = []
    for positions in members.values():
        ranked = sorted(positions, key=lambda p: hashlib.sha256(f"{salt}:{p}".encode()).digest())
        held += ranked[: round(fraction * len(positions))]
    chosen = set(held)
    rest = [position for position in range(len(labels)) if position not in chosen]
    if not held or not rest:
        raise UsageError(
            f"holding out {fraction} of {len(labels)} examples in {len(members)} classes leaves one side empty: "
            "give a validation split or another fraction"
        )
    return rest, sorted(held)
