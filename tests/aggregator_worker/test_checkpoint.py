import resource
from pathlib import Path

import pytest
import safetensors.numpy

from aggregator_worker import checkpoint
from aggregator_worker.checkpoint import Restoration, decide, load, save
from broker_config.streams import once_told, publish_claim, publish_record
from shared import messages
from shared.errors import CheckpointError, StorageError
from shared.lineage import KEPT_HASHES
from tests.builders import a_claim, a_record, array, folded

MODEL = {"w": array(1, -2), "b": array(0.1)}
ZERO = a_record(0)
ONE = a_record(1, after=ZERO)
TWO = a_record(2, after=ONE)


def saved(folder: Path, *records, state=MODEL):
    save(folder, [messages.encode_record(record) for record in records], state)
    found = load(folder)
    assert found is not None
    return found


def test_a_checkpoint_is_read_back_as_it_was_saved(tmp_path):
    found = saved(tmp_path, ZERO, ONE)
    assert (list(found.records), found.newest) == ([ZERO, ONE], ONE)
    assert {name: array.tobytes() for name, array in found.state.items()} == {
        name: array.tobytes() for name, array in MODEL.items()
    }


def test_the_newer_checkpoint_replaces_the_older(tmp_path):
    saved(tmp_path, ZERO)
    assert saved(tmp_path, ONE, state={"w": array(9)}).newest == ONE
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


def test_a_folder_without_a_checkpoint_has_none(tmp_path):
    assert load(tmp_path) is None


def damaged_by(change):
    def write(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return write


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damaged_by(lambda content: content[:-1]), id="a byte short"),
        pytest.param(damaged_by(lambda content: content[:40]), id="cut off"),
        pytest.param(damaged_by(lambda content: b""), id="empty"),
        pytest.param(damaged_by(lambda content: bytes(len(content))), id="zeros"),
        pytest.param(lambda path: safetensors.numpy.save_file(MODEL, path), id="no records"),
        pytest.param(lambda path: safetensors.numpy.save_file(MODEL, path, {"records": "%%"}), id="no base64"),
        pytest.param(lambda path: safetensors.numpy.save_file(MODEL, path, {"records": "AAAA"}), id="no list of records"),
        pytest.param(
            lambda path: safetensors.numpy.save_file(MODEL, path, {"records": "kcQGlAKhbYCQ"}), id="a record of another schema"
        ),
    ],
)
def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path, damage):
    saved(tmp_path, ONE)
    damage(tmp_path / checkpoint.FILE_NAME)
    with pytest.raises(CheckpointError, match="move it away"):
        load(tmp_path)


def test_a_write_that_was_cut_off_leaves_the_former_checkpoint(tmp_path):
    saved(tmp_path, ONE)
    (tmp_path / f"{checkpoint.FILE_NAME}.new").write_bytes(b"half")
    found = load(tmp_path)
    assert found is not None
    assert found.newest == ONE


@pytest.fixture
def a_disk_with_room_for_100_kilobytes():
    # a write beyond RLIMIT_FSIZE fails with EFBIG (Python ignores SIGXFSZ), as one on a full disk does with ENOSPC
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("a_disk_with_room_for_100_kilobytes")
def test_a_full_disk_keeps_the_former_checkpoint_and_says_so(tmp_path):
    saved(tmp_path, ONE)
    with pytest.raises(StorageError, match="free space"):
        save(tmp_path, [messages.encode_record(TWO)], {"w": array(*range(50_000))})
    found = load(tmp_path)
    assert found is not None
    assert found.newest == ONE


def test_a_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="gone"):
        save(tmp_path / "gone", [messages.encode_record(ONE)], MODEL)


def judged(tmp_path, chain, *records):
    use = decide(folded(a_claim(1), *chain), saved(tmp_path, *records), lambda hashes: False)
    return use.state, list(use.missing)


def test_without_a_checkpoint_the_state_comes_from_the_broker():
    assert decide(folded(a_claim(1), ZERO), None, lambda hashes: False) == Restoration("broker")


ONE_X = a_record(1, after=ZERO, mark="x")
TWO_X = a_record(2, after=ONE, mark="x")


@pytest.mark.parametrize(
    ("records", "chain", "state", "missing"),
    [
        pytest.param([ZERO, ONE], [ZERO, ONE], "checkpoint", [], id="its newest is the head"),
        pytest.param([ONE, TWO], [ZERO, ONE], "checkpoint", [TWO], id="its newest follows the head"),
        pytest.param([TWO], [ZERO, ONE], "checkpoint", [TWO], id="it holds nothing but the head's successor"),
        pytest.param([ZERO, ONE, TWO], [ZERO], "checkpoint", [ONE, TWO], id="the stream has lost two"),
        pytest.param([ZERO], [ZERO, ONE], "broker", [], id="it is further back"),
        pytest.param([ZERO, ONE_X], [ZERO, ONE], "broker", [], id="its predecessor has another successor"),
        pytest.param([ONE, TWO_X], [ZERO, ONE, TWO], "broker", [], id="a later one has another successor"),
        pytest.param([ONE, TWO], [ZERO, ONE_X], "broker", [], id="the stream lost two and went on without them"),
    ],
)
def test_a_checkpoint_is_worth_what_the_chain_says(tmp_path, records, chain, state, missing):
    assert judged(tmp_path, chain, *records) == (state, missing)


def test_a_checkpoint_is_used_whatever_epoch_it_was_saved_under(tmp_path):
    chain = [ZERO, ONE, a_claim(5), a_record(1, after=ZERO, epoch=5)]
    assert judged(tmp_path, chain, ONE, TWO) == ("checkpoint", [TWO])


def test_a_checkpoint_of_another_run_is_an_error(tmp_path):
    other = a_record(1, after=ZERO, run_id="cd" * 8)
    with pytest.raises(CheckpointError, match="a folder of its own"):
        judged(tmp_path, [ZERO, ONE], other)


def test_a_checkpoint_of_a_chain_that_the_stream_lost_is_an_error(tmp_path):
    ahead = a_record(9, after=a_record(8))
    with pytest.raises(CheckpointError, match="no manifest in common"):
        judged(tmp_path, [ZERO, ONE], ahead)


def test_a_checkpoint_that_a_long_chain_left_behind_is_not_needed(broker_server, tmp_path):
    aggregator = broker_server.connect("aggregator")
    chain = [ZERO]
    publish_claim(aggregator, a_claim(1))
    publish_record(aggregator, ZERO)
    for version in range(1, KEPT_HASHES + 2):
        chain.append(a_record(version, after=chain[-1]))
        publish_record(aggregator, chain[-1])
    lineage = folded(a_claim(1), *chain)
    for kept, found in ((ZERO, True), (a_record(1, after=ZERO, mark="x"), True), (a_record(1, after=ONE_X), False)):
        assert once_told(aggregator, {kept.hash, kept.manifest.previous}) == found
    use = decide(lineage, saved(tmp_path, chain[1]), lambda hashes: once_told(aggregator, hashes))
    assert use == Restoration("broker")
