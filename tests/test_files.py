"""Files are whole or absent; digests name content; locks exclude."""

import errno
import hashlib
import os

import pytest

from limbeck.errors import LimbeckError
from limbeck.files import canonical_json, digest, file_digest, locked, replacing, write_bytes, write_json


def test_what_is_written_is_what_is_read(tmp_path):
    write_bytes(tmp_path / "a" / "b.bin", b"\x00\x01")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\x01"
    assert file_digest(tmp_path / "a" / "b.bin") == hashlib.sha256(b"\x00\x01").hexdigest()


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_bytes(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LimbeckError, match="No space left"):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_digests_depend_on_content_only():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
    assert canonical_json({"b": 1, "a": 2}) == '{"a":2,"b":1}'


def test_locks_exclude_and_are_given_back(tmp_path):
    path, words = tmp_path / "l", "somebody is here"
    with locked(path, words), pytest.raises(LimbeckError, match=words), locked(path, words):
        pass
    with locked(path, words):
        pass
