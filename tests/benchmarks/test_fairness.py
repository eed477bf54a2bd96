import xml.etree.ElementTree as ET

import numpy as np

from benchmarks.fairness import PLANS, RATIOS, Row, markdown, picture, slow_share, table


def row(plan: str, ratio: float, *, weight: float, model: float, fixed: bool = False) -> Row:
    return Row(plan, ratio, 3000, 0.5, weight, fixed, model, 0.0123)


def test_the_slow_half_is_the_second_one() -> None:
    assert slow_share(np.array([2.0] * 5 + [1.0] * 5)) == 1 / 3


def test_a_weight_that_is_so_by_construction_is_told_and_not_shown_as_measured() -> None:
    rows = [row("fedasync", 1.0, weight=0.5, model=0.49), row("fedasync", 10.0, weight=0.09, model=0.08)]
    rows += [row("latest-model", ratio, weight=0.5, model=0.5, fixed=True) for ratio in (1.0, 10.0)]

    assert markdown(rows).splitlines() == [
        "| fedasync | 0.500 | 0.090 | 0.490 | 0.080 | 1e-02 | 1e-02 |",
        "| latest-model | by construction | by construction | 0.500 | 0.500 | 1e-02 | 1e-02 |",
    ]
    assert table(rows).count("0.500*") == 2


def test_the_picture_says_in_words_where_every_rule_ends() -> None:
    rows = [row(plan, ratio, weight=0.5, model=0.25) for plan in PLANS for ratio in RATIOS]

    drawn = ET.fromstring(picture(rows))

    title = drawn.findtext("{http://www.w3.org/2000/svg}title") or ""
    assert all(f"{plan} 0.250" in title for plan in PLANS)
