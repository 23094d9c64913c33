"""Near duplicates: planted ones are found, others are not, and datasketch agrees."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given
from hypothesis import strategies as st

from scar_core.pool.words import ngram_hashes, words_of
from scar_core.selection.near import (
    Banding,
    Links,
    banding,
    cluster_ids,
    forest,
    links_of,
    shingles,
    sketch,
)


def planted(clusters: int, seed: int = 5) -> tuple[list[str], list[int]]:
    """Texts of 200 words, four of a cluster, that differ in a word or two; and whose each is."""
    luck = random.Random(seed)
    texts, owners = [], []
    for cluster in range(clusters):
        words = [f"w{luck.randrange(5000)}" for _ in range(200)]
        for copy in range(4):
            changed = list(words)
            for _ in range(copy and 2):
                changed[luck.randrange(200)] = f"new{luck.randrange(5000)}"
            texts.append(" ".join(changed))
            owners.append(cluster)
    return texts, owners


def clusters_of(links: Links, rows: int) -> set[frozenset[int]]:
    """The rows that hang together, as sets of two and more."""
    heads = {int(row): int(head) for head, row in zip(*links, strict=True)}
    found = defaultdict(set)
    for row in range(rows):
        found[heads.get(row, row)].add(row)
    return {frozenset(held) for held in found.values() if len(held) > 1}


def linked(texts: list[str], cut: Banding) -> Links:
    bands_NB = sketch(texts, cut)
    rows_NB = np.repeat(np.arange(len(texts), dtype=np.uint64), cut.bands)
    return links_of(bands_NB.ravel(), rows_NB)


def jaccard(one: str, other: str) -> float:
    left, right = set(shingles(one)), set(shingles(other))
    return len(left & right) / len(left | right)


def test_planted_duplicates_are_found_and_nothing_else() -> None:
    """Each cluster whole, no two of them joined."""
    texts, owners = planted(40)
    wanted = {
        frozenset(row for row, owner in enumerate(owners) if owner == cluster)
        for cluster in range(40)
    }
    assert clusters_of(linked(texts, banding(0.7)), len(texts)) == wanted


def test_datasketch_finds_the_same_clusters() -> None:
    """On one machine, with its own hashes: planted pairs are far from its threshold."""
    texts, _ = planted(15)
    lsh = MinHashLSH(threshold=0.7, num_perm=128)
    pairs = []
    for row, text in enumerate(texts):
        mine = MinHash(num_perm=128, seed=3)
        mine.update_batch([shingle.encode() for shingle in shingles(text)])
        pairs += [(int(other), row) for other in lsh.query(mine)]
        lsh.insert(str(row), mine)
    theirs = forest([Links(*np.array(pairs, np.uint64).T)])
    assert clusters_of(theirs, len(texts)) == clusters_of(linked(texts, banding(0.7)), len(texts))


def test_the_chance_to_be_linked_follows_the_curve() -> None:
    """1 - (1 - s^r)^b, within what 400 pairs can tell."""
    cut, luck = Banding(bands=4, rows=5), random.Random(2)
    expected, found = [], 0
    texts = []
    for _ in range(400):
        words = [f"w{luck.randrange(9000)}" for _ in range(60)]
        start = luck.randrange(25)
        texts += [" ".join(words), " ".join([*words[start:], *(f"x{i}" for i in range(start))])]
        expected.append(1 - (1 - jaccard(*texts[-2:]) ** cut.rows) ** cut.bands)
    bands_NB = sketch(texts, cut)
    found = int((bands_NB[0::2] == bands_NB[1::2]).any(axis=1).sum())
    spread = sum(p * (1 - p) for p in expected) ** 0.5
    assert abs(found - sum(expected)) < 4 * spread


def test_the_banding_is_datasketchs() -> None:
    """The same areas under the same curve, found by other code."""
    for threshold in (0.5, 0.7, 0.8, 0.9):
        theirs = MinHashLSH(threshold=threshold, num_perm=128)
        assert banding(threshold) == (theirs.b, theirs.r)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40),
    st.integers(1, 4),
)
def test_links_in_parts_are_links_at_once(pairs: list[tuple[int, int]], parts: int) -> None:
    """A forest of forests holds together what a plain search does."""
    edges = [Links(*np.array(pairs[i::parts], np.uint64).reshape(-1, 2).T) for i in range(parts)]
    found = clusters_of(forest(forest([edge]) for edge in edges), 31)
    owner = {row: {row} for row in range(31)}
    for one, other in pairs:
        joined = owner[one] | owner[other]
        for row in joined:
            owner[row] = joined
    assert found == {frozenset(held) for held in owner.values() if len(held) > 1}


def test_clusters_have_ids_of_their_own() -> None:
    """One for each first row; spread over all ranges of a hash."""
    high, low = cluster_ids(np.arange(1000, dtype=np.uint64))
    assert len(set(high.tolist())) == 1000
    assert set(low.tolist()) == {2**64 - 1}
    assert 400 < (high < 2**63).sum() < 600


def test_equal_texts_have_equal_sketches_and_no_text_has_a_sketch_too() -> None:
    """Case and punctuation aside; short texts count whole."""
    cut = banding(0.8)
    one, other, short, empty, nothing = sketch(
        ["A short, plain text!", "a SHORT plain text", "other", "", "..."], cut
    )
    assert (one == other).all()
    assert not (one == short).any()
    assert (empty == nothing).all()
    assert sketch([], cut).shape == (0, cut.bands)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Größe, naïve Café!", ["größe", "naïve", "café"]),
        ("数据 select选择", ["数", "据", "select", "选", "择"]),
        ("snake_case 3.14 ﬁne", ["snake", "case", "3", "14", "fine"]),
        ("", []),
    ],
)
def test_words_are_plain_in_any_script(text: str, words: list[str]) -> None:
    """NFKC, lower case; Han characters each by themselves."""
    assert words_of(text) == words


@given(st.lists(st.text("abé数", min_size=1, max_size=3), max_size=12), st.integers(1, 5))
def test_ngrams_are_equal_where_words_are(words: list[str], n: int) -> None:
    """By a plain loop; none in fewer words."""
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    hashes = ngram_hashes(words, n).tolist()
    assert len(hashes) == len(runs)
    for (one, left), (other, right) in combinations(zip(runs, hashes, strict=True), 2):
        assert (one == other) == (left == right)
