"""From an operator's choices to the plan and to the room on the broker."""

import numpy as np
import pytest
import typer

import builtin_tasks
from operator_console.command_options import bytes_of, figure_of
from operator_console.plan_options import (
    PlanOptions,
    RoomOptions,
    Sizes,
    broker_limits,
    ending_for,
    models_held,
    plan_for,
    sizes_of,
    version_spacing_seconds,
)
from shared.errors import SettingsError
from shared.plan import AggregationPlan, Ending, ServerAdam
from shared.tasks.spec import Aggregation, Transport, parse_task

MIB = 1 << 20
PLENTY = 1 << 50
BIG = Sizes(update=400 * MIB, model=400 * MIB, state=800 * MIB)


def limits(sizes=BIG, *, free_bytes=PLENTY, institutions=2, **room):
    return broker_limits(sizes, RoomOptions(**room), institutions=institutions, free_bytes=free_bytes)


def test_an_update_takes_its_model_and_64_kib():
    # the model of docs/wire-format.md, of 95 bytes
    model = {"weight": np.zeros((1, 2), np.float32), "bias": np.zeros(1, np.float32)}
    assert sizes_of(model, "float32", AggregationPlan(), institutions=3) == Sizes(update=95 + 65536, model=95, state=0)


def state_of(broadcast, **aggregation):
    """How many models of a million numbers a state has room for."""
    model = {"w": np.zeros(1_000_000, np.float32)}
    return sizes_of(model, broadcast, AggregationPlan(**aggregation), institutions=3).state / 4_000_000


def test_bfloat16_halves_the_broadcast():
    sizes = sizes_of({"w": np.zeros(1_000_000, np.float32)}, "bfloat16", AggregationPlan(), institutions=3)
    assert sizes.update == pytest.approx(4_000_000, rel=0.02)
    assert sizes.model == pytest.approx(2_000_000, rel=0.001)


def test_the_state_has_what_the_server_remembers_and_the_model_where_it_travels_shorter():
    assert state_of("bfloat16") == pytest.approx(1, rel=0.001)
    assert state_of("float32", server_momentum=0.9) == pytest.approx(1, rel=0.001)
    assert state_of("bfloat16", server_momentum=0.9) == pytest.approx(2, rel=0.001)
    # Adam's two moments; a row for each of three institutions, and of three more that may come
    assert state_of("float32", server_adam=ServerAdam()) == pytest.approx(2, rel=0.001)
    assert state_of("float32", rule="latest-model") == pytest.approx(6, rel=0.001)
    assert state_of("bfloat16", rule="latest-update", server_momentum=0.9) == pytest.approx(8, rel=0.001)
    assert state_of("float32", rule="fedasync") == 0


def test_the_model_stream_holds_ten_models_and_the_segment_that_retention_may_drop_early():
    assert limits().model_stream_bytes == (10 * 400 + 64) * MIB
    assert limits().state_stream_bytes == 4 * 800 * MIB
    assert limits().update_bytes == 400 * MIB


def test_of_a_tiny_model_it_holds_a_segment_so_that_the_best_one_need_not_come_again_soon():
    tiny = Sizes(update=65_631, model=95, state=0)
    assert limits(tiny).model_stream_bytes == 2 * 64 * MIB
    # a message is taken for 4 KiB at least
    assert models_held(tiny, limits(tiny)) == 64 * 1024 * 1024 // 4096
    assert models_held(BIG, limits()) == 10
    assert models_held(BIG, limits(model_stream_bytes=1664 * MIB)) == 4


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
    # 400 MiB at 1 MiB/s take 400 s; meanwhile six versions and the best twice, which with the download are nine of ten
    room = RoomOptions(slowest_link_bytes_per_second=MIB)
    assert version_spacing_seconds(BIG, limits(), room) == pytest.approx(400 / 6)
    # of four: the download, one version and the best
    assert version_spacing_seconds(BIG, limits(model_stream_bytes=1664 * MIB), room) == 400.0
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
    assert plan.limits.updates_per_hour is None
    assert plan_for(spec, PlanOptions(updates_per_hour=40), update_bytes=1 << 20).limits.updates_per_hour == 40
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


def heart(**aggregation):
    spec = parse_task(builtin_tasks.task_text("heart-disease"), source="task")
    return spec.model_copy(update={"aggregation": Aggregation(**aggregation)})


@pytest.mark.parametrize(
    ("suggested", "chosen", "rule", "rate"),
    [
        ({}, {}, "credit", 1.0),
        ({"server_learning_rate": 3.0}, {}, "credit", 3.0),
        ({"server_learning_rate": 3.0}, {"rule": "fedbuff"}, "fedbuff", 0.5),
        ({"server_learning_rate": 3.0}, {"rule": "fedasync"}, "fedasync", 0.6),
        ({"rule": "fedasync"}, {}, "fedasync", 0.6),
        ({"rule": "fedasync", "server_learning_rate": 0.9}, {}, "fedasync", 0.9),
        ({"rule": "latest-model", "server_learning_rate": 0.5}, {"rule": "credit"}, "credit", 1.0),
        ({"server_learning_rate": 3.0}, {"rule": "fedasync", "server_learning_rate": 0.1}, "fedasync", 0.1),
        ({"server_learning_rate": 3.0}, {"server_adam": True}, "credit", 0.003),
    ],
)
def test_a_rate_is_for_the_rule_that_it_was_found_with(suggested, chosen, rule, rate):
    aggregation = plan_for(heart(**suggested), PlanOptions(**chosen), update_bytes=1 << 20).aggregation
    assert (aggregation.rule, aggregation.server_learning_rate) == (rule, rate)
    assert (aggregation.server_adam is not None) == bool(chosen.get("server_adam"))


def test_the_best_version_goes_by_the_tasks_first_figure_unless_another_is_named():
    spec = parse_task(builtin_tasks.task_text("heart-disease"), source="task")
    assert plan_for(spec, PlanOptions(), update_bytes=1 << 20).ending == Ending(metric="auc")
    chosen = Ending(metric="log_loss", target=0.4, versions=9)
    assert plan_for(spec, PlanOptions(ending=chosen), update_bytes=1 << 20).ending == chosen


def test_a_figure_that_the_task_has_not_is_refused_with_the_one_that_was_meant():
    spec = parse_task(builtin_tasks.task_text("heart-disease"), source="task")
    with pytest.raises(
        SettingsError, match="a binary task has no figure 'acuracy': did you mean accuracy\\? There are auc, log_loss"
    ):
        ending_for(spec, metric="acuracy")
    with pytest.raises(SettingsError, match="a binary task has no figure 'mae': there are auc"):
        ending_for(spec, metric="mae")


@pytest.mark.parametrize(
    ("text", "named"), [("auc=0.78", ("auc", 0.78)), ("log_loss = .5", ("log_loss", 0.5)), (None, ("", None))]
)
def test_a_figure_and_its_value_are_read(text, named):
    assert figure_of(text) == named


@pytest.mark.parametrize("text", ["auc", "0.78", "=0.78", "auc=", "auc=much", "auc=nan", "auc=inf"])
def test_any_other_figure_is_refused(text):
    with pytest.raises(typer.BadParameter, match=r"is not a figure and its value, such as auc=0\.78"):
        figure_of(text)
