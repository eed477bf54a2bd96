from dataclasses import replace

import pytest

from operator_console.events import Event
from operator_console.history import History
from operator_console.view_state import Shown, ViewState, attention, view_of
from shared.broker import Delivery, Message
from shared.messages import Entry, Settlement
from shared.plan import Ending, LocalPlan, PrivacyPlan
from tests.builders import a_plan, a_record, name_of

INSTITUTIONS = ("bank-a", "bank-b", "bank-c")
NAMES = {name_of(each): each for each in INSTITUTIONS}
NONCE = "12" * 8
SHOWN = Shown("Loans", "auc", "http://localhost/#/queues", "viewer / word")
PLAN = a_plan(ending=Ending(updates=60), privacy=PrivacyPlan(epsilon=2.0), local=LocalPlan(updates=20))


def run(seconds: dict[str, list[float]], *, phase: str = "running", **entries: Entry) -> History:
    """A run in which each institution's updates were settled at the given seconds."""
    history = History(NAMES)
    table = {
        name_of(each): entries.get(each.replace("-", "_"), Entry(incarnation=1, num_examples=100, nonce=NONCE))
        for each in INSTITUTIONS
    }
    record = a_record(0, table=table, plan=PLAN, plan_hash=PLAN.hash)
    history.take(record, delivery(0.0))
    moments = sorted((second, name) for name, times in seconds.items() for second in times)
    for version, (second, name) in enumerate(moments, start=1):
        last = version == len(moments)
        done = Settlement(institution=name_of(name), incarnation=1, sequence=version, hash="a" * 64, outcome="aggregated")
        told = {"plan_hash": PLAN.hash, "phase": phase if last else "running"}
        record = a_record(version, after=record, whole=False, plan=None, table={}, settled=[done], **told)
        history.take(record, delivery(second))
    return history


def delivery(second: float) -> Delivery:
    return Delivery("fl.lineage", 1, Message(b"", "manifest", "", {"at_ms": int(1000 * second)}), None)


def event(kind: str, institution: str, second: float) -> Event:
    return Event.model_validate(
        {"at_ms": int(1000 * second), "kind": kind, "institution": institution, "text": f"{institution} {kind}"}
    )


def states(history: History, *, now: float, events: tuple[Event, ...] = ()) -> dict[str, str]:
    return {row.institution: row.state for row in view_of(history, SHOWN, now_ms=int(1000 * now), events=events).rows}


def test_an_institution_that_never_said_hello_is_waited_for():
    history = run({"bank-a": [1, 2]}, bank_c=Entry(incarnation=1))
    assert states(history, now=3) == {"bank-a": "training", "bank-b": "training", "bank-c": "waiting"}


def test_a_killed_institution_stays_killed_until_it_was_started_again():
    history, killed = run({"bank-a": [1, 2]}), event("killed", "bank-a", 2.5)
    assert states(history, now=3, events=(killed,))["bank-a"] == "killed"
    restarted = event("restarted", "bank-a", 4)
    assert states(history, now=5, events=(killed, restarted))["bank-a"] == "restarted"


def test_a_restarted_institution_trains_again_with_its_next_settlement():
    history = run({"bank-a": [1, 2, 6]})
    assert (
        states(history, now=7, events=(event("killed", "bank-a", 2.5), event("restarted", "bank-a", 4)))["bank-a"] == "training"
    )


def test_silence_is_measured_by_an_institutions_own_pace():
    history = run({"bank-a": [1, 2, 3], "bank-b": [1, 7, 13], "bank-c": [12, 13]})
    assert states(history, now=13.5) == {"bank-a": "silent", "bank-b": "slow", "bank-c": "training"}
    assert states(history, now=42)["bank-b"] == "slow"
    assert states(history, now=44)["bank-b"] == "silent"


def test_an_institution_that_is_told_to_be_slow_is_not_called_silent():
    history = run({"bank-a": [1, 2, 3], "bank-b": [4]})
    assert states(history, now=20, events=(event("slow", "bank-b", 0),))["bank-b"] == "slow"


def test_all_planned_updates_given_means_the_budget_is_spent():
    history = run({"bank-b": [1]}, bank_a=Entry(incarnation=1, watermark=20, num_examples=100))
    assert states(history, now=2)["bank-a"] == "budget spent"


def left(state: str, limit: str, plan_hash: str = PLAN.hash, **changes: float) -> Entry:
    return Entry(
        incarnation=1, nonce=NONCE, standing=state, standing_limit=limit, standing_plan=plan_hash, num_examples=100, **changes
    )


def test_an_institution_that_has_left_the_plan_is_shown_with_its_reason():
    history = run(
        {"bank-c": [1]},
        bank_a=left("budget_spent", "epsilon", watermark=7, epsilon_spent=1.9),
        bank_b=left("plan_refused", "max_epsilon"),
        bank_c=left("plan_refused", "max_epsilon", "e" * 64),
    )
    rows = view_of(history, SHOWN, now_ms=2000).rows
    assert [(row.state, row.standing) for row in rows] == [
        ("budget spent", "budget spent"),
        ("plan refused", "refuses the plan: max_epsilon"),
        ("training", None),
    ]
    assert (rows[0].epsilon_spent, view_of(history, SHOWN, now_ms=2000).epsilon_budget) == (1.9, 2.0)


def test_an_institution_that_refuses_the_plan_needs_attention_and_is_told_apart_after_the_end():
    history = run({"bank-c": [1]}, bank_b=left("plan_refused", "max_epsilon"))
    first = attention(view_of(history, SHOWN, now_ms=2000)) or ""
    assert first.startswith("bank-b refuses the plan: max_epsilon, a limit of its own policy")
    over = run({"bank-c": [1]}, phase="finished", bank_b=left("plan_refused", "max_epsilon"))
    assert states(over, now=2) == {"bank-a": "finished", "bank-b": "plan refused", "bank-c": "finished"}


def test_a_finished_run_stops_the_clock_and_finishes_everybody():
    history = run({"bank-a": [1, 5]}, phase="finished")
    view = view_of(history, SHOWN, now_ms=90_000)
    assert view.elapsed_seconds == 5.0
    assert {row.state for row in view.rows} == {"finished"}


def test_shares_are_of_all_institutions():
    history = run(
        {},
        bank_a=Entry(incarnation=1, num_examples=100, total_weight=(3.0).hex()),
        bank_b=Entry(incarnation=1, num_examples=300, total_weight=(1.0).hex()),
        bank_c=Entry(incarnation=1),
    )
    rows = view_of(history, SHOWN, now_ms=0).rows
    assert [(row.weight_share, row.data_share) for row in rows] == [(0.75, 0.25), (0.25, 0.75), (0.0, None)]


@pytest.fixture
def calm() -> ViewState:
    return view_of(run({"bank-a": [1], "bank-b": [1], "bank-c": [1]}), SHOWN, now_ms=2000)


def test_nothing_needs_attention_in_a_run_that_goes_well(calm: ViewState):
    assert attention(calm, dead_letters=0) is None


def test_a_paused_run_comes_before_a_killed_bank_and_that_before_dead_letters(calm: ViewState):
    killed = replace(calm, rows=(replace(calm.rows[0], state="killed"), *calm.rows[1:]))
    assert attention(killed) == "bank-a was killed and has not come back."
    assert attention(killed, dead_letters=2) == attention(killed)
    assert attention(replace(killed, phase="paused", phase_reason="looking"), dead_letters=2) == "The run is paused: looking."


def test_strikes_come_before_mere_refusals_and_quarantine_before_both(calm: ViewState):
    first, *others = calm.rows
    with_rows = replace(calm, rows=(replace(first, strikes=1.5, refused=0), *(replace(each, refused=90) for each in others)))
    assert (attention(with_rows) or "").startswith(f"{first.institution} has 1.5 strikes: updates of it were rejected;")
    half = replace(calm, rows=(replace(first, strikes=0.5), *others))
    assert attention(half) is None
    confined = replace(with_rows, rows=(replace(first, state="quarantined", strikes=3.0), *others))
    assert f"{first.institution} is in quarantine; its updates are not folded." in (attention(confined) or "")


def test_strikes_are_read_from_the_table():
    view = view_of(run({"bank-a": [1, 2]}, bank_a=Entry(incarnation=1, nonce=NONCE, strikes=3)), SHOWN, now_ms=3000)
    assert [row.strikes for row in view.rows if row.institution == "bank-a"] == [1.5]


def test_an_institution_whose_updates_are_mostly_refused_needs_attention(calm: ViewState):
    refused = replace(calm, rows=(*calm.rows[:2], replace(calm.rows[2], updates=4, refused=7)))
    assert "bank-c: 7 of its updates were not folded" in (attention(refused) or "")


def test_a_standstill_is_the_first_thing_and_dead_letters_are_the_last():
    history = run({"bank-a": [1, 2], "bank-b": [1, 2], "bank-c": [1, 2]})
    calm, late = view_of(history, SHOWN, now_ms=4000), view_of(history, SHOWN, now_ms=60_000)
    assert attention(calm) is None
    assert attention(calm, dead_letters=1) == "1 message lies in fl.dlq; fedqueue dead-letters list says why."
    assert (attention(calm, dead_letters=2) or "").startswith("2 messages lie")
    assert attention(calm, dead_letters=2, aggregators=1, waiting=5) == attention(calm, dead_letters=2)
    assert (attention(late, dead_letters=2) or "").startswith("bank-a has given no update for long")
    assert (attention(late, dead_letters=2, aggregators=1, waiting=5) or "").startswith(
        "5 messages wait, and nothing was committed for 58 s"
    )
    assert (attention(late, dead_letters=2, aggregators=0, waiting=5) or "").startswith("No aggregator is at the broker")
    over = view_of(run({"bank-a": [1]}, phase="finished"), SHOWN, now_ms=90_000)
    assert attention(over, aggregators=0, waiting=5) is None
    assert (attention(over, dead_letters=2, aggregators=0) or "").startswith("2 messages lie")
