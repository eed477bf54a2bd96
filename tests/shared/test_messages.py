import pytest

from shared import codec, messages
from shared.errors import MalformedMessageError
from shared.messages import (
    Claim,
    Control,
    Counters,
    Entry,
    Hello,
    Location,
    Manifest,
    Operation,
    OperationOutcome,
    PrivacyStatement,
    Report,
    Settlement,
    Update,
    pseudonym,
)
from tests.builders import RUN, a_claim, a_hello, a_manifest, a_record, an_operation, an_update, array

STATEMENT = PrivacyStatement(
    mechanism="dp-sgd", clipping_norm=1.5, noise_multiplier=0.75, sample_rate=0.25, steps=10, epsilon_spent=2.5, target_delta=1e-5
)
REPORT = Report(
    run_id=RUN,
    institution="bank-a",
    incarnation=2,
    version=7,
    model_hash="c" * 64,
    metrics={"auc": 0.75, "rmse": None},
    epsilon=0.2,
)
CONTROL = Control(run_id=RUN, incarnation=1, sequence=9, outcome="rejected", reason="a value is not finite")
SETTLEMENT = Settlement(
    institution="0f" * 8,
    incarnation=1,
    sequence=3,
    hash="d" * 64,
    outcome="aggregated",
    base_version=2,
    base_hash="e" * 64,
    staleness=4,
    weight="0x1.8000000000000p-3",
)
ENTRY = Entry(
    incarnation=2,
    watermark=5,
    last_hash="b" * 64,
    epsilon_spent=1.25,
    target_delta=1e-5,
    num_examples=300,
    nonce="34" * 8,
    counters=Counters(aggregated=4, lost=1),
)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("update", an_update(privacy=STATEMENT)),
        ("hello", a_hello(head_sequence=4, head_hash="9" * 64)),
        ("report", REPORT),
        ("control", CONTROL),
        ("operation", an_operation("admit", institution="bank-d", incarnation=2)),
        ("claim", a_claim(3)),
        (
            "manifest",
            a_manifest(
                4,
                previous="f" * 64,
                settled=[SETTLEMENT],
                table={"0f" * 8: ENTRY},
                scalars={"norm": "0x1.0000000000000p+0", "count": 3, "rule": "x"},
                operations=[OperationOutcome(operation_id="1" * 32, kind="pause", applied=True)],
                operation_ids=["1" * 32],
                metrics={"auc": 0.5},
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_is_read_back_as_it_was_written(kind, value):
    body = messages.encode(kind, value)
    assert messages.decode(type(value), kind, body, max_bytes=len(body)) == value


def test_a_whole_manifest_carries_its_plan():
    manifest = a_manifest()
    assert messages.decode_manifest(messages.encode("manifest", manifest), max_bytes=2**20).plan == manifest.plan


def test_an_update_is_read_back_with_its_delta():
    update = an_update(privacy=STATEMENT)
    read, delta = messages.decode_update(messages.encode("update", update, {"w": array(1, -2, 0.5)}), max_bytes=2**20)
    assert read == update
    assert delta["w"].tolist() == [1.0, -2.0, 0.5]


def test_a_model_is_named_by_its_values_and_its_run():
    one, same, other = (messages.encode_model(RUN, {"w": array(*values)}).joined() for values in ((1, 2), (1, 2), (1, 3)))
    assert one == same
    assert len({one, other, messages.encode_model("cd" * 8, {"w": array(1, 2)}).joined()}) == 3
    assert messages.decode_model(one, max_bytes=1000)["w"].tolist() == [1.0, 2.0]


def test_a_model_in_another_dtype_is_another_blob_and_is_read_as_float32():
    full, rounded = (messages.encode_model(RUN, {"w": array(1, -2)}, dtype) for dtype in ("float32", "bfloat16"))
    assert full.hash != rounded.hash
    assert full.size - rounded.size == 3  # two bytes less for each number, one letter more in the name of the dtype
    assert messages.decode_model(rounded.joined(), max_bytes=1000)["w"].tolist() == [1.0, -2.0]


def test_a_state_is_read_back_to_the_bit_and_is_no_model():
    tensors = {"model/w": array(0.1), "momentum/w": array(1e-40)}
    body = messages.encode_state(RUN, tensors).joined()
    read = messages.decode_model(body, max_bytes=1000, kind="state")
    assert {name: each.tobytes() for name, each in read.items()} == {name: each.tobytes() for name, each in tensors.items()}
    with pytest.raises(MalformedMessageError, match="'state' where 'model'"):
        messages.decode_model(body, max_bytes=1000)


def test_a_claim_says_what_its_maker_had_read():
    assert a_claim(1, after=-1).after == -1
    fields = a_claim(1).model_dump() | {"after": -2}
    with pytest.raises(MalformedMessageError, match="field after"):
        messages.decode(Claim, "claim", codec.encode("claim", fields), max_bytes=1000)
    del fields["after"]
    with pytest.raises(MalformedMessageError, match="field after: missing"):
        messages.decode(Claim, "claim", codec.encode("claim", fields), max_bytes=1000)


def test_an_update_is_not_taken_for_a_model():
    with pytest.raises(MalformedMessageError, match="'update' where 'model'"):
        messages.decode_model(messages.encode("update", an_update(), {}), max_bytes=2**20)


def test_a_message_without_tensors_may_not_carry_any():
    with pytest.raises(MalformedMessageError, match="no tensors"):
        messages.decode(Hello, "hello", messages.encode("hello", a_hello(), {"w": array(1)}), max_bytes=2**20)


def altered(value, **changes):
    return codec.encode("update", {**value.model_dump(), **changes})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": "secret-4711"}, "colour"),
        ({"sequence": "secret-4711"}, "sequence"),
        ({"sequence": 1.0}, "sequence"),
        ({"sequence": True}, "sequence"),
        ({"sequence": 0}, "sequence"),
        ({"incarnation": 0}, "incarnation"),
        ({"institution": "secret/4711"}, "institution"),
        ({"institution": "x" * 65}, "institution"),
        ({"run_id": "secret-4711"}, "run_id"),
        ({"base_hash": "secret-4711"}, "base_hash"),
        ({"num_examples": 0}, "num_examples"),
        ({"num_examples": None}, "num_examples"),
        ({"privacy": {"mechanism": "secret-4711"}}, "privacy.mechanism"),
        ({"privacy": {"mechanism": "none", "epsilon_spent": -1.0}}, "privacy.epsilon_spent"),
        ({"privacy": {"mechanism": "none", "epsilon_spent": float("nan")}}, "privacy.epsilon_spent"),
        ({"privacy": "secret-4711"}, "privacy"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not(changes, field):
    with pytest.raises(MalformedMessageError) as caught:
        messages.decode(Update, "update", altered(an_update(), **changes), max_bytes=2**20)
    assert f"field {field}:" in str(caught.value)
    assert "4711" not in str(caught.value)


def test_a_hostile_key_cannot_write_into_the_error():
    with pytest.raises(MalformedMessageError) as caught:
        messages.decode(Update, "update", altered(an_update(), **{"a\n\x1b[31m" + "b" * 200: 1}), max_bytes=2**20)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 100


def test_a_missing_field_is_named():
    fields = an_update().model_dump()
    del fields["plan_hash"]
    with pytest.raises(MalformedMessageError, match="field plan_hash: missing"):
        messages.decode(Update, "update", codec.encode("update", fields), max_bytes=2**20)


def test_a_key_of_bytes_is_refused():
    with pytest.raises(MalformedMessageError):
        messages.decode(Claim, "claim", codec.encode("claim", {b"run_id": RUN, "epoch": 1, "claimant": "x"}), max_bytes=2**20)


def test_a_message_of_another_kind_is_refused():
    with pytest.raises(MalformedMessageError, match="'claim' where 'hello'"):
        messages.decode(Hello, "hello", messages.encode("claim", a_claim(1)), max_bytes=2**20)


def test_an_update_with_a_megabyte_of_fields_is_refused_by_their_size():
    with pytest.raises(MalformedMessageError, match="bytes of fields"):
        messages.decode_update(altered(an_update(), extra="x" * 2**20), max_bytes=2**22)


def test_a_report_names_only_a_few_metrics():
    fields = REPORT.model_dump() | {"metrics": {f"m{number}": 0.5 for number in range(65)}}
    with pytest.raises(MalformedMessageError, match="field metrics: too_long"):
        messages.decode(Report, "report", codec.encode("report", fields), max_bytes=2**20)


def test_a_record_is_read_back_with_the_content_it_was_published_with():
    record = messages.manifest_record(
        7, a_manifest(3, previous="f" * 64), Location(offset=12, chunks=2), Location(offset=5, chunks=1)
    )
    read = messages.decode_record(messages.encode_record(record), max_bytes=2**20)
    assert (read.epoch, read.hash, read.content, read.manifest) == (7, record.hash, record.content, record.manifest)
    assert (read.model_at, read.state_at) == (Location(offset=12, chunks=2), Location(offset=5, chunks=1))


def test_a_manifest_has_one_identity_whatever_epoch_and_place_it_is_published_under():
    first, again = a_record(2, epoch=1, offset=4), a_record(2, epoch=9, offset=700)
    assert first.hash == again.hash
    assert messages.encode_record(first) != messages.encode_record(again)


def test_any_difference_in_content_is_another_identity():
    plain = a_record(2)
    assert plain.hash != a_record(2, phase_reason="x").hash
    assert plain.hash != a_record(2, metrics={"auc": 0.5}).hash
    assert plain.hash != a_record(3, mark="model 2").hash


def test_a_record_that_names_another_run_than_its_manifest_is_refused():
    record = a_record(0)
    fields = codec.decode(messages.encode_record(record), max_bytes=2**20).fields | {"run_id": "cd" * 8}
    with pytest.raises(MalformedMessageError, match="different runs"):
        messages.decode_record(codec.encode("record", fields), max_bytes=2**20)


def test_pseudonyms_are_hmac_sha256_cut_to_sixteen_digits():
    # printf bank-a | openssl dgst -sha256 -hmac 'run secret'
    assert pseudonym(b"run secret", "bank-a") == "dc329680747a8df2"


def test_weights_are_written_so_that_every_bit_is_read_back():
    assert Settlement.model_validate({**SETTLEMENT.model_dump(), "weight": (0.1).hex()}).weight == "0x1.999999999999ap-4"
    with pytest.raises(ValueError, match="weight"):
        Settlement.model_validate({**SETTLEMENT.model_dump(), "weight": "0.1"})


def test_an_operation_of_an_unknown_kind_is_refused():
    fields = an_operation("pause").model_dump() | {"kind": "explode"}
    with pytest.raises(MalformedMessageError, match="field kind"):
        messages.decode(Operation, "operation", codec.encode("operation", fields), max_bytes=2**20)


def test_a_manifest_lists_no_more_operation_ids_than_are_kept():
    fields = a_manifest().model_dump() | {"operation_ids": [f"{number:032x}" for number in range(257)]}
    with pytest.raises(MalformedMessageError, match="field operation_ids"):
        messages.decode(Manifest, "manifest", codec.encode("manifest", fields), max_bytes=2**20)
