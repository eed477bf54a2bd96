"""The data of a demonstration: each institution's own files, drawn by the seed from real data that ships with fedqueue."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import builtin_tasks
from shared.did_you_mean import suggestion
from shared.errors import SettingsError

Row = dict[str, str]
Rows = list[Row]

MOST_TRAINING_ROWS, MOST_TEST_ROWS = 1000, 600
INSTITUTIONS = {"sba-loans": 6, "credit-default": 6, "heart-disease": 4, "digits": 5, "mnist": 3}
"""How many institutions a task has unless the operator says otherwise."""
SPLITS = {"credit-default": ("age", "limit", "limit-octile"), "digits": ("even", "skewed"), "mnist": ("even", "skewed")}
"""The ways in which a task's rows can be divided; the first is the usual one."""
WHOLE = "limit-octile"
"""The split of which every row is used, by as many institutions as there are groups, unless the operator says otherwise."""
MOST_IMAGE_INSTITUTIONS = 10

BANKS = {
    "BANCO POPULAR NORTH AMERICA": ("banco-popular", "Banco Popular"),
    "BANK OF AMERICA NATL ASSOC": ("bank-of-america", "Bank of America"),
    "CAPITAL ONE NATL ASSOC": ("capital-one", "Capital One"),
    "CITIZENS BANK NATL ASSOC": ("citizens-bank", "Citizens Bank"),
    "JPMORGAN CHASE BANK NATL ASSOC": ("jpmorgan-chase", "JPMorgan Chase"),
    "MANUFACTURERS & TRADERS TR CO": ("manufacturers-traders", "Manufacturers & Traders"),
    "PNC BANK, NATIONAL ASSOCIATION": ("pnc-bank", "PNC Bank"),
    "TD BANK, NATIONAL ASSOCIATION": ("td-bank", "TD Bank"),
    "THE HUNTINGTON NATIONAL BANK": ("huntington", "Huntington"),
    "U.S. BANK NATIONAL ASSOCIATION": ("us-bank", "U.S. Bank"),
    "WELLS FARGO BANK NATL ASSOC": ("wells-fargo", "Wells Fargo"),
    "ZIONS FIRST NATIONAL BANK": ("zions-bank", "Zions Bank"),
}
HOSPITALS = {
    "Cleveland": ("cleveland-clinic", "Cleveland Clinic"),
    "Hungary": ("budapest", "Hungarian Institute of Cardiology"),
    "Switzerland": ("zurich-basel", "University Hospitals Zurich and Basel"),
    "VA Long Beach": ("va-long-beach", "V.A. Medical Center Long Beach"),
}
# Upper ends, the last one open.
AGES = {
    25: "up to 25 years",
    30: "26 to 30 years",
    35: "31 to 35 years",
    40: "36 to 40 years",
    50: "41 to 50 years",
    999: "over 50 years",
}
LIMITS = {
    30_000: "limit up to 30,000",
    50_000: "limit up to 50,000",
    100_000: "limit up to 100,000",
    200_000: "limit up to 200,000",
    300_000: "limit up to 300,000",
    9_999_999: "limit over 300,000",
}
# An eighth of the clients each, but for those who share a limit.
LIMIT_OCTILES = {
    30_000: "limit up to 30,000",
    50_000: "limit 30,001 to 50,000",
    90_000: "limit 50,001 to 90,000",
    140_000: "limit 90,001 to 140,000",
    190_000: "limit 140,001 to 190,000",
    240_000: "limit 190,001 to 240,000",
    340_000: "limit 240,001 to 340,000",
    9_999_999: "limit over 340,000",
}
TIERS = {
    "age": ("AGE", AGES, "age"),
    "limit": ("LIMIT_BAL", LIMITS, "limit"),
    "limit-octile": ("LIMIT_BAL", LIMIT_OCTILES, "octile"),
}
"""Column, upper ends with their titles, and what the institutions' ids begin with."""
LABELS = {"credit-default": "default payment next month", "heart-disease": "num"}


@dataclass(frozen=True, slots=True)
class DemoInstitution:
    """One institution's id, its name for people, and its own files."""

    id: str
    title: str
    training_file: Path
    test_file: Path


@dataclass(frozen=True, slots=True)
class Group:
    """One institution's rows before they are drawn."""

    id: str
    title: str
    rows: Rows


def prepare(task: str, *, institutions: int | None, seed: int, folder: Path, split: str | None = None) -> list[DemoInstitution]:
    """Writes `data/<id>/{training,test}.csv`, `held_out.csv` (all test rows) and `task.toml` into the folder.

    Raises SettingsError for an unknown task or split, for more institutions than there are, or for a missing library.
    """
    groups = _groups(task, institutions, seed, split)
    (folder / "task.toml").write_text(builtin_tasks.task_text(task), encoding="utf-8")
    held_out: Rows = []
    written = []
    for number, group in enumerate(groups):
        rng = np.random.default_rng([seed, number])
        training, test = _parted(task, split, group.rows, rng)
        home = folder / "data" / group.id
        home.mkdir(parents=True, exist_ok=True)
        _write(home / "training.csv", training)
        _write(home / "test.csv", test)
        held_out += test
        written.append(DemoInstitution(group.id, group.title, home / "training.csv", home / "test.csv"))
    _write(folder / "held_out.csv", held_out)
    return written


def _groups(task: str, institutions: int | None, seed: int, split: str | None) -> list[Group]:
    if task not in builtin_tasks.TASKS:
        raise SettingsError(f"no built-in task is called {task!r}: {suggestion(task, builtin_tasks.TASKS)}")
    splits = SPLITS.get(task, ())
    if split is not None and split not in splits:
        raise SettingsError(
            f"the task {task} has no split {split!r}; " + (f"use {' or '.join(splits)}" if splits else "leave --split away")
        )
    usual = len(LIMIT_OCTILES) if split == WHOLE else INSTITUTIONS[task]
    wanted = usual if institutions is None else institutions
    if task in ("digits", "mnist"):
        most = MOST_IMAGE_INSTITUTIONS
        groups = _image_groups(task, min(wanted, most), seed, skewed=split == "skewed") if 1 <= wanted <= most else []
    else:
        groups = NAMED_GROUPS[task](split)
        most = len(groups)
    if not 1 <= wanted <= most:
        raise SettingsError(f"the task {task} has 1 to {most} institutions, not {wanted}; correct --institutions")
    return groups[:wanted]


def _banks(_split: str | None) -> list[Group]:
    return _by_name(map(_with_derived_columns, _shipped("sba-loans")), "bank", BANKS)


def _with_derived_columns(loan: Row) -> Row:
    """What a bank would compute from each loan by itself: a straight line through amounts cannot say a share."""
    share = int(loan["sba_guaranteed"]) / int(loan["amount_approved"])
    same_state = int(loan["bank_state"] == loan["borrower_state"])
    return loan | {"guaranteed_share": f"{share:.3f}", "same_state": str(same_state)}


def _hospitals(_split: str | None) -> list[Group]:
    return _by_name(_shipped("heart-disease"), "dataset", HOSPITALS)


def _clients(split: str | None) -> list[Group]:
    column, tiers, prefix = TIERS[split or "age"]
    rows: dict[int, Rows] = {end: [] for end in tiers}
    for row in _shipped("credit-default"):
        rows[next(end for end in tiers if int(row[column]) <= end)].append(row)
    return [Group(f"{prefix}-{number}", tiers[end], rows[end]) for number, end in enumerate(tiers, start=1)]


NAMED_GROUPS: Mapping[str, Callable[[str | None], list[Group]]] = {
    "sba-loans": _banks,
    "credit-default": _clients,
    "heart-disease": _hospitals,
}


def _by_name(rows: Iterable[Row], column: str, names: Mapping[str, tuple[str, str]]) -> list[Group]:
    groups = {name: Group(*names[name], []) for name in sorted(names)}
    for row in rows:
        groups[row[column]].rows.append(row)
    return list(groups.values())


def _shipped(task: str) -> Rows:
    return list(csv.DictReader(io.StringIO(builtin_tasks.rows(task).decode(), newline="")))


def _image_groups(task: str, institutions: int, seed: int, *, skewed: bool) -> list[Group]:
    """Skewed: half of the images of a digit are at one institution, the others anywhere."""
    try:
        images, digits = builtin_tasks.images(task)
    except ImportError as error:
        raise SettingsError(f'the images of {task} come with {error.name}; run: .venv/bin/pip install -e ".[{task}]"') from error
    rng = np.random.default_rng([seed, len(digits)])
    owner = rng.integers(institutions, size=len(digits))
    if skewed:
        owner = np.where(rng.random(len(digits)) < 0.5, digits % institutions, owner)
    groups = [Group(f"institution-{number}", f"Institution {number}", []) for number in range(1, institutions + 1)]
    for image, digit, at in zip(images, digits, owner, strict=True):
        pixels = {f"p{position}": f"{value:g}" for position, value in enumerate(image)}
        groups[at].rows.append(pixels | {"digit": str(digit)})
    return groups


def _parted(task: str, split: str | None, rows: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows to train on and rows to test on."""
    if task == "heart-disease":
        return _stratified(rows, rng, label=LABELS[task], training_share=0.66)
    if split == WHOLE:
        return _stratified(rows, rng, label=LABELS[task], training_share=0.8)
    return _drawn(rows, rng)


def _drawn(rows: Rows, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """At most 1,000 rows to train on and 600 to test on, or 5 to 3 of what there is."""
    training = min(MOST_TRAINING_ROWS, len(rows) * 5 // 8)
    test = min(MOST_TEST_ROWS, len(rows) - training)
    order = rng.permutation(len(rows))
    return [rows[at] for at in order[:training]], [rows[at] for at in order[training : training + test]]


def _stratified(rows: Rows, rng: np.random.Generator, *, label: str, training_share: float) -> tuple[Rows, Rows]:
    """All rows, the same share of those whose label is 0 and of the others."""
    training: Rows = []
    test: Rows = []
    for positive in (False, True):
        some = [row for row in rows if (row[label] != "0") == positive]
        order = rng.permutation(len(some))
        cut = round(training_share * len(some))
        training += [some[at] for at in order[:cut]]
        test += [some[at] for at in order[cut:]]
    return training, test


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
