"""P4 for large updates and the models they start from, under real SIGKILLs and lost links, over a real RabbitMQ."""

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker_config.connection import ConnectionSettings, connect
from broker_config.spool import Spool
from campaigns.tcp_proxy import TcpProxy
from shared.plan import LocalPlan, Plan, PrivacyPlan
from tests import conftest
from tests.builders import NAMES, a_plan, array, name_of, small_limits
from tests.conftest import eventually
from tests.crashing import KillAfter, started, take_part
from tests.disks import fill, small_disk
from tests.running import Leader, Watch, Worker, begin, local_data, require_each_once, require_replay, sent_under, trained
from tests.test_crash_points import KILLED, rows

pytestmark = pytest.mark.rabbitmq

MODEL = {"w": array(*[0.0] * 100_000)}  # an update of it lies in a file and travels in seven chunks
CHUNKS = 7
LIMITS = small_limits(update_bytes=500_000, chunk_bytes=64 * 1024)


@pytest.mark.parametrize(
    ("step", "times", "sealed_before", "files_before"),
    [
        pytest.param("file", 2, 1, ["1.update", "2.update"], id="between file and row"),
        pytest.param("seal", 2, 2, ["1.update", "2.update"], id="before the first chunk"),
        pytest.param("chunk", CHUNKS + 3, 2, ["1.update", "2.update"], id="in mid-upload"),
        pytest.param("publish", 2, 2, ["1.update", "2.update"], id="after the last chunk"),
    ],
)
def test_a_large_update_survives_a_kill_and_is_sent_as_it_was(
    rabbitmq_server, tmp_path, step, times, sealed_before, files_before
):
    plan = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=50.0), local=LocalPlan(updates=4), limits=LIMITS)
    begin(rabbitmq_server, plan, model=MODEL)
    watch = Watch(rabbitmq_server.connect("operator"))
    path = tmp_path / "bank-a" / "ledger.sqlite"
    with Leader(rabbitmq_server, tmp_path / "aggregator"):
        process = started(take_part, rabbitmq_server.logins.settings("bank-a"), path, KillAfter(step, times))
        process.join(60)
        assert process.exitcode == KILLED
        sealed = rows(path, "SEALED")
        assert (len(rows(path, "RESERVED")), len(sealed)) == (2, sealed_before)
        assert sorted(file.name for file in (tmp_path / "bank-a" / "outbox").iterdir()) == files_before
        with Worker(rabbitmq_server, "bank-a", tmp_path) as again:
            assert watch.until(lambda: watch.entry("bank-a").watermark >= 3)
        assert again.failure is None
    hashes = [each.hash for each in watch.settled]
    assert hashes[:sealed_before] == [each["hash"] for each in sealed]
    assert hashes == [each["hash"] for each in rows(path, "SEALED")][: len(hashes)]
    require_each_once(watch)
    require_replay(watch, sent_under(plan), MODEL)


def over(server: conftest.RabbitmqServer, link: TcpProxy, user: str) -> ConnectionSettings:
    """The login, over the link."""
    url = f"amqp://127.0.0.1:{link.port}/{server.logins.vhost}"
    return server.logins.settings(user).model_copy(update={"url": url})


@pytest.fixture
def link(private_node) -> Iterator[TcpProxy]:
    with TcpProxy(private_node.record.amqp_port) as proxy:
        yield proxy


def come(folder: Path) -> int:
    """How many chunks of a model lie in the spool."""
    path = folder / "bank-a" / "model.part"
    progress = Spool(path).progress if path.exists() else None
    return progress.chunk if progress else 0


def test_a_download_goes_on_after_a_kill_at_the_chunk_where_it_stopped(rabbitmq_server, link, tmp_path):
    begin(rabbitmq_server, a_plan(limits=LIMITS), model=MODEL)
    watch = Watch(rabbitmq_server.connect("operator"))
    link.slow(50_000, "down")
    with Leader(rabbitmq_server, tmp_path / "aggregator"):
        path = tmp_path / "bank-a" / "ledger.sqlite"
        process = started(take_part, over(rabbitmq_server, link, "bank-a"), path, KillAfter("reserve", 1))
        assert eventually(lambda: come(tmp_path) >= 2, 60)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        came = come(tmp_path)
        assert 2 <= came < CHUNKS
        with capture_logs() as logs, Worker(rabbitmq_server, "bank-a", tmp_path):
            assert watch.until(lambda: watch.settled)
    (first,) = [line for line in logs if line["event"] == "downloading"][:1]
    assert (first["from_chunk"], first["chunks"]) == (came, CHUNKS)
    require_replay(watch, trained, MODEL)


LARGER = {"w": array(*[0.0] * 500_000)}  # two megabytes, in eight chunks


@pytest.fixture
def short_stream(private_node, logins, monkeypatch) -> Iterator[conftest.RabbitmqServer]:
    """A virtual host whose model stream holds about four versions."""
    few = replace(conftest.LIMITS, update_bytes=4 << 20, model_stream_bytes=8 << 20, segment_bytes=2 << 20)
    monkeypatch.setattr(conftest, "LIMITS", few)
    vhost = f"short-{secrets.token_hex(4)}"
    server = conftest.RabbitmqServer(
        private_node, logins.model_copy(update={"vhost": vhost, "amqp": private_node.amqp_url(vhost)})
    )
    yield server
    server.close()


class Linked:
    """The broker as it is reached over the link."""

    def __init__(self, server: conftest.RabbitmqServer, link: TcpProxy) -> None:
        self.connect = lambda user: connect(over(server, link, user), name=f"test/{user}")


def spaced(seconds: float) -> Plan:
    limits = small_limits(update_bytes=3 << 20, chunk_bytes=256 * 1024).model_copy(update={"version_spacing_seconds": seconds})
    return a_plan(limits=limits)


@pytest.mark.long
def test_a_client_on_a_slow_link_finishes_its_download_while_the_others_make_versions(short_stream, link, tmp_path):
    """Its link is cut in mid-chunk too: it goes on where it was, with a version that is no longer the newest."""
    begin(short_stream, spaced(1.0), model=LARGER)
    watch = Watch(short_stream.connect("operator"))
    link.slow(100_000, "down")
    link.cut_after(1_200_000, "down")
    with (
        capture_logs() as logs,
        Leader(short_stream, tmp_path / "aggregator"),
        Worker(Linked(short_stream, link), "bank-a", tmp_path),
    ):
        assert watch.until(lambda: any(line["event"] == "downloading" for line in logs))
        with Worker(short_stream, "bank-b", tmp_path):
            assert watch.until(lambda: watch.head.manifest.version >= 1)
        link.slow(1_000_000, "down")
        assert watch.until(lambda: watch.outcomes("bank-a"))
    settled = [each for each in watch.settled if each.institution == name_of("bank-a")]
    assert [each.outcome for each in settled] == ["aggregated"] * len(settled)
    assert settled[0].staleness >= 1
    resumed = [line for line in logs if line["event"] == "downloading" and line["from_chunk"] > 0]
    assert [line["version"] for line in resumed] == [settled[0].base_version]
    assert not [line for line in logs if "dropped" in line["event"]]
    require_each_once(watch)


@pytest.mark.long
def test_a_client_that_is_too_slow_for_the_model_stream_says_what_to_ask_the_operator_for(short_stream, link, tmp_path):
    begin(short_stream, spaced(0.0), model=LARGER)
    watch = Watch(short_stream.connect("operator"))
    link.slow(600_000, "down")
    with capture_logs() as logs, Leader(short_stream, tmp_path / "aggregator"):
        with Worker(Linked(short_stream, link), "bank-a", tmp_path) as slow:
            with Worker(short_stream, "bank-b", tmp_path):
                assert watch.until(lambda: any("the model stream dropped" in line["event"] for line in logs))
            link.slow(None, "down")
            assert watch.until(lambda: watch.outcomes("bank-a"))
        assert slow.failure is None
    (line,) = [line for line in logs if "the model stream dropped" in line["event"]][:1]
    assert "version_spacing_seconds" in line["event"]
    assert 0 <= line["come_bytes"] < line["of_bytes"]


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as folder:
        yield folder


def test_a_worker_whose_disk_is_full_waits_and_goes_on_by_itself(rabbitmq_server, disk, tmp_path):
    plan = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=50.0), local=LocalPlan(updates=3), limits=LIMITS)
    begin(rabbitmq_server, plan, NAMES, model=MODEL)
    watch = Watch(rabbitmq_server.connect("operator"))
    go_on = threading.Event()
    data = local_data("bank-a", at_least=lambda: go_on.wait(30))
    filler = disk / "filler"
    with capture_logs() as logs, Leader(rabbitmq_server, tmp_path / "aggregator"):
        with Worker(rabbitmq_server, "bank-a", disk, data=data) as worker:
            assert watch.until(lambda: any(line["event"] == "training" for line in logs))
            fill(filler)
            go_on.set()
            assert watch.until(lambda: any("nothing was sent" in str(line.get("reason")) for line in logs))
            assert worker.thread.is_alive()
            filler.unlink()
            assert watch.until(lambda: watch.entry("bank-a").watermark == 3)
        assert worker.failure is None
    reserved = rows(disk / "bank-a" / "ledger.sqlite", "RESERVED")
    assert (len(reserved), watch.entry("bank-a").epsilon_spent) == (3, 1.5)
    require_each_once(watch)
    require_replay(watch, sent_under(plan), MODEL)
