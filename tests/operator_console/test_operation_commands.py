"""Orders of the operator, and what the aggregator makes of them."""

import pytest

from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from operator_console.operation_commands import NoAnswerError, OrderDesk, OrderRefusedError, order_desk, pause, resume, stop
from shared.errors import TopologyError
from tests.builders import a_plan, name_of
from tests.leading import leading
from tests.running import Leader, begin


def test_an_order_returns_what_a_manifest_says_of_it(broker_server, tmp_path):
    begin(broker_server, a_plan())
    desk = OrderDesk(broker_server.connect("operator"))
    with Leader(broker_server, tmp_path / "aggregator"):
        paused = desk.give("pause")
        assert paused.applied
        assert desk.head.manifest.phase == "paused"
        refused = desk.give("admit", institution="bank-a", incarnation=1)
    assert not refused.applied
    assert refused.reason == "incarnation 1 is not above 1, which was issued before"
    assert refused.operation_id != paused.operation_id
    assert desk.plan == a_plan()


def test_without_a_leader_the_order_waits_and_is_followed_later(broker_server, tmp_path):
    begin(broker_server, a_plan())
    desk = OrderDesk(broker_server.connect("operator"))
    with pytest.raises(NoAnswerError, match=r"no aggregator answered the order to remove within 0\.3 s\. It waits in fl\.ops"):
        desk.give("remove", timeout_seconds=0.3, institution="bank-b")
    assert not desk.table[name_of("bank-b")].removed
    with Leader(broker_server, tmp_path / "aggregator"):
        assert desk.give("pause").applied
    assert desk.table[name_of("bank-b")].removed
    assert not desk.table[name_of("bank-a")].removed


def test_there_is_nobody_to_give_orders_to_before_version_0(broker_server):
    with pytest.raises(TopologyError, match="run `fedqueue init` first"):
        OrderDesk(broker_server.connect("operator"))


@pytest.mark.rabbitmq
def test_a_run_is_paused_resumed_and_stopped_and_a_refusal_fails_the_command(broker_folder, capsys):
    init(task="heart-disease", institution=["north"], folder=broker_folder)
    capsys.readouterr()
    phases = []
    with leading(broker_folder):
        for command in (pause, resume, stop):
            command(broker_folder)
            with order_desk(FederationFolder(broker_folder)) as desk:
                phases.append(desk.head.manifest.phase)
        with pytest.raises(OrderRefusedError, match="refused to resume: the run is finished") as refused:
            resume(broker_folder)
    assert phases == ["paused", "running", "finished"]
    assert refused.value.exit_code == 1
    said = capsys.readouterr().out
    assert "the run is paused; `fedqueue resume` lets it go on, at version 0\n" in said
    assert "the run is finished, at version 0\n" in said
