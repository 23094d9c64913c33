"""What `--keep` asks for: a share, a number of rows, a least score."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from scar_core.errors import InputError
from scar_core.selection.keep import Keep, KeepAbove, KeepCount, KeepShare, parse_keep


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("10%", KeepShare(Fraction(1, 10))),
        ("0.7%", KeepShare(Fraction(7, 1000))),
        (" .5 % ", KeepShare(Fraction(1, 200))),
        ("100%", KeepShare(Fraction(1))),
        ("2500", KeepCount(2500)),
        ("score>=1.5", KeepAbove(1.5)),
        ("score >= -2e-3", KeepAbove(float(np.float32(-0.002)))),
        ("score>=+0.7", KeepAbove(float(np.float32(0.7)))),
    ],
)
def test_keep_is_read_as_written(text: str, keep: Keep) -> None:
    """Shares as exact fractions, counts as integers, scores as float32."""
    assert parse_keep(text) == keep


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0%", "above 0% and at most 100%"),
        ("130%", "above 0% and at most 100%"),
        ("0", "at least 1 row"),
        ("-3", "cannot be read"),
        ("0.1", r"is it 0\.1%, or 10% as a part of 1\?"),
        ("2500.0", "Write the % sign"),
        ("score", "quote it"),
        ("score>1.5", "'score>=1.5'"),
        ("score>=nan", "cannot be read"),
        ("score>=1e39", "float32"),
        ("ten", "cannot be read"),
        ("1e1%", "cannot be read"),
        ("\N{ARABIC-INDIC DIGIT ONE}%", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_nonsense_is_refused_with_what_was_wanted(text: str, says: str) -> None:
    """One sentence that quotes the text: exit code 2."""
    with pytest.raises(InputError, match=says) as caught:
        parse_keep(text)
    assert repr(text) in str(caught.value)
