"""The address of a worker, asked over real sockets."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from monitoring.asking import ask_ready
from monitoring.endpoint import served
from monitoring.own_state import new_registry
from monitoring.settings import MonitoringSettings
from monitoring.vitals import Vitals
from shared.errors import SettingsError
from tests.ports import free_address


@pytest.fixture
def vitals() -> Vitals:
    return Vitals(stalled_after_seconds=60)


@pytest.fixture
def address(vitals: Vitals) -> Iterator[str]:
    address = free_address()
    with served(address, vitals, new_registry("client", vitals, lambda: None)):
        yield address


def test_readiness_is_a_status_and_a_reason(address: str, vitals: Vitals) -> None:
    vitals.not_ready("the broker is away")
    before = httpx.get(f"http://{address}/readyz")
    vitals.ready("training")
    after = httpx.get(f"http://{address}/readyz")

    assert (before.status_code, before.json()) == (503, {"ready": False, "reason": "the broker is away"})
    assert (after.status_code, after.json()) == (200, {"ready": True, "reason": "training"})


def test_a_worker_that_is_not_ready_is_alive(address: str, vitals: Vitals) -> None:
    vitals.not_ready("the broker is away")

    assert httpx.get(f"http://{address}/healthz").status_code == 200


def test_a_worker_whose_loop_stands_still_is_not_alive() -> None:
    seconds = iter([0.0, *[1000.0] * 10])
    vitals, address = Vitals(stalled_after_seconds=60, clock=lambda: next(seconds)), free_address()
    with served(address, vitals, CollectorRegistry()):
        assert httpx.get(f"http://{address}/healthz").status_code == 503


def test_the_figures_of_every_worker_are_there(address: str, vitals: Vitals) -> None:
    vitals.ready("training")

    told = httpx.get(f"http://{address}/metrics")

    assert told.headers["content-type"].startswith("text/plain; version=")
    assert 'fedqueue_build_info{role="client",version="0.1.0"} 1.0' in told.text
    assert "\nfedqueue_ready 1.0\n" in told.text
    assert "expiry" not in told.text


def test_other_paths_are_refused(address: str) -> None:
    assert httpx.get(f"http://{address}/").status_code == 404
    assert httpx.post(f"http://{address}/readyz").status_code == 501


def test_someone_who_connects_and_says_nothing_keeps_nobody_waiting(address: str) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port))):
        assert httpx.get(f"http://{address}/healthz", timeout=5).status_code == 200


def test_ipv6_has_brackets() -> None:
    vitals, port = Vitals(), free_address().rpartition(":")[2]
    with served(f"[::1]:{port}", vitals, CollectorRegistry()):
        assert httpx.get(f"http://[::1]:{port}/healthz").status_code == 200


def test_a_port_that_is_taken_is_named_with_a_remedy(address: str) -> None:
    with (
        pytest.raises(SettingsError, match=rf"{address} \(Address already in use\).*Name another port"),
        served(address, Vitals(), CollectorRegistry()),
    ):
        pass


def test_an_address_of_another_computer_is_named_with_a_remedy() -> None:
    with (
        pytest.raises(SettingsError, match=r"192\.0\.2\.1:9464.*an address of this computer"),
        served("192.0.2.1:9464", Vitals(), CollectorRegistry()),
    ):
        pass


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:9464", "http://127.0.0.1:9464"])
def test_what_is_no_address_with_a_port_is_refused_before_anything_starts(listen: str) -> None:
    with pytest.raises(ValueError, match="is no address with a port"):
        MonitoringSettings(listen=listen)


def test_a_worker_is_asked_over_its_own_address(address: str, vitals: Vitals) -> None:
    settings = MonitoringSettings(listen=address)
    vitals.not_ready("the broker is away")

    assert json.dumps([ask_ready(settings).ready, ask_ready(settings).reason]) == '[false, "the broker is away"]'


def test_where_no_worker_answers_it_is_not_ready() -> None:
    answer = ask_ready(MonitoringSettings(listen=free_address()))

    assert not answer.ready
    assert answer.reason.startswith("no worker answers at 127.0.0.1:")


def test_a_worker_without_an_address_cannot_be_asked() -> None:
    with pytest.raises(SettingsError, match=r"monitoring\.listen"):
        ask_ready(MonitoringSettings())
