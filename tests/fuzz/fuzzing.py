"""How the fuzzing tests run, and what they ask of every argument and file that is not as it should be.

``pytest tests/fuzz`` runs the same examples every time. ``HYPOTHESIS_PROFILE=long pytest tests/fuzz`` runs 10 times as
many, others on every run, and says how to get back to one that fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")

COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    # Images and models are made once for all examples, and some examples are large.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", derandomize=True, **COMMON)
settings.register_profile("long", print_blob=True, **COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)

# What may come of wrong arguments and files. Their subclasses say nothing to a user, but for those of OSError.
REFUSALS = (ValueError, TypeError, ImportError)


def examples(count: int) -> settings:
    """So many examples, or 10 times as many in a long run."""
    return settings(max_examples=10 * count if PROFILE == "long" else count)


def result_or_refusal(function: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
    """What the function returns, or None where it refuses its arguments as documented."""
    try:
        return function(*arguments, **options)
    except OSError:
        return None
    except Exception as error:
        if type(error) not in REFUSALS or not str(error):
            raise
        return None


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that a disk, a network or an enemy may have made of a file."""
    places = st.integers(0, len(whole))
    junk = st.one_of(
        st.binary(max_size=9),
        # Counts and sizes that no file has, little and big endian.
        st.sampled_from(
            [count.to_bytes(8, order) for count in (2**31, 10**18, 2**64 - 1) for order in ("little", "big")]
        ),
        st.sampled_from(
            [b"nan", b"-1", b"1e400", b"9" * 400, b"../", b"/", b"\0", b"\xff\xfe", b"[[[[", b'"', b"{", b"\n"]
        ),
    )
    cut = places.map(lambda end: whole[:end])
    flipped = st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=4).map(
        lambda bits: _flip(whole, bits)
    )
    written_over = st.tuples(places, junk).map(lambda at: whole[: at[0]] + at[1] + whole[at[0] + len(at[1]) :])
    put_in = st.tuples(places, junk).map(lambda at: whole[: at[0]] + at[1] + whole[at[0] :])
    left_out = st.tuples(places, st.integers(1, 64)).map(lambda at: whole[: at[0]] + whole[at[0] + at[1] :])
    return st.one_of(cut, flipped, written_over, put_in, left_out, st.binary(max_size=80))


def _flip(whole: bytes, bits: list[tuple[int, int]]) -> bytes:
    flipped = bytearray(whole)
    for place, bit in bits:
        if place < len(flipped):
            flipped[place] ^= 1 << bit
    return bytes(flipped)


def put(path: Path, content: bytes) -> Path:
    """The path, with this content at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Of any type that JSON, YAML or a careless caller has.
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.sampled_from([10**400, -(10**30), 2**63, 2**64])
    | st.floats()
    | st.text("ab/.\\0ü~@", max_size=6),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text("ab", max_size=3), children, max_size=3),
    max_leaves=8,
)
