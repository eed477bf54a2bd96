"""`fedqueue logs`: what the workers said about one institution or version, from files, from standard input, and as it comes."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from typer.testing import CliRunner

from operator_console.cli import app
from operator_console.federation_folder import Facts, FederationFolder, InstitutionFacts
from operator_console.log_files import Tail
from operator_console.worker_log import Log
from shared.errors import FederationError
from shared.logs import configure
from tests.conftest import eventually

FEDQUEUE = str(Path(sys.executable).with_name("fedqueue"))
MORNING = "2026-11-21T06:{:02}:00Z"
THEN = datetime(2026, 11, 21, tzinfo=UTC)


def line(minute: int, event: str, level: str = "info", **fields: object) -> str:
    return json.dumps({"event": event, "level": level, "timestamp": MORNING.format(minute), **fields}) + "\n"


AGGREGATOR = [
    line(0, "leading", epoch=2, version=10),
    line(1, "delivery", kind="update", institution="north", sequence=7, outcome="aggregated", reason=""),
    line(3, "delivery", kind="update", institution="south", sequence=4, outcome="rejected", reason="its norm is too large"),
    line(4, "committed", version=11, settled=2, phase="running", epoch=2, auc=0.71234),
    "Traceback (most recent call last):\n",
    line(6, "delivery", "warning", institution="south", outcome="refused", error="ForgedMessageError", reason="\x1b[2Jno key"),
    line(7, "delivery", kind="update", institution="north", sequence=8, outcome="aggregated", reason=""),
    line(9, "committed", version=12, settled=1, phase="running", epoch=2),
]
NORTH = [line(2, "settled", institution="north", says="Update 7 is part of version 11.", sequence=7, version=11)]


def a_folder(place: Path) -> FederationFolder:
    folder = FederationFolder(place / "federation")
    (folder.path / "logs").mkdir(parents=True)
    names = [InstitutionFacts(id=each, title=each) for each in ("north", "south")]
    folder.keep(Facts(run_id="ab" * 8, task="toy", title="Toy", institutions=names))
    folder.log_file("aggregator").write_text("".join(AGGREGATOR))
    folder.log_file("north").write_text("".join(NORTH))
    return folder


@dataclass(frozen=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


def said_by(place: Path, *words: str, piped: str | None = None) -> Answer:
    ended = CliRunner().invoke(app, ["logs", "--dir", str(place / "federation"), *words], input=piped)
    if isinstance(ended.exception, FederationError):
        return Answer(ended.exception.exit_code, ended.stdout, str(ended.exception))
    return Answer(ended.exit_code, ended.stdout, ended.stderr)


def test_two_logs_are_merged_by_time_and_told_in_words(tmp_path: Path):
    a_folder(tmp_path)
    answer = said_by(tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert [each[14:] for each in answer.stdout.splitlines()] == [
        "00:00  aggregator    leads, in epoch 2, from version 10",
        "01:00  aggregator    north: update 7: aggregated",
        "02:00  north         Update 7 is part of version 11.",
        "03:00  aggregator    south: update 4: rejected, its norm is too large",
        "04:00  aggregator    version 11 is committed: 2 updates settled, auc 0.7123",
        "04:00  aggregator    warning: Traceback (most recent call last):",
        "06:00  aggregator    warning: south: a message: refused, ForgedMessageError: \ufffd[2Jno key",
        "07:00  aggregator    north: update 8: aggregated",
        "09:00  aggregator    version 12 is committed: 1 update settled",
    ]


def minutes(answer: Answer) -> list[int]:
    assert answer.returncode == 0, answer.stderr
    return [int(each[14:16]) for each in answer.stdout.splitlines()]


def test_one_institution_one_version_a_time_and_a_level_can_be_asked_for(tmp_path: Path):
    a_folder(tmp_path)
    assert minutes(said_by(tmp_path, "--institution", "north")) == [1, 2, 7]
    assert minutes(said_by(tmp_path, "--version", "11")) == [1, 2, 3, 4]
    assert minutes(said_by(tmp_path, "--institution", "north", "--version", "12")) == [7]
    assert minutes(said_by(tmp_path, "--since", "2026-11-21T06:07:00+00:00")) == [7, 9]
    assert minutes(said_by(tmp_path, "--level", "warning")) == [4, 6]
    assert minutes(said_by(tmp_path, "--level", "error")) == []


def test_standard_input_is_a_log_and_a_file_can_be_named(tmp_path: Path):
    piped = "".join(AGGREGATOR)
    assert minutes(said_by(tmp_path, "--institution", "north", "-", piped=piped)) == [1, 7]
    assert minutes(said_by(tmp_path, "--file", "-", "--version", "12", piped=piped)) == [7, 9]
    (tmp_path / "north.log.1").write_text("".join(NORTH))
    assert minutes(said_by(tmp_path, "--file", str(tmp_path / "north.log.1"), "--institution", "north", "-", piped=piped)) == [
        1,
        2,
        7,
    ]


def test_scripts_get_one_object_on_each_line(tmp_path: Path):
    a_folder(tmp_path)
    first, second = (json.loads(each) for each in said_by(tmp_path, "--version", "12", "--json").stdout.splitlines())
    assert (first["schema"], first["institution"], first["version"], first["source"]) == (1, "north", 12, "aggregator")
    assert first["said"]["sequence"] == 8
    assert second["text"] == "version 12 is committed: 1 update settled"


def test_what_cannot_be_answered_is_told(tmp_path: Path):
    nothing = said_by(tmp_path)
    assert nothing.returncode == 2
    assert "journalctl -o cat -u fedqueue-aggregator | fedqueue logs -" in nothing.stderr
    a_folder(tmp_path)
    stranger = said_by(tmp_path, "--institution", "norht")
    assert stranger.returncode == 2
    assert "norht is not a member: did you mean north? There are north, south" in stranger.stderr
    quiet = said_by(tmp_path, "--version", "99")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "nothing of that was said there\n")
    assert "cannot be read" in said_by(tmp_path, "--file", "nowhere.log").stderr


def test_a_log_is_followed_also_when_it_is_rotated_and_when_another_begins(tmp_path: Path):
    folder = a_folder(tmp_path)
    out, log = tmp_path / "out", folder.log_file("aggregator")
    with out.open("wb") as written:
        command = [FEDQUEUE, "logs", "--follow", "--dir", str(folder.path), "--institution", "south"]
        follower = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    try:
        assert eventually(lambda: out.read_text().count("\n") == 2), out.read_text()
        with log.open("a") as opened:
            opened.write(line(10, "delivery", kind="update", institution="south", sequence=5, outcome="aggregated"))
        log.rename(log.with_name("aggregator.log.1"))
        log.write_text(line(11, "delivery", kind="update", institution="south", sequence=6, outcome="stale"))
        assert eventually(lambda: out.read_text().count("\n") == 4), out.read_text()
        folder.log_file("south").write_text(line(12, "settled", institution="south", says="Update 5 is in.", version=13))
        assert eventually(lambda: out.read_text().count("\n") == 5), out.read_text()
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 0
    assert [each[14:16] for each in out.read_text().splitlines()] == ["03", "06", "10", "11", "12"]


def test_what_is_settled_is_held_back_until_its_version_is_known():
    log = Log("aggregator", THEN)
    assert [each.version for each in log.take(AGGREGATOR[:3])] == [10]
    assert [(each.at.minute, each.version) for each in log.take(AGGREGATOR[3:4])] == [(1, 11), (3, 11), (4, 11)]
    assert list(log.take(AGGREGATOR[6:7])) == []
    assert [(each.at.minute, each.version) for each in log.rest()] == [(7, None)]


def test_half_a_line_waits_for_its_other_half_and_an_emptied_file_begins_again(tmp_path: Path):
    file = tmp_path / "x.log"
    tail = Tail(file)
    assert list(tail.lines()) == []
    file.write_text("one\ntw")
    assert list(tail.lines()) == ["one\n"]
    with file.open("a") as log:
        log.write("o\n")
    assert list(tail.lines()) == ["two\n"]
    file.write_text("new\n")
    assert list(tail.lines()) == ["new\n"]
    tail.close()


def test_what_the_workers_really_write_is_read(tmp_path: Path):
    file = tmp_path / "bank-a.log"
    with file.open("w") as stream:
        configure(level="debug", stream=stream)
        structlog.get_logger().warning("not listened to", institution="bank-b", limit="updates_per_hour")
    (said,) = Log("aggregator", THEN).take(file.read_text().splitlines())
    assert (said.level, said.institution, said.text) == ("warning", "bank-b", "not listened to: limit updates_per_hour")
    assert abs((datetime.now(UTC) - said.at).total_seconds()) < 60
