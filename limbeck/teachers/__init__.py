"""Teachers: where training signals come from."""

from limbeck.teachers.frozen import FrozenTeacher

__all__ = ["FrozenTeacher"]
