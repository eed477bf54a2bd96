"""What the worker's log says of what it does and of what leaves: one line for each event, and nothing private in any."""

import io
import json
import re
from concurrent.futures import Future
from dataclasses import replace

import pytest
import structlog
from structlog.testing import capture_logs

from client_worker import telling
from client_worker.course import Course, Norms
from client_worker.local_work import Training
from client_worker.outgoing import Base, Terms
from client_worker.policy import Policy, ReportPolicy
from client_worker.progress import Progress
from client_worker.sent import Charged, SentUpdate
from shared.logs import configure
from shared.messages import PrivacyStatement, Report
from shared.plan import LocalPlan, PrivacyPlan
from tests.builders import RUN, a_blob, a_plan, a_statement
from tests.client_worker.test_session import Scene, turned

NOISED = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=2.0), local=LocalPlan(updates=10, steps=7, sample_rate=0.125))
PRIVATE = Norms("gradients", 1.2345, 0.6789, 4.5678, 3, 9)


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path, NOISED)
    yield scene
    scene.close()


def a_training(steps: int) -> Training:
    terms = Terms(Base(12, a_blob("model"), NOISED.hash), NOISED, PrivacyStatement(mechanism="none", steps=steps), 100)
    return Training(None, terms, Course(steps=steps), Future())  # type: ignore[arg-type]


def test_from_hello_to_settlement_each_event_is_one_line(scene):
    with capture_logs() as said:
        session = scene.welcomed()
        first, digest = scene.update(session)
        turned(session, 3)
        scene.settle(first, digest, model=4.0)
        scene.update(session)
    events = [line["event"] for line in said]
    assert events[:7] == ["hello", "welcome", "privacy plan", "training", "trained", "published", "settled"]
    assert all("says" in line or "reason" in line for line in said)


def test_the_line_of_an_update_that_leaves_says_bytes_clipping_noise_and_epsilon(scene):
    with capture_logs() as said:
        first, digest = scene.update(session := scene.welcomed())
        scene.settle(first, digest, model=4.0)
        scene.update(session)
        turned(session, 3)
    lines = [line for line in said if line["event"] == "published"]
    size = scene.work.ledger.kept[1].size
    # the toy accountant charges 0.5 for each training, at noise of 1.25, and the plan allows 2
    assert lines[0]["says"] == (
        f"update 1 has left: {size:,} bytes, made on version 0; each gradient was cut at length 1, and noise of 1.25 times that "
        "added in each of 7 steps; it cost epsilon 0.5, 0.5 spent in all, 1.5 of 2 left; waiting until it is settled"
    )
    assert (lines[1]["epsilon"], lines[1]["epsilon_spent"], lines[1]["epsilon_budget"]) == (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mechanism": "update-gaussian"}, "the whole update was cut at length 1, and noise of 1.5 times that added once"),
        ({"mechanism": "none", "noise_multiplier": None, "epsilon": None, "epsilon_in_all": None}, "WITHOUT NOISE"),
        ({"budget": None}, "0.75 spent in all; waiting"),
    ],
)
def test_other_updates_are_told_as_they_are(changes, words):
    fields = {"mechanism": "dp-sgd", "noise_multiplier": 1.5, "epsilon": 0.25, "epsilon_in_all": 0.75, "budget": 3.0} | changes
    charged = Charged(row=3, at_seconds=0, base_version=4, clipping_norm=1.0, steps=2, target_delta=1e-5, **fields)
    assert words in telling.has_left(SentUpdate(charged, 1, 0, "f" * 64, 100, 9.0, 8.0, PRIVATE))


def test_no_length_from_before_the_noise_is_in_the_log(scene):
    real = scene.data.train

    def train(model, settings, course):
        course.norms = PRIVATE
        return real(model, settings, course)

    scene.data = replace(scene.data, train=train)
    with capture_logs() as said:
        session = scene.welcomed()
        scene.update(session)
        turned(session, 3)
    assert len(said) >= 6
    assert not re.search(r"1\.23|0\.678|0\.68|4\.57|4\.56", repr(said))


def test_at_a_start_it_says_what_can_leave_at_all():
    quiet = telling.starts(Policy(), examples=3000, unit="record")
    assert "public number of records, 3,000" in quiet
    assert "nothing else leaves" in quiet
    assert "report" not in quiet
    open_handed = telling.starts(
        Policy(allow_no_privacy="yes, updates may leave without noise", reports=ReportPolicy(allowed=True, at_most=4)),
        examples=10,
        unit="person",
    )
    assert "at most 4 reports of noised figures at epsilon 0.2 each" in open_handed
    assert "with noise unless the plan asks for none" in open_handed


def test_a_report_that_leaves_is_told_once_with_its_figures():
    report = Report(
        run_id=RUN,
        institution="bank-a",
        incarnation=1,
        version=3,
        model_hash="f" * 64,
        metrics={"accuracy": 0.8125, "log_loss": None},
        epsilon=0.2,
    )
    told = telling.small_has_left(report)
    assert told == "a report of version 3 has left: accuracy 0.812, with noise, at epsilon 0.2 of validation rows"


def test_progress_is_said_every_ten_seconds_at_most_with_what_is_left():
    now = [100.0]
    progress, training = Progress(lambda: now[0]), a_training(1000)
    with capture_logs() as said:
        for second in range(31):
            now[0] = 100.0 + second
            training.course.done = 10 * second
            progress.look(training)
            progress.look(training)
        progress.look(None)
    assert [(line["done"], line["steps"]) for line in said] == [(100, 1000), (200, 1000), (300, 1000)]
    # 300 steps in 30 seconds: 700 more take 70
    assert said[-1]["says"] == "on version 12: 300 of 1,000 steps, 30 %, about 70 s left"


def test_a_short_training_has_no_line_of_progress():
    now = [0.0]
    progress = Progress(lambda: now[0])
    with capture_logs() as said:
        for _ in range(5):
            training = a_training(2)
            for _ in range(3):
                now[0] += 3.0
                progress.look(training)
    assert said == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["on a terminal", "as JSON"])
def test_a_line_reads_as_a_sentence_on_a_terminal_and_is_a_field_in_json(stream):
    configure(stream=stream)
    try:
        structlog.get_logger("words").info("published", says="update 1 has left", sequence=1)
    finally:
        structlog.reset_defaults()
    (line,) = stream.getvalue().splitlines()
    if stream.isatty():
        assert "published: update 1 has left" in re.sub(r"\x1b\[[0-9;]*m", "", line)
    else:
        told = json.loads(line)
        assert (told["event"], told["says"], told["sequence"]) == ("published", "update 1 has left", 1)


def test_terms_of_a_plan_are_told_with_the_budget():
    told = telling.terms(NOISED, a_statement(NOISED, 0.5))
    assert told == "the plan asks for 10 updates within epsilon 2 in all; the next one brings what is spent to 0.5"
