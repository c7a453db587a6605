"""The environment names versions and hardware and nobody."""

import getpass
import json
import platform

import torch

from limbeck.measure import environment


def test_versions_and_hardware():
    found = environment()
    assert found["torch"] == torch.__version__ and found["python"] == platform.python_version()
    assert found["cores"] >= 1 and found["threads"] == torch.get_num_threads() and found["memory"] > 1e8
    assert found["cpu"] and found["limbeck"]


def test_it_is_json_and_names_neither_host_nor_user():
    text = json.dumps(environment(), allow_nan=False)
    for private in (platform.node(), getpass.getuser()):
        assert len(private) < 3 or (f'"{private}"' not in text and f"{private}@" not in text)
