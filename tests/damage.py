"""Damage to files of other libraries, and what their readers must do about it."""

import jax
import numpy as np
import pytest
from conftest import REPOSITORY

from jepa_jax.config.files import load_config
from jepa_jax.errors import UserError
from jepa_jax.interop.converted import LazyArray

OPTIONS = {
    "base": load_config(str(REPOSITORY / "configs" / "in1k_vith14_ep300.py"), []),
    "base_is_given": False,
    "num_heads": None,
    "allow_partial": False,
    "network": None,
}


def assert_refused(convert, source, **options):
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError) as error:
        convert(source, source.parent / "ours", **(OPTIONS | options))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 2000
    assert sorted(source.parent.iterdir()) == before
    return message


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_finite(found):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def refuses(read, check):
    """Whether a reader raises a `UserError` of one line; `check` looks at what it gives if not."""
    try:
        found = read()
    except UserError as error:
        return "\n" not in str(error)
    check(found)
    return False


# Damage to bytes, whatever they mean.


def cut(rng, whole):
    return whole[: rng.integers(len(whole))]


def cut_the_beginning(rng, whole):
    return whole[rng.integers(1, len(whole)) :]


def shuffle(rng, whole):
    parts = np.array_split(np.frombuffer(whole, np.uint8), 8)
    return np.concatenate([parts[i] for i in rng.permutation(8)]).tobytes()


def blank(rng, whole):
    start, length = rng.integers(len(whole) // 2), len(whole) // 4
    return whole[:start] + bytes(length) + whole[start + length :]


def flip(rng, whole):
    i = rng.integers(len(whole))
    return whole[:i] + bytes([whole[i] ^ 1 << rng.integers(8)]) + whole[i + 1 :]


def insert(rng, whole):
    i = rng.integers(len(whole))
    return whole[:i] + rng.bytes(7) + whole[i:]


def damage(kind, whole, count):
    rng = np.random.default_rng(0)
    while count:
        damaged = kind(rng, whole)
        if damaged != whole:
            yield damaged
            count -= 1


def read_all(items):
    """Every array of the items that a converter would write."""
    return jax.tree.map(
        lambda leaf: leaf.read() if isinstance(leaf, LazyArray) else leaf, dict(items)
    )


class Attack:
    """Pickled, it is a call that whoever unpickles it makes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
