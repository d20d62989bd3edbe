"""`minimal_set` over random planted sets: what it finds, in how many tests."""

import math

import numpy as np
import pytest

from tfmp.doctor.fallback.minimal import minimal_set

RNG = np.random.default_rng(0)


def counted(is_good):
    """The test, and the list of sets that it was asked of."""
    asked = []

    def good(chosen):
        assert tuple(sorted(chosen)) == chosen  # in the order of the items, which are sorted here
        asked.append(chosen)
        return is_good(set(chosen))

    return good, asked


def most(k, n):
    return 4 * k * math.log2(n) + 10


PLANTED = [(n, k) for n in (1, 2, 3, 10, 17, 31, 60, 1000) for k in (0, 1, 2, 3, 5) if k <= n]


@pytest.mark.parametrize(("n", "k"), PLANTED)
def test_all_planted_are_found_and_nothing_else(n, k):
    for _ in range(30):
        planted = set(RNG.choice(n, k, replace=False).tolist())
        likely = int(RNG.integers(0, n + 1))
        good, asked = counted(lambda chosen, planted=planted: planted <= chosen)
        assert minimal_set(range(n), good, likely) == sorted(planted)
        assert len(asked) <= 2 + k * (math.ceil(math.log2(n)) + 3) <= most(k, n)
        assert len(set(asked)) == len(asked)
        first = list(asked)
        minimal_set(range(n), good, likely)
        assert asked == first * 2  # the same again


@pytest.mark.parametrize("n", [10, 33, 60])
def test_either_of_a_pair_is_enough(n):
    """Planted clauses: of each, one item is needed."""
    for _ in range(50):
        items = RNG.choice(n, 6, replace=False).tolist()
        clauses = [set(items[:2]), set(items[2:4]), {items[4]}, {items[5]}]

        def covers(chosen, clauses=clauses):
            return all(chosen & clause for clause in clauses)

        good, asked = counted(covers)
        found = minimal_set(range(n), good)
        assert len(found) == 4 and covers(set(found))
        assert len(asked) <= most(4, n)


def test_any_monotone_test_gives_a_set_of_which_nothing_can_be_left_out():
    for _ in range(200):
        n = int(RNG.integers(3, 40))
        ways = [set(RNG.choice(n, RNG.integers(1, 4)).tolist()) for _ in range(4)]

        def good(chosen, ways=ways):
            return any(way <= set(chosen) for way in ways)

        found = set(minimal_set(range(n), good))
        assert good(found) and not any(good(found - {x}) for x in found)


def test_a_test_that_more_items_can_break_still_gives_such_a_set():
    for _ in range(200):
        n = int(RNG.integers(3, 30))
        verdicts = dict[frozenset, bool]()

        def good(chosen, verdicts=verdicts, n=n):
            all_or_none = {n: True, 0: False}.get(len(chosen))
            known = RNG.random() < 0.5 if all_or_none is None else all_or_none
            return verdicts.setdefault(frozenset(chosen), known)

        found = minimal_set(range(n), good)
        assert good(found) and not any(good([y for y in found if y != x]) for x in found)


def test_suspects_in_front_take_fewer_tests():
    tests = []
    for likely in (0, 3):
        good, asked = counted(lambda chosen: {0, 2} <= chosen)
        assert minimal_set(range(200), good, likely) == [0, 2]
        tests.append(len(asked))
    assert tests[1] <= 7 < tests[0]


def test_nothing_helps():
    assert minimal_set(range(5), lambda chosen: False) is None
    assert minimal_set([], lambda chosen: False) is None
    assert minimal_set([], lambda chosen: True) == []
