"""Cap, gate, strikes and quarantine where updates are settled: what is folded, what manifests say, what a successor does."""

import numpy as np
import pytest
from structlog.testing import capture_logs

from aggregator_worker import operations
from aggregator_worker.admission import Admission, Number, admit
from aggregator_worker.defence import Gate
from aggregator_worker.federation import Federation
from aggregator_worker.rules.state import outstanding
from aggregator_worker.server_state import Contribution, ServerState
from aggregator_worker.statements import Length
from shared.chunks import split
from shared.lineage import takes_part
from shared.messages import Entry, Settlement
from shared.parameters import copy
from shared.plan import Defence, Ending, Plan
from tests.builders import RUN, a_federation, a_plan, an_operation, an_update, array, commit, name_of

BANKS = ("bank-a", "bank-b", "bank-c", "bank-d")
TABLE = {name: Entry(incarnation=1, num_examples=100) for name in BANKS}
A, B = name_of("bank-a"), name_of("bank-b")
MODEL = {"w": array(0, 0)}
CREDIT = {"rule": "credit", "server_learning_rate": 1.0}
ONLY_STRIKES = Defence(norm_cap=None, gate_tolerance=None)


def guarded(plan: Plan | None = None, gate: Gate | None = None, **table: Entry) -> Federation:
    """Four banks with a hundred examples each; changed entries by name, with _ for -."""
    plan = plan or a_plan(CREDIT)
    changed = TABLE | {name.replace("_", "-"): entry for name, entry in table.items()}
    federation = a_federation(MODEL, plan, changed)
    return Federation(federation.lineage, ServerState.of(plan, MODEL), gate)


def send(federation: Federation, institution: str, *values: float, examples: int = 100) -> Settlement:
    """The next update of an institution on the newest version, through admission; a version of its own."""
    pseudonym = name_of(institution)
    entry = federation.table[pseudonym]
    update = an_update(institution, entry.watermark + 1, base=federation.head, num_examples=examples)
    delta = {"w": array(*values)}
    admission = admit(update, delta, entry=entry, lineage=federation.lineage, shapes=federation.state.shapes)
    return federation.settle(pseudonym, update, f"{update.sequence:064x}", admission=admission, delta=delta)


def round_of(federation: Federation, *values: float) -> None:
    for name in BANKS:
        send(federation, name, *values)
        commit(federation)


def test_an_update_that_is_too_long_is_folded_as_long_as_three_usual_ones_and_the_manifest_says_so():
    federation = guarded()
    round_of(federation, 0.6, 0.8)
    round_of(federation, 0.6, 0.8)
    before = copy(federation.state.model)["w"]
    settlement = send(federation, "bank-a", 0, 20)
    assert settlement.outcome == "aggregated"
    assert float.fromhex(settlement.scale) == np.float32(3 / 20)
    moved = np.float32(float.fromhex(settlement.weight) * float.fromhex(settlement.scale)) * np.float32(20)
    assert federation.state.model["w"][1] == before[1] + moved
    assert federation.state.model["w"][0] == before[0]
    assert commit(federation).manifest.settled == [settlement]


def test_the_first_updates_of_a_run_are_not_capped_nor_anything_under_a_plan_without_a_cap():
    for plan in (a_plan(CREDIT), a_plan(CREDIT, defence=Defence(norm_cap=None))):
        federation = guarded(plan)
        round_of(federation, 0.6, 0.8)
        for name in BANKS[:3]:
            send(federation, name, 0.6, 0.8)
        assert float.fromhex(send(federation, "bank-a", 0, 20).scale) == 1.0


def test_a_successor_scales_the_same_update_by_the_same_factor():
    federation = guarded()
    rng = np.random.default_rng(7)
    for _ in range(8):
        for name in BANKS:
            send(federation, name, *rng.normal(0, 1, 2))
        commit(federation)
    successor = Federation(federation.lineage, ServerState.of(federation.plan, federation.state.model))
    scales = []
    for name, length in (("bank-a", 9.0), ("bank-b", 7.7), ("bank-c", 33.3)):
        mine, other = send(federation, name, 0, length), send(successor, name, 0, length)
        assert mine == other
        scales.append(float.fromhex(mine.scale))
    assert all(scale < 1.0 for scale in scales)
    mine, other = commit(federation).manifest, commit(successor).manifest
    assert (mine.settled, mine.scalars, mine.model) == (other.settled, other.scalars, other.model)


def test_a_weight_and_a_scale_of_the_manifest_make_the_same_factor_however_they_are_multiplied():
    rng = np.random.default_rng(1)
    for weight, scale in rng.uniform(0, 1, (1000, 2)).astype(np.float32):
        factor = Contribution({}, float(weight), float(scale)).factor
        assert factor == np.float32(float(weight) * float(scale)) == weight * scale


def loss_is_first_number(model):
    return float(model["w"][0])


def test_an_update_that_makes_the_model_worse_is_rejected_and_changes_nothing_but_what_is_held_against_its_sender():
    federation = guarded(gate=loss_is_first_number)
    send(federation, "bank-b", -0.5, 0)
    commit(federation)
    model, clock = copy(federation.state.model), federation.weighing.clock
    settlement = send(federation, "bank-a", 5, 0, examples=400)
    assert (settlement.outcome, float.fromhex(settlement.weight)) == ("rejected", 0.0)
    assert settlement.reason.startswith("it would raise the log loss on the operator's rows from")
    np.testing.assert_array_equal(federation.state.model["w"], model["w"])
    entry = federation.table[A]
    assert (entry.strikes, entry.watermark, entry.counters.rejected, entry.num_examples) == (2, 1, 1, 100)
    assert (federation.weighing.clock.cycles, federation.weighing.clock.credit) == (clock.cycles, clock.credit)
    assert commit(federation).manifest.version == 1


def test_six_updates_that_miss_the_gate_narrowly_lead_into_quarantine_and_five_do_not():
    federation = guarded(gate=loss_is_first_number)
    for sent in range(1, 7):
        weight = federation.weighing.copied().weigh(A, staleness=0)
        settlement = send(federation, "bank-a", 0.014 / weight, 0)  # the plan lets 0.01 pass
        commit(federation)
        assert (settlement.outcome, federation.table[A].strikes, federation.table[A].quarantined) == ("rejected", sent, sent == 6)


def test_what_counts_at_the_gate_is_the_weight_that_the_update_would_have():
    # the first of four equal banks has earned a quarter of its quarter: 1/16 x 0.15 < 0.01 < 1/16 x 0.17
    federation = guarded(gate=loss_is_first_number)
    assert send(federation, "bank-a", 0.17, 0).outcome == "rejected"
    settlement = send(federation, "bank-b", 0.15, 0)
    assert (settlement.outcome, float.fromhex(settlement.weight)) == ("aggregated", 1 / 16)


def test_a_rejected_updates_credit_lapses_instead_of_making_the_next_one_heavier():
    def first_weight(values):
        federation = guarded(gate=loss_is_first_number)
        for name in BANKS[1:]:
            send(federation, name, -1, 0)
        send(federation, "bank-a", *values)
        for name in BANKS[1:]:
            send(federation, name, -1, 0)
        return float.fromhex(send(federation, "bank-a", -1, 0).weight), federation

    (after_rejection, federation), (after_one_folded, _) = first_weight((9, 0)), first_weight((-1, 0))
    # four ticks of a quarter cycle at a quarter of the data; a rejected update is no tick
    assert (after_rejection, after_one_folded) == (pytest.approx(4 / 16), pytest.approx(4 / 16))
    assert federation.weighing.clock.forfeited == pytest.approx(3 / 16)


@pytest.mark.parametrize(
    "aggregation",
    [
        {},
        {"rule": "fedasync"},
        {"rule": "fedbuff", "buffer_size": 2},
        {"rule": "latest-update"},
        {"server_momentum": 0.9},
        {"server_adam": {}},
    ],
    ids=str,
)
def test_a_gate_that_lets_everything_pass_changes_no_bit(aggregation):
    plan = a_plan(CREDIT | aggregation)
    asked = []
    open_gate, none = guarded(plan, lambda model: float(len(asked.append(1) or []))), guarded(plan)
    rng = np.random.default_rng(2)
    for _ in range(40):
        name, values = BANKS[rng.choice(4, p=[0.6, 0.2, 0.15, 0.05])], rng.normal(0, 1, 2)
        assert send(open_gate, name, *values) == send(none, name, *values)
        if none.buffer_full:
            assert commit(open_gate).hash == commit(none).hash
    assert open_gate.table == none.table
    assert len(asked) >= 41, "one for each update, and one for the first model"


def test_an_unfinished_buffer_is_part_of_what_an_update_is_judged_on():
    federation = guarded(
        a_plan({"rule": "fedbuff", "server_learning_rate": 1.0, "buffer_size": 4, "exact_buffer": True}), loss_is_first_number
    )
    # each weighs a quarter: two of 0.03 cost 0.0075 each, and the third is judged on what the first two leave
    outcomes = [send(federation, name, 0.03, 0).outcome for name in BANKS[:3]]
    assert outcomes == ["aggregated"] * 3
    assert federation.head.manifest.version == 0
    assert send(federation, "bank-d", 0.05, 0).outcome == "rejected"
    assert federation.pending.aggregated == 3


@pytest.mark.parametrize("optimiser", [{"server_momentum": 0.9}, {"server_adam": {}}], ids=str)
def test_what_waits_for_an_optimiser_is_not_in_the_model_that_an_update_is_judged_on(optimiser):
    plan = a_plan({"rule": "fedbuff", "server_learning_rate": 1.0, "buffer_size": 4, "exact_buffer": True, **optimiser})
    federation = guarded(plan, loss_is_first_number)
    assert send(federation, "bank-a", -5, 0).outcome == "aggregated"
    assert send(federation, "bank-b", 0.03, 0).outcome == "aggregated", "0.0075 more than the 0 that the model has still"
    for name, value in (("bank-c", -5), ("bank-d", -5)):
        send(federation, name, value, 0)
    commit(federation)
    assert federation.state.model["w"][0] < 0
    assert send(federation, "bank-a", 0.2, 0).outcome == "rejected"


def test_three_rejections_are_quarantine_and_the_others_share_its_weight():
    federation = guarded(gate=loss_is_first_number)
    assert [send(federation, "bank-a", 9, 0).outcome for _ in range(3)] == ["rejected"] * 3
    entry = commit(federation).manifest.table[A]
    assert (entry.quarantined, entry.strikes) == (True, 6)
    assert not takes_part(entry, federation.head.manifest.plan_hash)
    harmless = send(federation, "bank-a", -1, 0)
    assert (harmless.outcome, harmless.reason) == ("rejected", "in quarantine")
    assert (federation.table[A].strikes, federation.table[A].watermark) == (6, 4), "settled, and not counted"
    # three banks are left: a third of a cycle at a third of the data
    assert float.fromhex(send(federation, "bank-b", -1, 0).weight) == np.float32(1 / 9)


def test_two_updates_that_are_folded_take_back_a_rejection():
    federation = guarded(gate=loss_is_first_number)
    strikes = []
    for value in (9, 9, -1, -1, -1, 9, 9):
        send(federation, "bank-a", value, 0)
        strikes.append(federation.table[A].strikes)
    assert strikes == [2, 4, 3, 2, 1, 3, 5]
    assert not federation.table[A].quarantined


@pytest.mark.parametrize("outcome", ["stale", "over_budget"])
def test_who_is_late_or_over_the_budget_has_nothing_against_it(outcome):
    federation = guarded()
    for sequence in range(1, 8):
        update = an_update("bank-a", sequence, base=federation.head)
        federation.settle(A, update, "", admission=Admission(outcome, "late"), delta={"w": array(1, 1)})
    assert (federation.table[A].strikes, federation.table[A].quarantined) == (0, False)


def test_numbers_that_cannot_be_read_are_held_against_their_sender_and_lost_ones_are_not():
    federation = guarded()
    for sequence in (1, 2, 3):
        federation.settle_unread(A, Number(1, sequence), outcome="lost", reason="it never came")
    assert federation.table[A].strikes == 0
    for sequence in (4, 5, 6):
        federation.settle_unread(A, Number(1, sequence), outcome="rejected", reason="no update")
    assert federation.table[A].quarantined


def test_nobody_waits_for_an_institution_in_quarantine_at_the_end_of_a_run():
    plan = a_plan(CREDIT, ending=Ending(updates=3, updates_each=1))
    federation = guarded(plan, bank_a=TABLE["bank-a"].model_copy(update={"quarantined": True}))
    for name in BANKS[1:]:
        assert commit(federation).manifest.phase == "running"
        send(federation, name, 1, 1)
    manifest = commit(federation).manifest
    assert (manifest.phase, manifest.phase_reason) == ("finished", "3 updates are aggregated")


def order(federation: Federation, kind: str, number: int, institution: str = "bank-a") -> tuple[bool, str]:
    outcome = operations.apply(federation, an_operation(kind, number, institution=institution), name_of)
    assert outcome is not None
    return outcome.applied, outcome.reason


def test_an_operator_puts_into_quarantine_and_releases_with_nothing_held_against_it():
    federation = guarded(a_plan(CREDIT, defence=ONLY_STRIKES), bank_a=TABLE["bank-a"].model_copy(update={"strikes": 4}))
    assert order(federation, "quarantine", 1)[0]
    assert not order(federation, "quarantine", 2)[0]
    assert commit(federation).manifest.table[A].quarantined
    assert send(federation, "bank-a", 1, 1).outcome == "rejected"
    assert order(federation, "release", 3)[0]
    assert not order(federation, "release", 4)[0]
    entry = commit(federation).manifest.table[A]
    assert (entry.quarantined, entry.strikes) == (False, 0)
    assert send(federation, "bank-a", 1, 1).outcome == "aggregated"


@pytest.mark.parametrize("kind", ["quarantine", "release"])
def test_a_stranger_and_a_removed_one_can_be_neither_confined_nor_released(kind):
    federation = guarded(bank_b=Entry(incarnation=1, removed=True, quarantined=True))
    assert order(federation, kind, 1, "bank-x") == (False, "it is not a member")
    assert order(federation, kind, 2, "bank-b") == (False, "it is not a member")


def test_a_release_is_no_jump_in_weight_however_long_the_quarantine_was():
    federation = guarded()
    for _ in range(5):
        send(federation, "bank-b", 1, 1)
    held = outstanding(federation.table[A].account, federation.weighing.clock, 100)
    order(federation, "quarantine", 1)
    assert federation.weighing.clock.forfeited == pytest.approx(held) != 0
    for _ in range(40):
        send(federation, "bank-b", 1, 1)
    order(federation, "release", 2)
    assert outstanding(federation.table[A].account, federation.weighing.clock, 100) == 0.0
    # one tick since: a quarter of a cycle at a quarter of the data
    assert float.fromhex(send(federation, "bank-a", 1, 1).weight) == 1 / 16


def test_a_new_incarnation_does_not_end_a_quarantine():
    federation = guarded()
    order(federation, "quarantine", 1)
    operations.apply(federation, an_operation("admit", 2, institution="bank-a", incarnation=2), name_of)
    entry = federation.table[A]
    assert (entry.incarnation, entry.quarantined) == (2, True)


def test_who_is_in_quarantine_has_no_vote_on_what_is_usual():
    federation = guarded()
    round_of(federation, 0.6, 0.8)
    round_of(federation, 0.6, 0.8)
    assert set(federation.window.lengths) == {name_of(name) for name in BANKS}
    order(federation, "quarantine", 1)
    assert set(federation.window.lengths) == {name_of(name) for name in BANKS[1:]}
    assert federation.window.usual() is None, "six lengths are left, too few to judge by"


def test_a_length_without_noise_is_kept_for_the_next_manifest():
    federation = guarded()
    send(federation, "bank-a", 3, 4)
    assert federation.window.lengths == {A: (Length(5.0, 5.0),)}
    assert commit(federation).manifest.scalars["lengths"] == f"{A}:5/5"


def logged(said: list[dict[str, object]], event: str) -> list[dict[str, object]]:
    return [line for line in said if line["event"] == event]


def test_the_log_says_how_much_an_update_was_scaled_down(counter):
    for sequence in (1, 2, 3):
        for name in ("bank-a", "bank-b", "bank-c"):
            counter.send(an_update(name, sequence, base=counter.federation.head), 0.6, 0.8)
    with capture_logs() as said:
        counter.send(an_update("bank-a", 4, base=counter.federation.head), 0, 30)
    (line,) = logged(said, "delivery")
    assert (line["outcome"], line["scale"]) == ("aggregated", 0.1)


def test_a_quarantine_is_one_line_of_the_log_with_the_reason_of_the_last_rejection(counter):
    with capture_logs() as said:
        for sequence in range(1, 6):
            counter.send(an_update("bank-a", sequence, base=counter.federation.head), np.nan, 0)
    (line,) = logged(said, "quarantined")
    assert (line["institution"], line["rejected"], line["reason"]) == ("bank-a", 3, "a value is not finite")
    assert line["log_level"] == "warning"
    assert counter.settled() == [(sequence, "rejected") for sequence in range(1, 6)]


def test_uploads_that_nobody_can_read_lead_to_quarantine_too(counter):
    with capture_logs() as said:
        for sequence in range(1, 5):
            counter.publish(*split(b"\xc1", kind="update", run_id=RUN, identity=f"bank-a/1/{sequence}", chunk_bytes=99), "bank-a")
    assert len(logged(said, "quarantined")) == 1
    assert counter.entry().quarantined
    assert counter.settled() == [(sequence, "rejected") for sequence in range(1, 5)]
