"""Selection policies: exactly what plain loops over lists select, for any layout and workers."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core.errors import InputError
from scar_core.selection import combine, copies, fronts
from scar_core.selection.bands import (
    BandRule,
    Cap,
    band_rule,
    bands_of,
    lengths,
    rows_by_band,
    within_cap,
)
from scar_core.selection.budget import token_histograms
from scar_core.selection.groups import GroupSearch, fetch, merge_fetched, merge_tallies, tally
from scar_core.selection.keep import Keep, KeepCount, KeepTokens, decide, parse_keep
from scar_core.selection.luck import Sampled, gumbel, logarithm
from scar_core.selection.order import SidecarColumns
from scar_core.selection.policies import order_rule
from scar_core.selection.radix import histograms, merge_surveys, survey
from tests.test_groups import dealt
from tests.test_selection import INF, NAN, Unit, make_units, sidecar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.selection.order import Worth

Place = tuple[int, int]


def tokens_of(ordinal: int, offset: int, most: int) -> int:
    """Of a row; few different ones, some 0."""
    return (ordinal * 7 + offset * 5) % most


def opened(
    units: Sequence[Unit],
    *,
    most: int = 9,
    worth: Worth | None = None,
    numbers: Sequence[np.ndarray] = (),
) -> list[SidecarColumns]:
    """Columns of units whose rows have tokens, a third of them cut off."""
    found = []
    for ordinal, unit in enumerate(units):
        total = np.array([tokens_of(ordinal, at, most) for at in range(len(unit))], np.int32)
        table = sidecar(unit)
        for name, part in (("response_tokens", total - total // 3), ("cut_tokens", total // 3)):
            table = table.set_column(
                table.schema.get_field_index(name), table.schema.field(name), pa.array(part)
            )
        found.append(
            SidecarColumns(
                table.column,
                ordinal=ordinal,
                where="test",
                worth=worth,
                numbers={"quality": numbers[ordinal]} if numbers else None,
                place=(unit[0].path, unit[0].row),
            )
        )
    return found


def ranked(units: Sequence[Unit], worths: dict[Place, float] | None = None) -> list[Place]:
    """Rows in selection order, by `sorted`; those without a worth are left out."""
    rows = []
    for ordinal, unit in enumerate(units):
        for offset, row in enumerate(unit):
            value = row.score
            if worths is not None and value is not None:
                value = worths.get((ordinal, offset), NAN)
            if value is not None and not math.isnan(value):
                rows.append((-(value or 0.0), row.content_hash, (ordinal, offset)))
    return [place for *_, place in sorted(rows)]


def cut_of(columns: list[SidecarColumns], keep: Keep, *, shares: int, seed: int) -> set[Place]:
    """What is selected by tasks that each see a share of the sidecars."""
    tasks = dealt(columns, shares, seed=seed)
    first = merge_surveys(survey(task) for task in tasks)

    def scan(prefixes: Any) -> Any:  # noqa: ANN401
        return sum(histograms(task, prefixes) for task in tasks)

    def weigh(prefixes: Any) -> Any:  # noqa: ANN401
        return sum(token_histograms(task, prefixes) for task in tasks)

    cut = decide(first, scan, keep, weigh=weigh).cut
    return {(c.ordinal, int(at)) for c in columns for at in np.flatnonzero(cut.mask(c))}


scores = st.lists(
    st.one_of(
        st.none(), st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, INF, NAN]), st.floats(width=32)
    ),
    max_size=50,
)


@st.composite
def pools(draw: st.DrawFn, values: Any = scores) -> list[Unit]:  # noqa: ANN401
    """Ties of every kind."""
    return make_units(
        draw(values),
        unit_rows=draw(st.integers(1, 20)),
        hashes=draw(st.sampled_from([1, 3, 1 << 60])),
        seed=draw(st.integers(0, 1000)),
    )


finite = st.lists(st.one_of(st.none(), st.floats(-5, 5, width=32)), max_size=40)


@settings(max_examples=60)
@given(pools(), st.integers(1, 250), st.integers(1, 9), st.sampled_from([1, 4]))
def test_a_budget_keeps_the_longest_beginning_that_fits(
    units: list[Unit], budget: int, most: int, workers: int
) -> None:
    """Rows that are too long are not stepped over; tokens that were cut off count."""
    expected: set[Place] = set()
    held = 0
    for place in ranked(units):
        held += tokens_of(*place, most)
        if held > budget:
            break
        expected.add(place)
    columns = opened(units, most=most)
    assert cut_of(columns, KeepTokens(budget), shares=workers, seed=budget) == expected


@pytest.mark.parametrize(
    ("text", "tokens"), [("50M-tokens", 50 * 10**6), ("1.5k-tokens", 1500), ("7-tokens", 7)]
)
def test_a_budget_is_read_with_its_suffix(text: str, tokens: int) -> None:
    assert parse_keep(text) == KeepTokens(tokens)


@pytest.mark.parametrize("text", ["0-tokens", "1.2345k-tokens", "5m-tokens", "tokens"])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--keep"):
        parse_keep(text)


@settings(max_examples=60)
@given(pools(), st.integers(1, 4), st.sampled_from([1, 2, 5]), st.sampled_from([1, 4]))
def test_of_a_cluster_the_best_rows_take_part(
    units: list[Unit], most: int, chunks: int, ranges: int
) -> None:
    """As many as asked for, wherever they lie."""
    columns = opened(units)
    edges = np.linspace(0, len(columns), chunks + 1).astype(int).tolist()
    held = [columns[low:high] for low, high in pairwise(edges)]
    found = [copies.contents_of(chunk, which="copies", most=most) for chunk in held]
    split = [copies.split(contents, ranges=ranges) for contents, _ in found]
    compared = [
        copies.compare([s[r] for s in split], which="copies", most=most) for r in range(ranges)
    ]
    marked: set[Place] = set()
    for number, chunk in enumerate(held):
        places = [(c.ordinal, at) for c in chunk for at in range(len(c))]
        for positions in (found[number][1], *(part[number] for part in compared)):
            marked |= {places[at] for at in positions.tolist()}
    seen: Counter[bytes] = Counter()
    expected = set()
    for ordinal, offset in ranked(units):
        content = units[ordinal][offset].content_hash
        seen[content] += 1
        if seen[content] > most:
            expected.add((ordinal, offset))
    assert marked == expected


@settings(max_examples=60)
@given(
    pools(),
    st.integers(1, 12),
    st.integers(1, 20),
    st.sampled_from(["3", "2,5", "q3", "q7"]),
    st.sampled_from([1, 4]),
)
def test_a_capped_band_that_is_full_is_passed_over(
    units: list[Unit], most: int, wanted: int, text: str, workers: int
) -> None:
    """Down the order, a row whose band has its rows already is left out."""
    order = ranked(units)
    eligible = [tokens_of(*place, 9) for place in order]
    if text.startswith("q"):
        parts, up = int(text[1:]), sorted(eligible)
        ends = (
            {up[math.ceil(Fraction(p * len(up), parts)) - 1] for p in range(1, parts)}
            if up
            else set()
        )
        edges = sorted(end + 1 for end in ends if end < up[-1])
    else:
        edges = [int(edge) for edge in text.split(",")]
    full: Counter[int] = Counter()
    expected: list[Place] = []
    total = min(wanted, len(order))
    for place, length in zip(order, eligible, strict=True):
        band = sum(length >= edge for edge in edges)
        if full[band] < most and len(expected) < total:
            full[band] += 1
            expected.append(place)

    rule = band_rule(KeepCount(wanted), bands=text, most=str(most))
    assert rule is not None
    columns = opened(units)
    tasks = dealt(columns, workers, seed=most)
    found = merge_tallies(lengths(task) for task in tasks)
    bands = bands_of(rule, found)
    assert list(bands.edges) == edges
    rows = rows_by_band(bands, found)
    if len(expected) < total:
        with pytest.raises(InputError, match="are to be kept"):
            within_cap(KeepCount(wanted), rule, bands=bands, eligible=rows)
        return
    within, keep = within_cap(KeepCount(wanted), rule, bands=bands, eligible=rows)
    for column in columns:
        column.group_by(bands.number(column))
    search = GroupSearch(eligible=rows, wanted=within)
    while probe := search.probe():
        if probe.width:
            search.take(probe, merge_tallies(tally(task, probe) for task in tasks))
        else:
            search.take(probe, merge_fetched(fetch(task, probe) for task in tasks))
    for column in columns:
        Cap(bands, search.cuts).apply(column)
    assert cut_of(columns, keep, shares=workers, seed=most) == set(expected)


def test_a_cap_as_a_share_is_one_of_the_rows_to_keep() -> None:
    rule = band_rule(parse_keep("50%"), bands="4", most="30%")
    assert isinstance(rule, BandRule)
    bands = bands_of(rule, merge_tallies([lengths([])]))
    with pytest.raises(InputError, match=r"15 rows leaves 19 .*0-3 \(has 4\)"):
        within_cap(parse_keep("50%"), rule, bands=bands, eligible=[4, 96])


MASK = 2**64 - 1


def mixed(bits: int) -> int:
    """SplitMix64 by Python's own integers."""
    bits = (bits + 0x9E3779B97F4A7C15) & MASK
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & MASK
    return bits ^ bits >> 31


def luck(seed: int, content: bytes, place: tuple[str, int] | None = None) -> float:
    """Gumbel noise of a row, by Python's own logarithm."""
    from scar_core.selection.luck import _number  # noqa: PLC0415

    high, low = int.from_bytes(content[:8]), int.from_bytes(content[8:])
    bits = mixed(mixed(high ^ _number(f"seed {seed}")) ^ low)
    if place is not None:
        bits = mixed(mixed(bits ^ _number(place[0])) ^ place[1])
    return -math.log(-math.log(((bits >> 12) + 0.5) * 2.0**-52))


@settings(max_examples=60)
@given(
    pools(finite),
    st.integers(1, 20),
    st.floats(0.01, 10),
    st.integers(0, 5),
    st.sampled_from(["content", "row"]),
    st.sampled_from([1, 4]),
)
def test_a_sample_is_the_beginning_of_an_order_by_score_and_luck(  # noqa: PLR0917
    units: list[Unit],
    k: int,
    temperature: float,
    seed: int,
    drawn: Literal["content", "row"],
    workers: int,
) -> None:
    """The same for any workers; noise as Python's own integers and logarithm give it."""
    worth = Sampled(temperature=temperature, seed=seed, drawn=drawn)
    columns = opened(units, worth=worth)
    worths = {}
    for column, unit in zip(columns, units, strict=True):
        for offset, row in enumerate(unit):
            if row.score is not None:
                place = (row.path, row.row) if drawn == "row" else None
                expected = row.score + temperature * luck(seed, row.content_hash, place)
                worths[column.ordinal, offset] = float(column.worth_N[offset])
                assert worths[column.ordinal, offset] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert cut_of(columns, KeepCount(k), shares=workers, seed=k) == set(ranked(units, worths)[:k])


@settings(max_examples=30)
@given(pools(finite), st.integers(1, 20))
def test_a_temperature_near_zero_is_the_plain_order(units: list[Unit], k: int) -> None:
    columns = opened(units, worth=Sampled(temperature=1e-60, seed=3, drawn="row"))
    assert cut_of(columns, KeepCount(k), shares=2, seed=k) == set(ranked(units)[:k])


def test_rows_are_drawn_in_proportion_to_the_exponential_of_their_score() -> None:
    """First of four, over 4,000 seeds; and second, given the first: without replacement."""
    values = [0.0, 1.0, 2.0, -1.0]
    units = make_units(values, unit_rows=4)
    weights = {value: math.exp(value / 1.5) for value in values}
    firsts: Counter[float] = Counter()
    seconds: Counter[float] = Counter()
    for seed in range(4000):
        found = []
        for unit, column in zip(
            units,
            opened(units, worth=Sampled(temperature=1.5, seed=seed, drawn="row")),
            strict=True,
        ):
            found += list(zip(column.worth_N.tolist(), [row.score for row in unit], strict=True))
        (_, first), (_, second), *_ = sorted(found, reverse=True)
        firsts[first or 0.0] += 1
        if first == 2.0:
            seconds[second or 0.0] += 1
    total = sum(weights.values())
    for value, weight in weights.items():
        assert firsts[value] / 4000 == pytest.approx(weight / total, abs=0.03)
        if value != 2.0:
            rest = total - weights[2.0]
            assert seconds[value] / firsts[2.0] == pytest.approx(weight / rest, abs=0.05)


def test_copies_share_their_luck_only_where_contents_are_drawn() -> None:
    units = make_units([1.0] * 12, unit_rows=4, hashes=1)
    lucks = {
        drawn: {
            value
            for column in opened(units, worth=Sampled(temperature=1, seed=0, drawn=drawn))
            for value in column.worth_N.tolist()
        }
        for drawn in ("content", "row")
    }
    assert (len(lucks["content"]), len(lucks["row"])) == (1, 12)


def test_the_logarithm_is_right_to_the_last_bits_and_noise_is_finite() -> None:
    values = np.concatenate(
        [np.geomspace(1e-300, 1e300, 999), 1 - np.geomspace(1e-15, 0.5, 999), [2.0**-53]]
    )
    exact = np.array([math.log(value) for value in values.tolist()])
    assert np.allclose(logarithm(values), exact, rtol=4e-16, atol=0)
    assert np.isfinite(gumbel(np.array([0, 2**64 - 1], np.uint64))).all()


@settings(max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 5))
def test_mean_and_deviation_are_those_of_exact_fractions(values: list[float], parts: int) -> None:
    """However the values are dealt."""
    shares = [np.array(values[start::parts], np.float32) for start in range(parts)]
    sums = sum(combine.moments(share) for share in shares)
    asked = combine.parse_combine("score:-2.5")
    exact = [Fraction(value) for value in values]
    variance = statistics.pvariance(exact)
    if not variance:
        with pytest.raises(InputError, match="orders nothing"):
            combine.fitted(asked, [sums])  # type: ignore[list-item]
        return
    (term,) = combine.fitted(asked, [sums]).terms  # type: ignore[list-item]
    assert (term.weight, term.mean) == (-2.5, float(statistics.mean(exact)))
    assert term.deviation == math.sqrt(variance)


@settings(max_examples=60)
@given(pools(), st.integers(1, 20), st.data(), st.sampled_from([1, 4]))
def test_a_weighted_sum_orders_rows_that_have_all_of_it(
    units: list[Unit], k: int, data: st.DataObject, workers: int
) -> None:
    """z-scores over those rows; a row without the column, or an infinite score, is counted."""
    value = st.sampled_from([NAN, 0.0, 1.0, 2.5, -3.0])
    numbers = [
        np.array(data.draw(st.lists(value, min_size=len(u), max_size=len(u))), np.float32)
        for u in units
    ]
    fit = {
        (o, at): (row.score, float(numbers[o][at]))
        for o, unit in enumerate(units)
        for at, row in enumerate(unit)
        if row.score is not None and math.isfinite(row.score) and not math.isnan(numbers[o][at])
    }
    asked = combine.parse_combine("score : 1 + quality:-0.5")
    columns = opened(units, worth=asked, numbers=numbers)
    sums = [
        sum(combine.moments(combine.values_of_term(c, term)[c.eligible_N]) for c in columns)
        for term in asked.terms
    ]
    spread = [statistics.pstdev(map(Fraction, part)) for part in zip(*fit.values(), strict=True)]
    if not columns or not all(spread):
        return
    found = combine.fitted(asked, sums)  # type: ignore[arg-type]
    means = [
        float(statistics.mean(map(Fraction, part))) for part in zip(*fit.values(), strict=True)
    ]
    worths = {
        place: float(
            np.float32(
                (pair[0] - means[0]) / found.terms[0].deviation
                + -0.5 * ((pair[1] - means[1]) / found.terms[1].deviation)
            )
        )
        for place, pair in fit.items()
    }
    columns = opened(units, worth=found, numbers=numbers)
    assert cut_of(columns, KeepCount(k), shares=workers, seed=k) == set(ranked(units, worths)[:k])
    counts = survey(columns).counts
    assert counts.rows == counts.eligible + sum(counts.quarantined.values())
    assert counts.eligible == len(fit)
    have = [r.score for u in units for r in u if r.score is not None]
    assert counts.quarantined.get("score_nan", 0) == sum(map(math.isnan, have))


@settings(max_examples=60)
@given(pools(), st.integers(1, 20), st.data(), st.sampled_from([1, 4]))
def test_fronts_are_those_that_peeling_gives(
    units: list[Unit], k: int, data: st.DataObject, workers: int
) -> None:
    """All pairs against all pairs; within a front by score, then as ever."""
    value = st.sampled_from([NAN, 0.0, -0.0, 1.0, 2.5, -3.0])
    numbers = [
        np.array(data.draw(st.lists(value, min_size=len(u), max_size=len(u))), np.float32)
        for u in units
    ]
    left = {
        (o, at): (row.score, float(numbers[o][at]))
        for o, unit in enumerate(units)
        for at, row in enumerate(unit)
        if row.score is not None and math.isfinite(row.score) and not math.isnan(numbers[o][at])
    }
    expected: list[Place] = []
    while left:
        front = {
            place
            for place, (a, b) in left.items()
            if not any(c >= a and d >= b and (c > a or d > b) for c, d in left.values())
        }
        expected += [place for place in ranked(units) if place in front]
        left = {place: pair for place, pair in left.items() if place not in front}
    asked = fronts.Fronts(names=("score", "quality"))
    tasks = dealt(opened(units, worth=asked, numbers=numbers), workers, seed=k)
    pairs = fronts.merge_pairs(fronts.distinct_pairs(task, asked) for task in tasks)
    columns = opened(units, worth=fronts.fitted(asked, pairs), numbers=numbers)
    assert cut_of(columns, KeepCount(k), shares=workers, seed=k) == set(expected[:k])


def test_more_pairs_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "MOST_PAIRS", 3)
    with pytest.raises(InputError, match="more than 3 different pairs"):
        fronts.merge_pairs([np.arange(2, dtype=np.uint64), np.arange(4, dtype=np.uint64)])


@pytest.mark.parametrize(
    ("keep", "flags", "says"),
    [
        ("10%", {"temperature": 0.0}, "above 0"),
        ("10%", {"seed": -1}, "--seed"),
        ("10%", {"pareto": ["score"]}, "two columns"),
        ("10%", {"pareto": ["score", "q"], "temperature": 1.0}, "Leave one out"),
        ("score>=1", {"temperature": 1.0}, "would do nothing"),
        ("10%", {"combine": "score:1 + quality"}, "with their weights"),
        ("10%", {"combine": "score:1+score:2"}, "named twice"),
    ],
)
def test_orders_that_make_no_sense_are_refused(keep: str, flags: dict[str, Any], says: str) -> None:
    plain: dict[str, Any] = {"combine": None, "pareto": [], "temperature": None, "seed": 0}
    with pytest.raises(InputError, match=says):
        order_rule(parse_keep(keep), drawn="row", **(plain | flags))
