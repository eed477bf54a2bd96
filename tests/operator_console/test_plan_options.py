"""From an operator's choices to the plan and to the room on the broker."""

import numpy as np
import pytest
import typer

import builtin_tasks
from operator_console.command_options import bytes_of
from operator_console.plan_options import (
    PlanOptions,
    RoomOptions,
    Sizes,
    broker_limits,
    plan_for,
    sizes_of,
    version_spacing_seconds,
)
from shared.errors import SettingsError
from shared.tasks.spec import Transport, parse_task

MIB = 1 << 20
PLENTY = 1 << 50
BIG = Sizes(update=400 * MIB, model=400 * MIB, state=800 * MIB)


def limits(sizes=BIG, *, free_bytes=PLENTY, institutions=2, **room):
    return broker_limits(sizes, RoomOptions(**room), institutions=institutions, free_bytes=free_bytes)


def test_an_update_takes_its_model_and_64_kib():
    # the model of docs/wire-format.md, of 95 bytes
    model = {"weight": np.zeros((1, 2), np.float32), "bias": np.zeros(1, np.float32)}
    assert sizes_of(model, "float32") == Sizes(update=95 + 65536, model=95, state=0)


def test_bfloat16_halves_the_broadcast_and_momentum_doubles_the_state():
    model = {"w": np.zeros(1_000_000, np.float32)}
    wide = sizes_of(model, "bfloat16", server_momentum=0.9)
    assert wide.update == pytest.approx(4_000_000, rel=0.02)
    assert wide.model == pytest.approx(2_000_000, rel=0.001)
    assert wide.state == pytest.approx(8_000_000, rel=0.001)
    assert sizes_of(model, "bfloat16").state == pytest.approx(4_000_000, rel=0.001)
    assert sizes_of(model, "float32", server_momentum=0.9).state == pytest.approx(4_000_000, rel=0.001)


def test_the_model_stream_holds_ten_models_and_the_segment_that_retention_may_drop_early():
    assert limits().model_stream_bytes == (10 * 400 + 64) * MIB
    assert limits().state_stream_bytes == 4 * 800 * MIB
    assert limits().update_bytes == 400 * MIB


def test_on_a_smaller_disk_it_holds_what_fits_beside_the_rest_but_never_fewer_than_four():
    # 3200 for states, three streams' last segments of 64, 800 of dead letters, 2 institutions with 3 updates of 400: 6592 MiB
    # of 12500 MiB, 10000 are to be used
    assert limits(free_bytes=12500 * MIB).model_stream_bytes == (10000 - 6592) * MIB
    assert limits(free_bytes=7000 * MIB).model_stream_bytes == (4 * 400 + 64) * MIB
    # two journals of 100, each with a last segment of 64
    assert limits(free_bytes=12500 * MIB, journal_bytes=100 * MIB).model_stream_bytes == (10000 - 6592 - 328) * MIB


def test_a_model_stream_that_is_asked_for_is_taken_unless_it_is_too_short():
    assert limits(model_stream_bytes=2000 * MIB).model_stream_bytes == 2000 * MIB
    with pytest.raises(SettingsError, match="--model-stream must be at least 1744830464 bytes: 4 models of 419430400 bytes"):
        limits(model_stream_bytes=1663 * MIB)


def test_there_is_no_journal_unless_it_is_asked_for():
    assert limits().journal_stream_bytes is None
    assert limits(journal_bytes=MIB).journal_stream_bytes == MIB


def test_versions_leave_the_slowest_link_its_time():
    # 400 MiB at 1 MiB/s take 400 s; of ten models held, eight may be made meanwhile
    room = RoomOptions(slowest_link_bytes_per_second=MIB)
    assert version_spacing_seconds(BIG, limits(), room) == 50.0
    assert version_spacing_seconds(BIG, limits(model_stream_bytes=1664 * MIB), room) == 200.0
    assert version_spacing_seconds(BIG, limits(), RoomOptions()) == 0.0


@pytest.mark.parametrize(
    ("text", "size"), [("1GiB", 1 << 30), ("64 mib", 64 * MIB), ("3KiB", 3072), ("17", 17), ("5B", 5), ("2TiB", 1 << 41)]
)
def test_a_size_is_bytes_or_a_binary_unit(text, size):
    assert bytes_of(text) == size
    assert bytes_of(None) is None


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5GiB", "1GB", "GiB", "many"])
def test_any_other_size_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is not a size such as 512MiB"):
        bytes_of(text)


def test_what_an_operator_chooses_of_privacy_and_pace_is_in_the_plan():
    spec = parse_task(builtin_tasks.task_text("heart-disease"), source="task")
    options = PlanOptions(epsilon=2.0, target_delta=1e-3, mechanism="update-gaussian", updates=7, horizon_seconds=3600.0)
    plan = plan_for(spec, options, update_bytes=1 << 20)
    assert (plan.privacy.mechanism, plan.privacy.epsilon, plan.privacy.target_delta) == ("update-gaussian", 2.0, 1e-3)
    assert (plan.local.updates, plan.local.horizon_seconds) == (7, 3600.0)
    assert plan_for(spec, PlanOptions(epsilon=None), update_bytes=1 << 20).privacy.mechanism == "none"


def test_numbers_travel_as_the_task_says_unless_the_operator_chooses():
    spec = parse_task(builtin_tasks.task_text("heart-disease"), source="task")
    given = spec.model_copy(update={"transport": Transport(updates="float16", models="bfloat16")})
    plans = [
        plan_for(spec, PlanOptions(), update_bytes=1 << 20),
        plan_for(given, PlanOptions(), update_bytes=1 << 20),
        plan_for(given, PlanOptions(updates_as="float32", broadcast="float32"), update_bytes=1 << 20),
    ]
    assert [(plan.update_encoding, plan.broadcast) for plan in plans] == [
        ("int8", "float32"),
        ("float16", "bfloat16"),
        ("float32", "float32"),
    ]
