import pytest

from limbeck.datasets.privacy import privacy
from limbeck.errors import UsageError


def covered(text, **settings):
    return "".join(c for c, degree in zip(text, privacy(list(text), **settings).tolist()) if degree)


def test_long_numbers_and_addresses_are_private():
    assert covered("The code of Ada is 4821, room 12.") == "4821"
    assert covered("write to a.b@mail.example.org now") == "a.b@mail.example.org"
    assert covered("call +49 30 123456 today") == "+49 30 123456"
    assert covered("to be or not to be") == ""


def test_a_token_is_as_private_as_its_most_private_character():
    found = privacy(["is ", "", "48", "21.", "5"], {r"\d+": 0.5, r"21": 0.75})
    assert found.tolist() == [0.0, 0.0, 0.5, 0.75, 0.5]
    assert privacy([]).tolist() == []


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="no regular expression"):
        privacy(["a"], {"(": 1.0})
    with pytest.raises(UsageError, match="degree"):
        privacy(["a"], {"a": 2.0})
