"""A run of any length: what stays in memory, what a browser is sent, and that no peak is lost on the way."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from operator_console.status_screen import Around
from operator_console.view_state import Shown
from operator_console.web.course import Course
from operator_console.web.snapshot import Surroundings, snapshot_of, without_clocks
from shared import messages
from shared.broker import Delivery, Message
from shared.messages import Counters, Entry, Location, Manifest, ManifestRecord, Settlement
from tests.builders import BY_PSEUDONYM, RUN, a_manifest, name_of

SHOWN = Shown("Toy", "auc")
BANKS = tuple(BY_PSEUDONYM)
PEAK_AT, PEAK = 4321, 0.987654321


def auc(version: int) -> float:
    """Wavers a little, and once much."""
    return PEAK if version == PEAK_AT else 0.7 + 0.01 * math.sin(version)


def manifest(version: int, previous: str, *, members: int = 1) -> Manifest:
    """One update each of `members` institutions, of staleness 0 to 4."""
    who = [f"{number:016x}" for number in range(members)] if members > 1 else [BANKS[version % 3]]
    settled = [
        Settlement(
            institution=alias,
            incarnation=1,
            sequence=max(1, version),
            hash="e" * 64,
            outcome="aggregated",
            staleness=version % 5,
            weight=(0.25).hex(),
        )
        for alias in who
    ]
    entries = {alias: Entry(incarnation=1, num_examples=100, counters=Counters(aggregated=version)) for alias in who}
    changes = {"settled": settled, "table": entries, "whole": False, "plan": None} if version else {}
    return a_manifest(version, previous=previous, metrics={"log_loss": 0.5, "auc": auc(version)}, **changes)


def records(count: int, **options: int) -> Iterator[tuple[ManifestRecord, Delivery]]:
    """Versions a second apart; each stands at ten times its number in the lineage."""
    previous = ""
    for version in range(count):
        record = messages.manifest_record(1, manifest(version, previous, **options), Location(offset=0, chunks=1))
        previous = record.hash
        yield (
            record,
            Delivery("fl.lineage", 1, Message(b"", "manifest", "", {"at_ms": 5000 + 1000 * version}), None, offset=10 * version),
        )


def course_of(count: int, **options: int) -> Course:
    course = Course(BY_PSEUDONYM, kept=250)
    for record, delivery in records(count, **options):
        course.take(record, delivery)
    return course


def told(course: Course, **changes: object) -> dict[str, Any]:
    around = Surroundings(SHOWN, now_ms=5000 + 1000 * 10_000, **changes)
    return snapshot_of(course, around)


HASHES: dict[int, str] = {}


@pytest.fixture(scope="module")
def long_run() -> Course:
    course = Course(BY_PSEUDONYM, kept=250)
    for record, delivery in records(10_001):
        HASHES[record.manifest.version] = record.hash
        course.take(record, delivery)
    return course


def test_ten_thousand_versions_are_a_snapshot_of_less_than_300_kb_that_keeps_the_peak(long_run):
    snapshot = told(long_run)
    assert len(json.dumps(snapshot, separators=(",", ":"))) < 150_000
    points = snapshot["metrics"]["points"]
    assert 500 < len(points) <= 602
    assert [point["version"] for point in (points[0], points[-1])] == [0, 10_000]
    assert {"version": PEAK_AT, "seconds": 4321.0, "values": {"auc": 0.987654, "log_loss": 0.5}} in points
    assert [each["version"] for each in snapshot["versions"]] == list(range(10_000, 9_800, -1))
    assert snapshot["staleness"] == {"0": 2000, "1": 2000, "2": 2000, "3": 2000, "4": 2000}
    assert snapshot["run"]["version"] == 10_000


def test_a_hundred_institutions_in_each_version_do_not_make_it_larger_than_300_kb():
    snapshot = told(course_of(300, members=100))
    assert len(json.dumps(snapshot, separators=(",", ":"))) < 300_000
    newest = snapshot["versions"][0]
    assert (newest["updates"], len(newest["institutions"])) == (100, 12)


def test_of_a_long_run_only_the_first_and_the_newest_links_stay_in_memory(long_run):
    links = [link.manifest.version for link in long_run.history.links]
    assert (links[0], links[-1]) == (0, 10_000)
    assert 250 <= len(links) <= 501
    assert all(len(part.settled) <= 501 for part in long_run.history.parts())


def test_a_version_that_left_memory_has_its_place_in_the_lineage(long_run):
    assert long_run.line(9_990)["metrics"]["auc"] == auc(9_990)
    assert long_run.line(5_000) is None
    place = long_run.place(5_000)
    assert (place.offset, place.hashes) == (50_000, (HASHES[5_000],))
    assert long_run.place(10_001) is None
    assert long_run.place(-1) is None


def test_a_record_that_is_read_again_after_a_reconnection_changes_nothing():
    course = course_of(30)
    before = told(course)
    for record, delivery in records(30):
        course.take(record, delivery)
    assert told(course) == before
    assert course.place(29).offset == 290


def test_a_short_run_is_shown_point_by_point_and_a_missing_figure_is_left_out():
    course = Course({})
    zero = messages.manifest_record(1, a_manifest(0, metrics={}), Location(offset=0, chunks=1))
    one = messages.manifest_record(
        1, a_manifest(1, previous=zero.hash, metrics={"auc": 0.75, "rmse": None}), Location(offset=1, chunks=1)
    )
    for number, record in enumerate((zero, one)):
        course.take(
            record, Delivery("fl.lineage", 1, Message(b"", "manifest", "", {"at_ms": 5000 + 250 * number}), None, offset=number)
        )
    assert course.points("auc") == [{"version": 1, "seconds": 0.25, "values": {"auc": 0.75}}]


def test_while_the_broker_is_silent_the_run_stands_still_and_the_page_says_so():
    course = course_of(30)
    seen = snapshot_of(course, Surroundings(SHOWN, now_ms=40_000))
    silent = snapshot_of(course, Surroundings(SHOWN, now_ms=400_000, silent_seconds=360.0, trouble="no node answers"))
    assert [row["state"] for row in silent["institutions"]] == [row["state"] for row in seen["institutions"]] == ["training"] * 3
    assert (seen["connected"], seen["silent_seconds"]) == (True, 0.0)
    assert (silent["connected"], silent["silent_seconds"]) == (False, 360.0)
    assert silent["run"]["elapsed_seconds"] == seen["run"]["elapsed_seconds"] == 35.0
    assert silent["run"]["attention"] == (
        "This console has no connection to the broker: no node answers. It keeps trying; what is shown is as it was before."
    )


def test_only_clocks_differ_between_two_looks_at_the_same_run():
    course = course_of(5)
    first, second = (snapshot_of(course, Surroundings(SHOWN, now_ms=now)) for now in (11_000, 12_000))
    assert first != second
    assert without_clocks(first) == without_clocks(second)


def test_before_there_is_a_run_the_page_says_what_to_do():
    empty = snapshot_of(Course({}), Surroundings(SHOWN, now_ms=1))
    assert empty["run"] is None
    assert empty["attention"] == "The lineage is empty: run `fedqueue init` first, it makes version 0."
    reading = snapshot_of(Course({}), Surroundings(SHOWN, now_ms=1, reading=True))
    assert reading["attention"] == "The lineage is being read."


def test_queues_dead_letters_and_warnings_are_told_and_their_absence_too():
    name = BY_PSEUDONYM[BANKS[0]]
    snapshot = told(course_of(5), seen=Around({f"fl.upd.{name}": 7, "fl.dlq": 2}), warnings=["a certificate ends"])
    rows = {row["id"]: row["waiting_messages"] for row in snapshot["institutions"]}
    assert rows[name] == 7
    assert (snapshot["dead_letters"], snapshot["queues"]["fl.dlq"]) == (2, 2)
    assert snapshot["run"]["warnings"] == ["a certificate ends"]
    assert snapshot["attention"].startswith("7 messages wait, and nothing was committed for ")
    assert told(course_of(5), seen=Around(aggregators=0))["attention"].startswith("No aggregator is at the broker")
    without = told(course_of(5))
    assert (without["queues"], without["dead_letters"]) == (None, None)


def test_quarantine_and_removal_are_told_of_an_institution():
    course = Course(BY_PSEUDONYM)
    states = {name_of("bank-a"): Entry(incarnation=1, quarantined=True), name_of("bank-b"): Entry(incarnation=1, removed=True)}
    zero = messages.manifest_record(1, a_manifest(0, table=states), Location(offset=0, chunks=1))
    course.take(zero, Delivery("fl.lineage", 1, Message(b"", "manifest", "", {"at_ms": 5000}), None, offset=0))
    rows = {row["id"]: (row["state"], row["quarantined"], row["removed"]) for row in told(course)["institutions"]}
    assert rows == {"bank-a": ("quarantined", True, False), "bank-b": ("removed", False, True)}
    assert told(course)["run"]["id"] == RUN
