"""Made-up invoices for a federation that is only to be tried: the same seed gives the same rows."""

import math
import random

from operator_console.column_guess import CategoricalDraft, Draft, LabelDraft, NumericDraft

Rows = list[dict[str, str]]

TITLE = "Will this invoice be paid late?"
SECTORS = {"retail": 0.0, "food": 0.9, "building": -0.9}
DRAFT = Draft(
    LabelDraft("late", "binary", positive="yes", negative="no", base_rate=0.4),
    (
        NumericDraft("amount", 10, 10000, log=True, comment="in euros; values beyond the range count as its ends"),
        NumericDraft("age_days", 0, 100),
        NumericDraft("orders", 0, 50, has_missing=True, comment="of the year before; some are not known"),
    ),
    (CategoricalDraft("sector", tuple(SECTORS), comment="anything else, and an empty cell, is one more category"),),
    {"invoice_id": "it only names the row"},
)


def invoices(count: int, seed: int) -> Rows:
    """Large amounts of few orders are paid late; how much the age says depends on the sector."""
    rng = random.Random(seed)  # noqa: S311 - made-up rows, no secret
    return [_invoice(rng, f"{seed}-{number}") for number in range(1, count + 1)]


def _invoice(rng: random.Random, name: str) -> dict[str, str]:
    size, age, orders = rng.gauss(0, 1), rng.random(), rng.random()
    sector = rng.choice(list(SECTORS))
    score = 2.0 * size + 2.5 * SECTORS[sector] * (2 * age - 1) + 2.0 * (age - 0.5) - 2.5 * (orders - 0.5) - 0.6
    return {
        "invoice_id": name,
        "amount": f"{min(max(math.exp(6.5 + size), 10), 10000):.2f}",
        "age_days": str(round(100 * age)),
        "orders": "" if rng.random() < 0.05 else str(round(50 * orders)),
        "sector": sector,
        "late": "yes" if rng.random() < 1 / (1 + math.exp(-score)) else "no",
    }
