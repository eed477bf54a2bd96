"""When a run ends, why, and which version is the best: from plans, tables and figures that are made by hand."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from aggregator_worker import worker
from aggregator_worker.admission import Admission
from aggregator_worker.ending import Best, Progress, Tally, ending_reached
from aggregator_worker.federation import Federation
from aggregator_worker.operations import apply
from broker_config.topology import LINEAGE
from shared import messages
from shared.errors import SettingsError
from shared.messages import BlobName, Counters, Entry, Location
from shared.plan import Ending, LocalPlan, Plan, PrivacyPlan
from tests.builders import (
    NAMES,
    NO_NOISE,
    RUN,
    a_blob,
    a_federation,
    a_hello,
    a_plan,
    a_table,
    an_operation,
    an_update,
    array,
    folded,
    name_of,
)
from tests.conftest import MemoryServer
from tests.running import Leader, Watch, begin, term_settings

PLAN, DP = "d" * 64, PrivacyPlan()
TABLE = {name: Entry(incarnation=1, num_examples=100) for name in NAMES}
NEVER = Ending(updates=1000, updates_each=1)


def over(plan: Plan, table: Mapping[str, Entry], plan_hash: str = PLAN) -> str | None:
    """Why a run is over by its table alone."""
    return ending_reached(plan, Tally.of(plan, plan_hash, table.values()), 0, Progress())


@pytest.mark.parametrize(
    ("ending", "counts", "reached"),
    [
        (Ending(), {"bank-a": 1000}, False),
        (Ending(updates=10), {"bank-a": 9}, False),
        (Ending(updates=10), {"bank-a": 10}, True),
        (Ending(updates=10, updates_each=2), {"bank-a": 9, "bank-b": 1}, False),
        (Ending(updates=10, updates_each=2), {"bank-a": 7, "bank-b": 2, "bank-c": 2}, True),
        (Ending(updates=10, updates_each=2), {"bank-a": 7, "bank-b": 5}, False),
    ],
)
def test_a_run_ends_when_enough_came_in_all_and_from_each(ending, counts, reached):
    entries = {name: Entry(incarnation=1, counters=Counters(aggregated=counts.get(name, 0))) for name in NAMES}
    assert (over(a_plan(ending=ending), a_table(entries)) is not None) == reached


def members(**changes: Mapping[str, Any]) -> dict[str, Entry]:
    """The table's three, each having given three updates, but for what is said otherwise."""
    entries = {name: TABLE[name].model_copy(update={"watermark": 3, "counters": Counters(aggregated=3)}) for name in TABLE}
    told = {name.replace("_", "-"): entries["bank-a"].model_copy(update=each) for name, each in changes.items()}
    return a_table(entries | told)


def left(state: str, plan_hash: str = PLAN) -> dict[str, Any]:
    return {"standing": state, "standing_plan": plan_hash}


SPENT, REFUSED = left("budget_spent"), left("plan_refused")


@pytest.mark.parametrize("standing", [SPENT, REFUSED, {"quarantined": True}], ids=["spent", "refuses", "quarantined"])
def test_nobody_waits_for_an_institution_that_has_left_the_plan(standing):
    plan = a_plan(ending=Ending(updates=8, updates_each=3))
    missing = {"counters": Counters(aggregated=2)}
    assert over(plan, members(bank_c=missing)) is None
    assert over(plan, members(bank_c=missing | standing)) == "8 updates are aggregated"
    if "standing" in standing:
        assert over(plan, members(bank_c=missing | standing), "e" * 64) is None


@pytest.mark.parametrize(
    ("of_two", "over_now"),
    [
        (({}, {}), False),
        ((SPENT, {}), False),
        ((SPENT, {"watermark": 20}), True),
        (({"quarantined": True}, {"watermark": 20}), True),
        ((SPENT | {"active": False}, SPENT), True),
        ((SPENT, REFUSED), False),
        ((SPENT, SPENT | {"removed": True}), False),
    ],
)
def test_a_run_that_waits_for_two_institutions_does_not_wait_for_the_third(of_two, over_now):
    """However many of their updates were rejected: this one is far from the number of updates that would end it."""
    plan = a_plan(ending=Ending(updates=1000, institutions=2, updates_each=3), local=LocalPlan(updates=20))
    table = members(bank_a=of_two[0], bank_b=of_two[1])
    assert over(plan, table) == ("2 institutions have given all they could" if over_now else None)
    late = {"counters": Counters(aggregated=2)}
    assert over(plan, members(bank_a=of_two[0], bank_b=of_two[1], bank_c=late)) is None


@pytest.mark.parametrize(
    ("privacy", "of_each", "reason"),
    [
        (DP, (SPENT, SPENT, SPENT), "has spent its budget"),
        (DP, (SPENT, SPENT, {"watermark": 20}), "has spent its budget"),
        (DP, (SPENT, SPENT, {"active": False, "removed": True}), "has spent its budget"),
        (DP, (SPENT, SPENT, {"active": False}), "has spent its budget"),
        (DP, (SPENT, SPENT, {"quarantined": True}), "has spent its budget"),
        (DP, (SPENT, SPENT, REFUSED), "has spent its budget or refuses the plan"),
        (DP, (REFUSED, REFUSED, REFUSED), None),
        (NO_NOISE, ({"watermark": 20}, {"watermark": 21}, SPENT), "has given its planned updates"),
        (DP, (SPENT, SPENT, {}), None),
        (DP, (SPENT, SPENT, left("budget_spent", "e" * 64)), None),
        (DP, (SPENT, SPENT, {"watermark": 19}), None),
    ],
)
def test_a_run_whose_end_nobody_can_reach_any_more_is_over(privacy, of_each, reason):
    table = members(**dict(zip(("bank_a", "bank_b", "bank_c"), of_each, strict=True)))
    rest = {"privacy": privacy, "local": LocalPlan(updates=20)}
    for ending in (NEVER, Ending(versions=1000), Ending(metric="auc", target=0.99)):
        assert over(a_plan(ending=ending, **rest), table) == (reason and f"every institution {reason}")
    assert over(a_plan(**rest), table) is None, "it was to go on for ever"


def test_a_federation_without_members_is_not_over():
    assert over(a_plan(ending=NEVER), {}) is None


def test_totals_that_are_kept_up_entry_by_entry_are_those_of_the_whole_table():
    plan = a_plan(ending=Ending(updates=8, updates_each=3), local=LocalPlan(updates=20))
    table, tally = members(), Tally.of(plan, PLAN, members().values())
    changes: list[dict[str, Any]] = [
        {"watermark": 20, "counters": Counters(aggregated=20)},
        SPENT,
        {"active": False},
        {"active": True, **REFUSED},
        {"quarantined": True},
        {"quarantined": False, "standing": None, "watermark": 2, "counters": Counters(aggregated=2)},
        {"removed": True},
    ]
    for change in changes:
        entry = table[name_of("bank-b")]
        table[name_of("bank-b")] = entry.model_copy(update=change)
        tally = tally.changed(plan, PLAN, entry, table[name_of("bank-b")])
        assert tally == Tally.of(plan, PLAN, table.values())
    # six of two others; one more member has three to give before anybody else has given as many as each must
    assert tally == Tally(aggregated=6, behind=0, may_give=2, have_given=0, refuse=0, done=0)
    assert tally.changed(plan, PLAN, None, Entry(incarnation=1)).behind == 1


def figures(ending: Ending, *values: float | None) -> list[Progress]:
    """The course of a run whose versions have these figures, from version 1 on."""
    course = [Progress()]
    for version, value in enumerate(values, start=1):
        course.append(course[-1].measured(ending, version, a_blob(f"model {version}"), value))
    return course[1:]


def ended_at(ending: Ending, *values: float | None) -> list[tuple[int, str]]:
    """Every version at which such a run could end, and why."""
    plan = a_plan(ending=ending)
    reasons = [ending_reached(plan, Tally(), version, each) for version, each in enumerate(figures(ending, *values), start=1)]
    return [(version, reason) for version, reason in enumerate(reasons, start=1) if reason is not None]


def test_the_best_version_is_the_first_with_the_best_figure():
    course = figures(Ending(metric="auc"), 0.6, 0.7, 0.7, None, 0.65, float("nan"))
    assert [each.best and each.best.version for each in course] == [1, 2, 2, 2, 2, 2]
    assert course[-1].best == Best(2, 0.7, a_blob("model 2"))


def test_of_an_error_the_lowest_is_the_best():
    course = figures(Ending(metric="mae"), 3.0, 2.0, 2.5)
    assert [each.best and each.best.version for each in course] == [1, 2, 2]


def test_without_a_figure_there_is_no_best_version():
    assert figures(Ending(metric="auc"), None, float("inf"))[-1].best is None


def test_a_run_ends_at_its_target_the_right_way_round():
    assert ended_at(Ending(metric="auc", target=0.78), 0.7, 0.77, 0.78) == [
        (3, "auc has reached the target of 0.78, with version 3")
    ]
    assert [version for version, _ in ended_at(Ending(metric="log_loss", target=0.5), 0.7, 0.5, 0.6, 0.4)] == [2, 4]


def test_a_target_that_must_hold_is_counted_anew_after_every_miss():
    ending = Ending(metric="accuracy", target=0.95, in_a_row=3)
    assert ended_at(ending, 0.95, 0.96, 0.94, 0.95, 0.97, 0.99) == [
        (6, "accuracy has reached the target of 0.95 3 times in a row, with version 6")
    ]
    assert ended_at(ending, 0.95, 0.96, None, 0.95, 0.97) == []


def test_patience_counts_the_versions_since_the_best_one():
    ending = Ending(metric="auc", patience=3)
    # version 2 is best until version 5, which the run does not live to see
    assert ended_at(ending, 0.6, 0.7, 0.69, 0.7, 0.68) == [(5, "no better auc than the 0.7 of version 2 in 3 versions")]
    assert ended_at(ending, 0.6, 0.7, 0.69, 0.68, 0.71, 0.7, 0.7) == []


def test_patience_does_not_run_out_where_nothing_was_ever_measured():
    assert ended_at(Ending(metric="auc", patience=2), None, None, None, None) == []


def test_a_run_ends_after_so_many_versions():
    assert ended_at(Ending(versions=2), None, None, None)[0] == (2, "2 versions are made")


def test_of_several_ends_at_once_the_target_is_told_first():
    ending = Ending(metric="auc", target=0.7, versions=2, seconds=1.0)
    assert [reason for _, reason in ended_at(ending, 0.6, 0.7)] == ["auc has reached the target of 0.7, with version 2"]


def test_what_manifests_hand_on_is_read_back_to_the_bit():
    progress = Progress(Best(7, 0.1 + 0.2, BlobName(hash="e" * 64, size=123)), reached=2, seconds=1 / 3)
    kept = progress.put_into({"clock_cycles": "0x1.0p+0", "best_version": 99})
    assert kept["clock_cycles"] == "0x1.0p+0"
    assert Progress.of(kept) == progress
    assert Progress.of(Progress().put_into(kept)) == Progress()
    assert Progress.of({}) == Progress()


@pytest.mark.parametrize(
    "ending", [Ending(metric="auc", target=0.8), Ending(metric="auc", patience=3)], ids=["target", "patience"]
)
def test_an_aggregator_without_held_out_rows_does_not_lead_a_run_that_ends_by_a_figure(ending, tmp_path):
    server = MemoryServer()
    begin(server, a_plan(ending=ending))
    with pytest.raises(SettingsError, match=r"goes by auc on held-out rows, and this aggregator has none: name their file"):
        worker.run(lambda: server.connect("aggregator"), term_settings(tmp_path), threading.Event())
    assert [each.message.kind for each in server.connect("operator").read(LINEAGE, "first", count=None, idle_seconds=0)] == [
        "claim",
        "manifest",
    ]


def test_figures_that_nothing_is_ended_by_need_no_rows(tmp_path):
    server = MemoryServer()
    begin(server, a_plan(ending=Ending(metric="auc", versions=3)))
    watch = Watch(server.connect("operator"))
    with Leader(server, tmp_path):
        assert watch.until(lambda: watch.head.epoch == 2)


def test_a_leader_ends_a_run_whose_time_is_over_although_nothing_arrives(tmp_path):
    server = MemoryServer()
    begin(server, a_plan(ending=Ending(seconds=0.5)))
    watch = Watch(server.connect("operator"))
    with Leader(server, tmp_path):
        assert watch.until(lambda: watch.head.manifest.phase == "finished")
    assert (watch.head.manifest.version, watch.head.manifest.phase_reason) == (0, "it has run for 0.5 seconds")


class Measured:
    """A federation whose every commit is a version, with the figure that a test gives it."""

    def __init__(self, ending: Ending) -> None:
        self.federation: Federation = a_federation({"w": array(0, 0)}, a_plan(ending=ending), TABLE)
        self.sent = 0

    def version(self, auc: float | None) -> tuple[str, str]:
        """Folds an update and commits it; the phase then, and why."""
        self.sent += 1
        update = an_update("bank-a", self.sent, base=self.federation.head)
        admission = Admission("aggregated")
        self.federation.settle(name_of("bank-a"), update, f"{self.sent:064x}", admission=admission, delta={"w": array(1, 1)})
        return self.commit(auc)

    def commit(self, auc: float | None = None) -> tuple[str, str]:
        """Commits what is pending."""
        self.federation.finish_version()
        content = messages.encode_model(RUN, self.federation.state.model)
        blob = BlobName(hash=content.hash, size=content.size)
        manifest = self.federation.next_manifest(blob, None, {} if auc is None else {"auc": auc})
        record = messages.manifest_record(1, manifest, Location(offset=0, chunks=1))
        self.federation.advance(folded(record, start=self.federation.lineage))
        return manifest.phase, manifest.phase_reason

    @property
    def progress(self) -> Progress:
        """As the head has it."""
        return Progress.of(self.federation.head.manifest.scalars)


def test_the_manifest_of_the_version_that_reaches_the_target_ends_the_run():
    run = Measured(Ending(metric="auc", target=0.8))
    assert run.version(0.7) == ("running", "")
    assert run.version(0.81) == ("finished", "auc has reached the target of 0.8, with version 2")
    run.federation.greet(name_of("bank-a"), a_hello())
    assert run.commit()[0] == "finished"


def test_a_manifest_that_only_settles_changes_neither_the_best_version_nor_the_count():
    run = Measured(Ending(metric="auc", target=0.8, in_a_row=2))
    run.version(0.81)
    run.federation.greet(name_of("bank-a"), a_hello())
    assert run.commit(0.81) == ("running", "")
    assert run.progress == Progress(run.progress.best, reached=1)
    assert run.version(0.8)[0] == "finished"
    assert run.progress.best is not None
    assert (run.progress.best.version, run.progress.best.figure) == (1, 0.81)


def test_a_successor_goes_on_counting_where_the_manifest_stopped():
    run = Measured(Ending(metric="auc", patience=3, seconds=100.0))
    run.federation.pass_time(40.0)
    for auc in (0.7, 0.6, 0.6):
        run.version(auc)
    successor = Federation(folded(start=run.federation.lineage), run.federation.state)
    run.federation = successor
    successor.pass_time(59.9)
    assert not successor.time_is_over
    successor.pass_time(0.2)
    assert successor.time_is_over
    assert run.version(0.6) == ("finished", "no better auc than the 0.7 of version 1 in 3 versions")


def test_a_run_ends_by_time_although_nothing_happened():
    run = Measured(Ending(seconds=60.0))
    run.federation.pass_time(60.0)
    assert run.federation.time_is_over
    assert run.commit() == ("finished", "it has run for 60 seconds")
    assert run.progress.seconds == 60.0
    assert not run.federation.time_is_over


def test_a_pause_takes_no_time():
    run = Measured(Ending(seconds=60.0))
    run.federation.pass_time(50.0)
    apply(run.federation, an_operation("pause", 1), name_of)
    run.commit()
    run.federation.pass_time(1000.0)
    assert not run.federation.time_is_over
    apply(run.federation, an_operation("resume", 2), name_of)
    assert run.commit()[0] == "running"
    run.federation.pass_time(9.0)
    assert not run.federation.time_is_over
    run.federation.pass_time(1.0)
    assert run.federation.time_is_over


def test_after_the_model_was_replaced_no_version_before_it_is_the_best():
    run = Measured(Ending(metric="auc", patience=2))
    run.version(0.9)
    run.federation.replace_model({"w": array(0, 0)})
    run.commit(0.6)
    assert run.progress.best is not None
    assert (run.progress.best.version, run.progress.best.figure) == (2, 0.6)


def test_who_lost_the_best_model_names_none_and_the_next_measured_version_is_the_best():
    run = Measured(Ending(metric="auc"))
    run.version(0.9)
    run.federation.lose_best()
    run.federation.greet(name_of("bank-a"), a_hello())
    run.commit()
    assert run.progress.best is None
    run.version(0.6)
    assert run.progress.best is not None
    assert run.progress.best.version == 2
