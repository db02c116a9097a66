"""A secret is not shown, and no word is taken for one."""

import pytest

from lightmem_core.hushed import hushed


@pytest.mark.parametrize("secret", ["x", "a.b", "sk-7", "minio123", "sk-hush-hush-0123456789"])
def test_a_secret_is_hidden_wherever_it_stands_by_itself(secret: str):
    text = f"{secret} was sent as 'Bearer {secret}', key={secret}"
    assert hushed(text, "", secret) == "*** was sent as 'Bearer ***', key=***"


def test_a_long_secret_is_hidden_within_a_word_a_short_one_is_not():
    assert hushed("?k=Aminio123Z", "minio123") == "?k=A***Z"
    assert hushed("the next text, not x.", "x") == "the next text, not ***."


def test_of_two_secrets_one_of_which_begins_the_other_nothing_is_left():
    assert hushed("minio123-and-more", "minio123", "minio123-and-more") == "***"
