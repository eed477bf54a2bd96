"""What the ledger keeps of an update's lengths, and what it says of all that left. Expected figures are reckoned by hand."""

import sqlite3
from pathlib import Path

import msgpack
import pytest

from client_worker.course import Course, Norms
from client_worker.ledger import Beside, Ledger
from client_worker.ledger_audit import WrongLedgerError, audited
from client_worker.ledger_reading import read_ledger
from client_worker.privacy import epsilon_after
from client_worker.sent import SENT, WAITING, Sent, sent
from client_worker.training import LocalTrainer
from shared.codec import Encoded
from tests.builders import RUN
from tests.client_worker.test_ledger_audit import SPENT, change, grown
from tests.client_worker.trainings import KnownNoise, local, positives, task, zeros

PRIVATE = {"of": "update", "before": 1.7320508, "after": 1.0, "largest": 1.7320508, "clipped": 1, "count": 1}
KNOWN = {"norm": 12.5, "noise_std": 2.0, "coordinates": 9}


def course_of(*rows: list[float], **changes) -> Course:
    """A row's gradient at a model of zeros is half of (features, 1) long."""
    course, spec = Course(), task(2)
    trainer = LocalTrainer(spec, device="cpu", random=KnownNoise())
    trainer.local_update(zeros(spec), positives(*rows), local(len(rows), **changes), course)
    return course


def opened(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)


def kept(folder: Path) -> Sent:
    """Update 1 settled, update 2 sent, update 3 waiting, one training that never ended, one report; 0.25 for a count."""
    ledger = opened(folder)
    ledger.count_once(lambda epsilon: 104, epsilon=0.25)
    for number, spent in enumerate([1.0, 1.5, 1.75, 2.0], start=1):
        fields = {**SPENT, "base_version": 10 + number, "clipping_norm": 1.0, "epsilon_budget": 3.0}
        reservation = ledger.reserve(fields, epsilon_spent=spent)
        if number == 2:
            continue
        sealed, _ = ledger.seal(reservation, lambda sequence: Encoded([b"noised %d" % sequence]), Beside(KNOWN, PRIVATE))
        if sealed.sequence < 3:
            ledger.published(sealed)
    ledger.settle(1, "aggregated")
    ledger.reported(11, 0.2)
    ledger.close()
    content = read_ledger(folder / "ledger.sqlite")
    return sent(content.rows, content.private)


def test_gradients_are_measured_before_and_after_clipping_and_before_the_noise():
    # (2, 2, 1) / 2 is 1.5 long, (0, 0, 1) / 2 is 0.5 long; at 1 the first is cut
    course = course_of([2.0, 2.0], [0.0, 0.0], noise_multiplier=5.0)
    assert course.norms is not None
    assert (course.norms.of, course.norms.clipped, course.norms.count) == ("gradients", 1, 2)
    assert (course.norms.before, course.norms.after, course.norms.largest) == pytest.approx((1.0, 0.75, 1.5), rel=1e-5)


def test_a_training_that_draws_nobody_has_no_lengths():
    assert course_of([2.0, 2.0], sample_rate=1e-9, noise_multiplier=5.0).norms is None


@pytest.mark.parametrize(("mechanism", "after", "clipped"), [("update-gaussian", 1.0, 1), ("none", 1.5, 0)])
def test_an_update_as_a_whole_is_measured_before_its_clipping(mechanism, after, clipped):
    noise = {"noise_multiplier": 3.0} if mechanism != "none" else {}
    course = course_of([2.0, 2.0], mechanism=mechanism, **noise)
    assert course.norms is not None
    assert (course.norms.of, course.norms.clipped, course.norms.count) == ("update", clipped, 1)
    assert (course.norms.before, course.norms.after) == pytest.approx((1.5, after), rel=1e-5)


def test_a_course_says_how_many_steps_are_done():
    seen = []
    course = Course(lambda: bool(seen.append(course.done)))
    spec = task(2)
    LocalTrainer(spec, device="cpu", private=False).local_update(zeros(spec), positives([1.0, 1.0]), local(1, steps=3), course)
    assert (seen, course.done) == ([0, 1, 2], 3)


def test_every_update_that_left_is_told_with_what_it_cost(tmp_path):
    found = kept(tmp_path)
    assert [(each.sequence, each.charged.base_version, each.outcome) for each in found.updates] == [
        (1, 11, "aggregated"),
        (2, 13, SENT),
        (3, 14, WAITING),
    ]
    # the first adds to the count's 0.25; between the first and the second stands one that never left
    assert [each.charged.epsilon for each in found.updates] == [0.75, 0.25, 0.25]
    assert [each.charged.epsilon_in_all for each in found.updates] == [1.0, 1.75, 2.0]
    first = found.updates[0]
    assert (first.size, first.norm, first.noise_norm, first.charged.budget) == (8, 12.5, 6.0, 3.0)  # 2 x sqrt(9)
    assert first.norms == Norms("update", 1.7320508, 1.0, 1.7320508, 1, 1)
    assert found.size == 24


def test_what_was_charged_and_never_left_is_told_apart(tmp_path):
    found = kept(tmp_path)
    assert [(each.base_version, each.epsilon) for each in found.unsent] == [(12, 0.5)]
    assert [(each.version, each.epsilon) for each in found.reports] == [(11, 0.2)]
    assert found.epsilon_of_reports == 0.2


def test_rows_hold_no_figure_from_before_the_noise(tmp_path):
    kept(tmp_path)
    rows = read_ledger(tmp_path / "ledger.sqlite").rows
    told = b"".join(row.packed for row in rows)
    assert msgpack.packb(PRIVATE["before"]) not in told
    assert not {"before", "after", "largest", "clipped"} & {name for row in rows for name in row.fields}
    private = {row.fields["private"] for row in rows if row.state == "SEALED"}
    assert len(private) == 3  # the same figures three times, under three salts


def test_private_figures_that_were_changed_are_found_and_missing_ones_are_not_missed(tmp_path):
    kept(tmp_path)
    file = tmp_path / "ledger.sqlite"
    altered = msgpack.packb({**PRIVATE, "before": 0.1, "salt": bytes(16)})
    change_private(file, altered)
    with pytest.raises(WrongLedgerError, match="the private figures of update 2 are not those"):
        audited(read_ledger(file), lambda *_: 0.0, source=str(file))
    change(file, ("DELETE FROM private",))
    audited(read_ledger(file), lambda *_: 0.0, source=str(file))


def change_private(file: Path, packed: bytes) -> None:
    database = sqlite3.connect(file)
    database.execute("UPDATE private SET packed = ? WHERE sequence = 2", (packed,))
    database.commit()
    database.close()


def test_a_ledger_from_before_lengths_were_kept_is_read_audited_and_carried_on(tmp_path):
    file = grown(tmp_path)
    change(file, ("DROP TABLE private",))
    change(file, ("PRAGMA user_version = 0",))  # as it was then
    content = read_ledger(file)
    audited(content, epsilon_after, source=str(file))
    assert [(each.norms, each.norm) for each in sent(content.rows, content.private).updates] == [(None, None)] * 3
    ledger = opened(tmp_path)
    reservation = ledger.reserve(SPENT, epsilon_spent=11.0)
    ledger.seal(reservation, lambda sequence: Encoded([b"new"]), Beside(KNOWN, PRIVATE))
    assert sent(ledger.entries(), {}).updates[-1].norm == 12.5
    ledger.close()
    content = read_ledger(file)
    assert [each.norms is None for each in sent(content.rows, content.private).updates] == [True, True, True, False]
    audited(content, epsilon_after, source=str(file))


def test_what_waits_to_be_written_is_told_already(tmp_path):
    ledger = opened(tmp_path)
    sealed, _ = ledger.seal(ledger.reserve(SPENT, epsilon_spent=1.0), lambda sequence: Encoded([b"a"]))
    ledger.published(sealed)
    ledger.settle(1, "stale")
    found = sent(ledger.entries(), {})
    ledger.close()
    assert found.updates[0].outcome == "stale"
    assert sent(read_ledger(tmp_path / "ledger.sqlite").rows, {}).last_hash == found.last_hash
