"""P4 under kill -9 at every write of the ledger: what ever left is charged, and nothing leaves twice in two forms.

A real institution (its own rows, DP-SGD, reports) over a real RabbitMQ. Each message is on the disk of the test before the broker
gets it, so what is compared with the ledger is what left, and not what the ledger believes.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

from client_worker import local_work
from client_worker.ledger_rows import charge_in
from client_worker.mechanism import Charge
from client_worker.privacy import epsilon_after
from tests.crashing import started
from tests.private_crashing import KillAt, live_and_die_again
from tests.recording import RecordFile, Released
from tests.running import Leader, Watch, begin, require_each_once
from tests.test_crash_points import rows

pytestmark = pytest.mark.rabbitmq

TARGET_DELTA = 1e-5
AFTER_THREE_MORE = KillAt("settle", 3)
SAMPLE = [
    KillAt("before COMMIT OPENED"),
    KillAt("after COMMIT DATASET"),
    KillAt("after COMMIT RESERVED"),
    KillAt("before COMMIT REPORTED"),
    KillAt("after COMMIT REPORTED"),
    KillAt("recorded report"),
    KillAt("before COMMIT SEALED"),
    KillAt("after COMMIT SEALED"),
    KillAt("recorded update"),
    KillAt("chunk"),
    KillAt("publish"),
    KillAt("settle"),
    KillAt("before COMMIT RESERVED", 2),
    KillAt("recorded update", 2),
    AFTER_THREE_MORE,
]
"""`chunk`, `publish` and `settle` are steps of the code's own list; `reserve` and `seal` follow their commit at once."""
POINTS_OF_TWO_UPDATES = 90
UPDATES = 1000


def charges(ledger: Path) -> list[Charge]:
    """What the RESERVED rows charge, read as a stranger to the ledger's code would."""
    found = [charge_in(fields) for fields in rows(ledger, "RESERVED")]
    assert None not in found
    return [each for each in found if each is not None]


def distinct(updates: Iterable[Released]) -> list[Released]:
    """One of each content: the same bytes cost once, however often they left."""
    return list({each.hash: each for each in updates}.values())


def require_everything_charged(folder: Path) -> tuple[int, int]:
    """Holds what left against what the ledger says; how many charges there are, and how many contents left."""
    ledger, record = folder / "state" / "ledger.sqlite", RecordFile(folder / "record")
    left = distinct(record.updates())
    charged = charges(ledger)
    # one hash for each number, and no number left out
    assert [each.sequence for each in left] == list(range(1, len(left) + 1))
    sealed = {each["sequence"]: each["hash"] for each in rows(ledger, "SEALED")}
    assert {each.sequence: each.hash for each in left}.items() <= sealed.items()
    released = epsilon_after([each.charge for each in left], TARGET_DELTA) if left else 0.0
    held = epsilon_after(charged, TARGET_DELTA) if charged else 0.0
    assert released <= held
    # what an update says counts everything up to it
    for number, each in enumerate(left, start=1):
        assert each.privacy.epsilon_spent >= epsilon_after([other.charge for other in left[:number]], TARGET_DELTA)
    reports = {*record.contents("report")}
    assert len(reports) == len({identity for identity, _ in reports}) <= len(rows(ledger, "REPORTED"))
    return len(charged), len(left)


def kill_again_and_again(server, folder: Path, kills: list[KillAt]) -> list[tuple[int, int]]:
    """Charges and contents that had left after each life. The run goes on to the end, and every update is counted once."""
    from tests.private_bank import START, private_plan

    begin(server, private_plan(local={"updates": UPDATES}), model=START)
    watch = Watch(server.connect("operator"))
    with Leader(server, folder / "aggregator"):
        process = started(live_and_die_again, server.logins.settings("bank-a"), folder, kills)
        watch.until(lambda: not process.is_alive(), 60 + 10 * len(kills))
        counted = [require_everything_charged(each) for each in sorted((folder / "after").iterdir())]
        assert (process.exitcode, len(counted)) == (0, len(kills))
        assert watch.until(lambda: watch.entry("bank-a").watermark >= counted[-1][1])
    require_each_once(watch)
    by_number = {each.sequence: each.hash for each in RecordFile(folder / "record").updates()}
    assert {each.sequence: each.hash for each in watch.settled} == by_number
    assert {each.outcome for each in watch.settled} == {"aggregated"}
    return counted


def test_every_step_of_an_institution_is_a_point():
    assert {*local_work.STEPS} - {each.name for each in SAMPLE} == {"reserve", "seal", "file"}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_after_a_kill_at_any_write_of_the_ledger_it_holds_the_epsilon_of_all_that_ever_left(rabbitmq_server, tmp_path):
    counted = kill_again_and_again(rabbitmq_server, tmp_path, SAMPLE)
    charged, left = counted[-1]
    assert left >= 3
    # four lives at least ended between a reservation and its seal: what never left stays charged
    assert charged - left >= 4


@pytest.mark.long
@pytest.mark.timeout(900)
def test_after_a_kill_at_the_nth_point_whichever_it_is_the_same_holds(rabbitmq_server, tmp_path):
    kills = [KillAt("", number) for number in range(1, POINTS_OF_TWO_UPDATES)]
    kill_again_and_again(rabbitmq_server, tmp_path, [*kills, AFTER_THREE_MORE])
