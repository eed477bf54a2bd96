from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from shared import lineage, messages
from shared.lineage import Lineage
from shared.messages import Claim, Entry, Location, OperationOutcome
from tests.builders import a_blob, a_claim, a_plan, a_record, folded, name_of

A, B, C = name_of("bank-a"), name_of("bank-b"), name_of("bank-c")
ZERO = a_record(0, offset=1)
ONE = a_record(1, after=ZERO, offset=2)
TWO = a_record(2, after=ONE, offset=3)
BEGUN = folded(a_claim(1), ZERO)


def under(record, epoch, offset=90):
    return replace(record, epoch=epoch, model_at=Location(offset=offset, chunks=1))


def changes(version, after, *, epoch=1, **more):
    return a_record(version, after=after, epoch=epoch, **{"whole": False, "plan": None, "table": {}, **more})


def test_a_first_version_under_its_claim_is_the_head():
    assert BEGUN.head is ZERO
    assert BEGUN.complete
    assert (BEGUN.epoch, BEGUN.hashes, BEGUN.bases) == (1, (ZERO.hash,), {0: a_blob("model 0").hash})


def test_the_next_version_that_names_the_head_is_the_new_head():
    known, verdict = lineage.fold(BEGUN, ONE)
    assert verdict == "extended"
    assert known.head is ONE
    assert known.hashes == (ZERO.hash, ONE.hash)


def test_a_manifest_of_the_same_version_that_names_the_head_extends_the_chain():
    settles_only = a_record(0, after=ZERO, phase_reason="a hello was answered")
    assert folded(settles_only, start=BEGUN).head is settles_only


def test_the_same_content_under_a_higher_epoch_keeps_the_head_and_replaces_its_place():
    known, verdict = lineage.fold(folded(ONE, a_claim(2), start=BEGUN), under(ONE, 2, offset=77))
    assert verdict == "repeated"
    assert known.head is not None
    assert (known.head.hash, known.head.epoch, known.head.model_at.offset) == (ONE.hash, 2, 77)
    assert known.hashes == (ZERO.hash, ONE.hash)


def test_a_manifest_of_a_lower_epoch_is_ignored_after_a_higher_claim():
    known = folded(ONE, a_claim(2), start=BEGUN)
    after, verdict = lineage.fold(known, TWO)
    assert verdict == "ignored"
    assert after is known


def test_a_manifest_of_an_epoch_that_nobody_claimed_is_ignored():
    assert lineage.fold(BEGUN, under(ONE, 2))[1] == "ignored"


def test_of_two_claims_to_one_epoch_the_first_counts():
    known, verdict = lineage.fold_claim(BEGUN, a_claim(2, "first"))
    assert verdict == "claim"
    assert lineage.fold_claim(known, a_claim(2, "second"))[1] == "ignored"


def test_a_lower_claim_is_ignored():
    known = folded(a_claim(5), start=BEGUN)
    assert lineage.fold_claim(known, a_claim(4)) == (known, "ignored")


def test_the_successor_wins_over_what_the_deposed_leader_still_writes():
    zombie, successor = under(ONE, 1), a_record(1, after=ZERO, epoch=2, mark="another model")
    known = folded(a_claim(2), under(ZERO, 2), zombie, successor, under(TWO, 1), start=BEGUN)
    assert known.head is successor


def test_a_jump_of_two_versions_is_refused():
    assert lineage.fold(BEGUN, a_record(2, after=ZERO))[1] == "ignored"


def test_a_version_that_goes_back_is_refused():
    known = folded(ONE, start=BEGUN)
    assert lineage.fold(known, a_record(0, after=ONE))[1] == "ignored"


def test_a_manifest_that_names_another_predecessor_is_refused():
    stranger = a_record(0, mark="another beginning")
    assert lineage.fold(BEGUN, a_record(1, after=stranger))[1] == "ignored"


def test_a_manifest_of_another_run_is_refused():
    assert lineage.fold(BEGUN, a_record(1, after=ZERO, run_id="cd" * 8))[1] == "ignored"


def test_one_manifest_in_the_middle_is_not_trusted():
    known, verdict = lineage.fold(Lineage(), ONE)
    assert verdict == "candidate"
    assert known.head is None
    assert not known.complete


def test_two_manifests_of_one_epoch_in_the_middle_are_trusted_once_the_second_names_the_first():
    assert folded(ONE, TWO).head is TWO
    assert folded(ONE, a_record(5, after=a_record(4), epoch=1)).head is None


def test_two_manifests_of_different_epochs_are_not_trusted():
    assert folded(ONE, under(TWO, 2)).head is None


def test_a_claim_between_two_manifests_leaves_the_first_untrusted():
    known = folded(ONE, a_claim(2), TWO)
    assert known.head is None


def test_a_claim_and_a_manifest_of_its_epoch_are_trusted():
    assert folded(a_claim(3), under(ONE, 3)).head is not None
    assert folded(a_claim(3), under(ONE, 2)).head is None


LATE = Lineage(start=10)


def test_a_claim_by_one_who_knew_all_before_the_reader_is_trusted_with_one_manifest():
    known = folded(a_claim(3, after=9), under(ONE, 3), start=LATE)
    assert known.head is not None
    assert known.claims


def test_a_claim_by_one_who_did_not_know_all_before_the_reader_is_not_enough():
    known = folded(a_claim(3, after=8), under(ONE, 3), start=LATE)
    assert (known.claims, known.head, known.candidate) == (False, None, under(ONE, 3))
    assert folded(under(TWO, 3), start=known).head == under(TWO, 3)


def test_a_late_claim_and_a_deposed_leaders_manifest_do_not_deceive_a_reader_who_missed_the_higher_claim():
    # at 5, before the reader: the claim of epoch 3. At 4 the late claimant had looked; epoch 2 has a leader, deposed since
    deposed, head = a_record(2, after=ONE, epoch=2, mark="deposed"), under(TWO, 3)
    known = folded(a_claim(2, "late", after=4), deposed, start=LATE)
    assert known.head is None
    successor = a_record(3, after=TWO, epoch=3)
    assert folded(head, successor, start=known).head is successor


def test_once_all_claims_are_known_a_later_one_needs_no_knowledge_of_the_beginning():
    known = folded(a_claim(3, after=9), a_claim(4, after=2), start=LATE)
    assert (known.claims, known.epoch) == (True, 4)
    assert folded(under(ONE, 4), start=known).head is not None


def test_a_reader_that_has_a_head_takes_any_higher_claim():
    known = folded(under(ONE, 1), under(TWO, 1), a_claim(2, after=3), start=LATE)
    assert (known.claims, known.epoch) == (True, 2)


def test_a_reader_from_the_first_record_on_trusts_the_first_claim():
    assert folded(a_claim(1, after=-1), ZERO, start=Lineage(start=0)).head is ZERO
    assert folded(a_claim(1, after=-1), ZERO, start=Lineage(start=1)).head is None


def test_a_reader_in_the_middle_has_no_table_before_a_whole_one_is_on_the_chain():
    partial = changes(1, ZERO, table={A: Entry(incarnation=4)})
    known = folded(a_claim(1), partial)
    assert known.head is partial
    assert known.table is None
    assert not known.complete
    assert folded(changes(2, partial, whole=True, table={B: Entry(incarnation=2)}), start=known).table == {
        B: Entry(incarnation=2)
    }


def test_a_table_from_outside_the_chain_is_not_taken():
    known = folded(a_record(1, after=a_record(0, mark="x"), table={C: Entry(incarnation=9)}), start=BEGUN)
    assert known.table == BEGUN.table


def test_changed_entries_replace_their_own_only():
    known = folded(changes(1, ZERO, table={B: Entry(incarnation=1, watermark=7)}), start=BEGUN)
    assert known.table is not None
    assert (known.table[A].watermark, known.table[B].watermark) == (0, 7)
    assert known.plan == a_plan()


def test_a_changed_plan_is_taken_from_the_manifest_that_carries_it():
    plan = a_plan({"buffer_size": 7})
    assert folded(changes(1, ZERO, plan=plan, plan_hash=plan.hash), start=BEGUN).plan == plan


def test_operation_ids_are_gathered_and_restated_by_whole_manifests():
    done = [OperationOutcome(operation_id=f"{number:032x}", kind="pause", applied=True) for number in range(3)]
    first = changes(1, ZERO, operations=done[:1])
    known = folded(first, start=BEGUN)
    assert known.operation_ids == (f"{0:032x}",)
    second = changes(2, first, operations=done[1:2])
    assert folded(second, start=known).operation_ids == (f"{0:032x}", f"{1:032x}")
    whole = a_record(2, after=first, operations=done[2:], operation_ids=[f"{1:032x}", f"{2:032x}"])
    assert folded(whole, start=known).operation_ids == (f"{1:032x}", f"{2:032x}")


def test_only_the_last_two_hundred_and_fifty_six_operations_are_remembered():
    known, last = BEGUN, ZERO
    for number in range(300):
        outcome = OperationOutcome(operation_id=f"{number:032x}", kind="pause", applied=True)
        last = changes(number + 1, last, operations=[outcome])
        known = folded(last, start=known)
    assert len(known.operation_ids) == 256
    assert known.operation_ids[0] == f"{44:032x}"


def test_memory_of_the_chain_does_not_grow():
    known, last = BEGUN, ZERO
    for version in range(1, 4100):
        last = changes(version, last)
        known = folded(last, start=known)
    assert (len(known.hashes), len(known.bases), min(known.bases)) == (64, 4000, 100)


def rival_of(late, items) -> Claim:
    """The claim of one who wanted the deposed leader's epoch as well, and lost; it is seen only now."""
    won_at = next(place for place, item in enumerate(items) if isinstance(item, Claim) and item.epoch == late.epoch)
    return a_claim(late.epoch, "rival", after=won_at - 1)


@st.composite
def honest_histories(draw) -> list[Claim | messages.ManifestRecord]:
    """What one leader after another writes, each republishing the head first; a deposed one may write one manifest late.

    Claims come late as well: their makers had read up to some earlier record, and knew no epoch above.
    """
    items: list[Claim | messages.ManifestRecord] = [a_claim(1), ZERO]
    head, epoch, number, late = ZERO, 1, 0, None
    for _ in range(draw(st.integers(1, 14))):
        number += 1
        match draw(st.sampled_from(["extend", "extend", "settle", "successor", "zombie", "late claim"])):
            case "extend":
                head = a_record(
                    head.manifest.version + 1, after=head, epoch=epoch, mark=f"m{number}", whole=number % 3 == 0, table={}
                )
                items.append(head)
            case "settle":
                head = a_record(head.manifest.version, after=head, epoch=epoch, mark=f"m{number}", whole=True)
                items.append(head)
            case "successor":
                late = a_record(head.manifest.version + 1, after=head, epoch=epoch, mark=f"late {number}")
                epoch += draw(st.integers(1, 3))
                head = under(head, epoch, offset=number)
                items += [a_claim(epoch, f"leader {number}", after=len(items) - 1), head]
            case "zombie" if late is not None:
                items += [*draw(st.sampled_from([[], [rival_of(late, items)]])), late]
                late = None
            case "late claim":
                after = draw(st.integers(0, len(items) - 1))
                read = max(item.epoch for item in items[: after + 1] if isinstance(item, Claim))
                if read < epoch:
                    items.append(a_claim(read + 1, f"late {number}", after=after))
            case _:
                continue
    return items


@given(honest_histories(), st.data())
def test_folding_a_part_and_then_the_rest_is_folding_all(history, data):
    cut = data.draw(st.integers(0, len(history)))
    assert folded(*history[cut:], start=folded(*history[:cut])) == folded(*history)


@settings(max_examples=400)
@given(honest_histories(), st.data())
def test_a_reader_that_starts_anywhere_and_trusts_anything_ends_with_the_same_head(history, data):
    everything = folded(*history)
    cut = data.draw(st.integers(0, len(history)))
    late_reader = folded(*history[cut:], start=Lineage(start=cut))
    if late_reader.head is not None:
        assert everything.head is not None
        assert late_reader.head.hash == everything.head.hash
        assert late_reader.epoch == everything.epoch
