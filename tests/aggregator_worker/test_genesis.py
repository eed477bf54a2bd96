import pytest

from aggregator_worker.genesis import found
from broker_config.streams import LineageReader
from shared import messages
from shared.errors import TopologyError
from tests.builders import NAMES, RUN, a_plan, name_of
from tests.running import EXAMPLES, ZERO, Watch, members_table


def found_by_the_operator(server, plan):
    return found(server.connect("operator"), run_id=RUN, plan=plan, parameters=ZERO, table=members_table())


def test_version_zero_is_a_whole_manifest_that_every_institution_can_read(broker_server):
    found_by_the_operator(broker_server, a_plan({"buffer_size": 5}))
    reader = LineageReader(broker_server.connect("bank-b"))
    reader.catch_up()
    head, lineage = reader.current()
    assert (head.manifest.run_id, head.manifest.version, head.manifest.previous, head.epoch) == (RUN, 0, "", 1)
    assert lineage.complete
    assert lineage.plan == a_plan({"buffer_size": 5})
    assert {name: entry.num_examples for name, entry in (lineage.table or {}).items()} == {
        name_of(name): EXAMPLES[name] for name in NAMES
    }


def test_the_first_model_is_where_the_manifest_says(broker_server):
    found_by_the_operator(broker_server, a_plan())
    watch = Watch(broker_server.connect("operator"))
    assert watch.model()["w"].tolist() == ZERO["w"].tolist()
    assert watch.head.manifest.model.size == messages.encode_model(RUN, ZERO).size


def test_a_second_beginning_over_a_lineage_is_refused(broker_server):
    found_by_the_operator(broker_server, a_plan())
    with pytest.raises(TopologyError, match="already holds a run"):
        found_by_the_operator(broker_server, a_plan())
