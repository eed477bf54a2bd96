"""A run that kept its journals is rebuilt to the same bits, and one bit that differs anywhere makes the replay red."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from broker_config.logins import load, save
from broker_config.memory import MemoryRabbit
from broker_config.provision import provision
from broker_config.topology import MODEL, journal_queue, topology, update_queue
from operator_console.init_command import init
from operator_console.journal import JournalGapError
from operator_console.lineage_commands import NoSuchVersionError, show, verify
from operator_console.replay_command import choose_start, lines, rebuilt, replay
from shared import messages
from shared.compact import Scaled
from shared.errors import SettingsError
from shared.messages import Settlement
from tests.builders import BY_PSEUDONYM, NAMES, a_plan, an_update, array, as_messages, name_of
from tests.conftest import JOURNALLED
from tests.leading import make_three_versions
from tests.running import Hand, Leader, Watch, begin

STEP = float(np.float32(0.1))


def replayed(server, **choices):
    return rebuilt(server.connect("operator"), BY_PSEUDONYM, **choices)


def run(server, folder, plan, *rounds, chunk_bytes=1 << 20):
    """Each round is (institution, sequence, values); a version is made of each."""
    begin(server, plan)
    watch = Watch(server.connect("operator"))
    hands = {name: Hand(server, name) for name in NAMES}
    with Leader(server, folder):
        for institution, sequence, values in rounds:
            settled = len(watch.settled)
            hands[institution].send(watch.head, sequence, *values, chunk_bytes=chunk_bytes)
            assert watch.until(lambda settled=settled: len(watch.settled) > settled)
    return watch


ROUNDS = (
    ("bank-a", 1, (0.1, 0.2, 0.3)),
    ("bank-b", 1, (-0.7, 1e-3, 3.0)),
    ("bank-c", 1, (1 / 3, 2 / 3, 0.7)),
    ("bank-a", 2, (0.011, float("nan"), 0.3)),
    ("bank-a", 3, (0.6, -0.1, 0.9)),
)


def test_every_version_is_rebuilt_to_the_bit(journalled, tmp_path):
    plan = a_plan({"server_momentum": 0.9}, broadcast="bfloat16")
    watch = run(journalled, tmp_path, plan, *ROUNDS, chunk_bytes=150)
    assert watch.head.manifest.version == 4
    result = replayed(journalled)
    assert (result.start, result.version, result.replay.folded, result.replay.off_rule) == (0, 4, 4, 0)
    published = watch.model()
    rebuilt_again = messages.encode_model(watch.head.manifest.run_id, result.replay.state.model, "bfloat16")
    assert rebuilt_again.hash == watch.head.manifest.model.hash
    assert np.allclose(result.replay.state.model["w"], published["w"], rtol=0.01)
    assert list(lines(result, None)) == [
        "start: version 0, the oldest whose model is on the broker",
        "versions 0 to 4: 4 updates folded again, each model equal to the bit",
        "weights: 4 of 4 are what the plan's rule gives",
    ]


@pytest.mark.parametrize(("momentum", "broadcast"), [(0.0, "float32"), (0.0, "bfloat16"), (0.5, "float32")])
def test_so_it_is_under_every_kind_of_state(tmp_path, momentum, broadcast):
    rabbit = MemoryRabbit(topology(NAMES, JOURNALLED))
    run(rabbit, tmp_path, a_plan({"server_momentum": momentum}, broadcast=broadcast), *ROUNDS)
    assert replayed(rabbit).replay.folded == 4


def test_updates_of_one_and_two_bytes_a_number_are_folded_and_rebuilt_to_the_bit(journalled, tmp_path):
    # 100, 300 and 600 examples: weights 0.1 and 0.3. The model is 0.1 x (12.7, -0.3, 0) + 0.3 x (1, 0.5, -2)
    begin(journalled, a_plan())
    watch = Watch(journalled.connect("operator"))
    tensors = {"bank-a": Scaled(np.array([127, -3, 0], np.int8), STEP), "bank-b": Scaled(np.array([1, 0.5, -2], np.float16), 1.0)}
    with Leader(journalled, tmp_path):
        for version, (name, tensor) in enumerate(tensors.items(), start=1):
            Hand(journalled, name).send_scaled(watch.head, 1, tensor)
            assert watch.until(lambda version=version: watch.head.manifest.version == version)
    result = replayed(journalled)
    assert (result.version, result.replay.folded, result.replay.off_rule) == (2, 2, 0)
    assert result.replay.state.model["w"] == pytest.approx(array(1.57, 0.12, -0.6))
    assert watch.model()["w"].tobytes() == result.replay.state.model["w"].tobytes()


def test_without_an_institution_the_others_keep_their_weights(journalled, tmp_path):
    # 100, 300 and 600 examples: weights 0.1, 0.3 and 0.6
    begin(journalled, a_plan({"buffer_size": 3, "exact_buffer": True, "max_wait_seconds": 30.0}))
    watch = Watch(journalled.connect("operator"))
    hands = {name: Hand(journalled, name) for name in NAMES}
    with Leader(journalled, tmp_path):
        for name, value in zip(NAMES, (1.0, 10.0, 100.0), strict=True):
            hands[name].send(watch.head, 1, value, value, value)
        assert watch.until(lambda: watch.head.manifest.version == 1)
    whole = replayed(journalled)
    assert whole.replay.state.model["w"] == pytest.approx(array(63.1, 63.1, 63.1))
    less = replayed(journalled, without=name_of("bank-b"))
    assert less.replay.state.model["w"] == pytest.approx(array(60.1, 60.1, 60.1))
    assert (less.replay.folded, less.replay.left_out) == (2, 1)
    told = list(lines(less, "bank-b"))
    assert "version 1 without bank-b: 2 updates folded, 1 left out" in told
    assert told[2].startswith("This is not a re-training")
    assert len(told) == 4


def test_repeats_and_wrong_bytes_in_a_journal_do_not_mislead(journalled, tmp_path):
    begin(journalled, a_plan())
    watch, hand = Watch(journalled.connect("operator")), Hand(journalled, "bank-a")
    update, delta = an_update(base=watch.head), {"w": array(1, 2, 3)}
    good = as_messages(update, delta, chunk_bytes=150)
    bad = [good[0], replace(good[1], body=bytes(len(good[1].body))), *good[2:]]
    lying = [replace(chunk, headers={**chunk.headers, "size": 2**45}) for chunk in good]
    with Leader(journalled, tmp_path):
        for chunk in [*lying, *bad, *good[:2], *good, *good]:
            hand.publish(chunk)
        assert watch.until(lambda: len(watch.settled) == 1)
    assert [each.outcome for each in watch.settled] == ["aggregated"]
    assert replayed(journalled).replay.folded == 1


def write_journal_again(server, institution, change):
    """What `change` makes of each message of a journal takes its place; None leaves it out. Nobody leads meanwhile."""
    name = journal_queue(institution)
    held = [delivery.message for delivery in server.connect("operator").read(name, "first", count=None, idle_seconds=0.3)]
    server.remove_queue(name)
    if isinstance(server, MemoryRabbit):
        server.declare(institution)
    else:
        provision(server.logins, NAMES, JOURNALLED)
    author = server.connect(institution)
    for message in held:
        changed = change(message)
        if changed is not None:
            author.publish(update_queue(institution), changed)


def of_update(message, identity):
    return message.headers["id"] == identity


def test_one_bit_of_a_journalled_body_makes_the_replay_red(journalled, tmp_path):
    plan = a_plan({"server_momentum": 0.9}, broadcast="bfloat16")
    run(journalled, tmp_path, plan, *ROUNDS)

    def flip(message):
        flipped = message.body[:-1] + bytes([message.body[-1] ^ 1])
        return replace(message, body=flipped) if of_update(message, "bank-a/1/3") else message

    write_journal_again(journalled, "bank-a", flip)
    with pytest.raises(JournalGapError, match=r"fl\.jrn\.bank-a no longer has the update 1/3 of bank-a .* whole and unaltered"):
        replayed(journalled)
    assert replayed(journalled, version=3).replay.folded == 3


def test_what_the_journals_no_longer_have_is_told_and_a_later_start_is_found(journalled, tmp_path):
    run(journalled, tmp_path, a_plan(), *ROUNDS)
    write_journal_again(journalled, "bank-b", lambda message: None if of_update(message, "bank-b/1/1") else message)
    result = replayed(journalled)
    assert (result.start, result.version, result.replay.folded) == (2, 4, 2)
    assert next(lines(result, None)).startswith("start: version 2; the journals no longer have 1 updates of the versions 2 to 2,")
    with pytest.raises(JournalGapError, match="version 2 cannot be rebuilt: the journals no longer have 1 updates"):
        replayed(journalled, version=2)
    assert replayed(journalled, without=name_of("bank-b")).start == 0
    with pytest.raises(NoSuchVersionError, match="holds the versions 0 to 4, not 9"):
        replayed(journalled, version=9)


def test_the_start_is_the_oldest_version_from_which_nothing_is_missing():
    lost = [Settlement(institution="a" * 16, incarnation=1, sequence=1, hash="", outcome="aggregated")]
    assert choose_start([3, 4, 5, 6], {}, target=6) == (3, "")
    assert choose_start([3, 4, 5, 6], {2: lost, 3: lost}, target=6) == (3, "")
    assert choose_start([3, 4, 5, 6], {4: lost, 5: lost + lost}, target=6)[0] == 5
    assert choose_start([3, 4], {}, target=3) == (3, "")
    with pytest.raises(JournalGapError, match="version 6 cannot be rebuilt: the journals no longer have 1 updates"):
        choose_start([3, 4, 5, 6], {6: lost}, target=6)
    with pytest.raises(JournalGapError, match="version 2 cannot be rebuilt: the broker keeps no model of it"):
        choose_start([3, 4], {}, target=2)


@pytest.mark.rabbitmq
def test_where_the_model_stream_has_dropped_the_first_versions_the_oldest_that_is_left_is_the_start(
    rabbitmq_server, tmp_path, soon
):
    short = replace(JOURNALLED, model_stream_bytes=300_000, segment_bytes=100_000)
    rabbitmq_server.remove_queue(MODEL)  # a stream takes the size of its segments from the limits that it is made under
    provision(rabbitmq_server.logins, NAMES, short)
    begin(rabbitmq_server, a_plan(), model={"w": np.zeros(10_000, np.float32)})
    watch, hand = Watch(rabbitmq_server.connect("operator")), Hand(rabbitmq_server, "bank-a")
    with Leader(rabbitmq_server, tmp_path):
        for version in range(1, 16):
            hand.send(watch.head, version, *[0.01 * version] * 10_000)
            assert watch.until(lambda version=version: watch.head.manifest.version == version)
    operator = rabbitmq_server.connect("operator")
    assert soon(lambda: next(operator.read(MODEL, "first", count=1, idle_seconds=5)).offset > 0)
    result = replayed(rabbitmq_server)
    assert 0 < result.start < 15
    assert result.replay.folded == 15 - result.start
    less = replayed(rabbitmq_server, without=name_of("bank-a"))
    assert f"Version {less.start} holds what it gave until then: only later updates are left out." in lines(less, "bank-a")
    with pytest.raises(JournalGapError, match="version 0 cannot be rebuilt: the broker keeps no model of it"):
        replayed(rabbitmq_server, version=0)


@pytest.mark.rabbitmq
def test_the_commands_tell_a_founded_federations_versions_and_write_their_parameters(broker_folder, tmp_path, capsys):
    choices = {"epsilon": "none", "journal": "20MiB", "server_momentum": 0.9, "broadcast": "bfloat16"}
    init(task="heart-disease", institution=["north"], folder=broker_folder, **choices)
    names = make_three_versions(broker_folder)
    capsys.readouterr()
    verify(broker_folder)
    show(2, broker_folder)
    replay(version=None, without=None, out=tmp_path / "model.safetensors", folder=broker_folder)
    said = capsys.readouterr().out
    assert "3 aggregated" in said
    assert "version 2" in said
    assert "versions 0 to 3: 3 updates folded again, each model equal to the bit" in said
    assert "weights: 3 of 3 are what the plan's rule gives" in said
    assert load_file(tmp_path / "model.safetensors").keys() == set(names)
    with pytest.raises(SettingsError, match="south is not a member: did you mean north"):
        replay(version=None, without="south", out=None, folder=broker_folder)
    logins = load(broker_folder)
    save(logins.model_copy(update={"limits": replace(logins.limits, journal_stream_bytes=None)}), broker_folder)
    with pytest.raises(SettingsError, match="this federation keeps no journals"):
        replay(version=None, without=None, out=None, folder=broker_folder)
