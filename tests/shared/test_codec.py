import hashlib
import math

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared import codec
from shared.compact import Scaled, widened
from shared.errors import MalformedMessageError, RejectedMessageError, UnsupportedSchemaError
from tests.builders import array

MEBIBYTE = 2**20

# Written by hand from the msgpack specification: array of 4; 1; "hello"; {"n": 7}; one tensor
# ["w", "float32", [2], "raw", nil, the 8 bytes of 1.0 and -2.0 in IEEE 754, little-endian].
GOLDEN = bytes.fromhex(
    "94 01 a5 68656c6c6f 81 a1 6e 07"
    "91 96 a1 77 a7 666c6f61743332 91 02 a3 726177 c0 c4 08 0000803f 000000c0"
)  # fmt: skip

# The same with the upper halves of the bits: 0x3f80 and 0xc000.
GOLDEN_BFLOAT16 = bytes.fromhex(
    "94 01 a5 68656c6c6f 81 a1 6e 07"
    "91 96 a1 77 a8 62666c6f61743136 91 02 a3 726177 c0 c4 04 803f 00c0"
)  # fmt: skip

# An update's tensors, written by hand: ["h", "float16", [2], "scaled", 0.5, 1.0 and -2.0 in two bytes each],
# ["w", "int8", [1, 3], "scaled", 0.25, -1, 127, 0].
GOLDEN_SCALED = bytes.fromhex(
    "94 01 a6 757064617465 80"
    "92 96 a1 68 a7 666c6f61743136 91 02 a6 7363616c6564 cb 3fe0000000000000 c4 04 003c 00c0"
    "96 a1 77 a4 696e7438 92 01 03 a6 7363616c6564 cb 3fd0000000000000 c4 03 ff 7f 00"
)  # fmt: skip

tensors = st.dictionaries(
    st.text(max_size=8),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=st.floats(width=32)),
    max_size=4,
)
fields = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8), max_size=4
)


def packed(*tensors_list: object, schema: object = 1, kind: object = "update", fields: object = None) -> bytes:
    return msgpack.packb([schema, kind, {} if fields is None else fields, list(tensors_list)])


def a_tensor(name="w", dtype="float32", shape=(2,), encoding="raw", scale=None, data=bytes(8)):
    return [name, dtype, list(shape), encoding, scale, data]


def some_bytes(dtype="int8", shape=(2,), scale=1.0, data=bytes(2)):
    return a_tensor(dtype=dtype, shape=shape, encoding="scaled", scale=scale, data=data)


def test_a_small_message_has_the_bytes_of_the_documented_format():
    assert codec.encode("hello", {"n": 7}, {"w": array(1, -2)}) == GOLDEN


def test_the_documented_bytes_are_read_back():
    content = codec.decode(GOLDEN, max_bytes=100)
    assert (content.kind, content.fields) == ("hello", {"n": 7})
    assert content.tensors["w"].tolist() == [1.0, -2.0]
    assert content.tensors["w"].dtype == np.float32


def test_bfloat16_tensors_have_the_bytes_of_the_documented_format_and_are_read_as_float32():
    assert codec.encode_parts("hello", {"n": 7}, {"w": array(1, -2)}, dtype="bfloat16").joined() == GOLDEN_BFLOAT16
    decoded = codec.decode(GOLDEN_BFLOAT16, max_bytes=100).tensors["w"]
    assert (decoded.tolist(), decoded.dtype) == ([1.0, -2.0], np.float32)


def test_scaled_tensors_have_the_bytes_of_the_documented_format():
    halves, quarters = Scaled(np.array([1, -2], np.float16), 0.5), Scaled(np.array([[-1, 127, 0]], np.int8), 0.25)
    assert codec.encode("update", {}, {"w": quarters, "h": halves}) == GOLDEN_SCALED


def test_the_documented_bytes_of_scaled_tensors_are_read_back():
    decoded = codec.decode(GOLDEN_SCALED, max_bytes=100).tensors
    assert {name: (tensor.step, tensor.values.tolist()) for name, tensor in decoded.items()} == {
        "h": (0.5, [1.0, -2.0]),
        "w": (0.25, [[-1, 127, 0]]),
    }
    assert {name: array.tolist() for name, array in widened(decoded).items()} == {"h": [0.5, -1.0], "w": [[-0.25, 31.75, 0.0]]}


@pytest.mark.parametrize("dtype", [np.int8, np.float16])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_a_scaled_tensor_keeps_its_shape(dtype, shape):
    decoded = codec.decode(codec.encode("update", {}, {"w": Scaled(np.ones(shape, dtype), 2.0)}), max_bytes=1000).tensors["w"]
    assert (decoded.shape, decoded.values.dtype, widened({"w": decoded})["w"].tolist()) == (
        shape,
        dtype,
        np.full(shape, 2.0).tolist(),
    )


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tensor_keeps_its_shape(dtype, shape):
    body = codec.encode_parts("model", {}, {"w": np.full(shape, 0.5, np.float32)}, dtype=dtype).joined()
    decoded = codec.decode(body, max_bytes=1000).tensors["w"]
    assert isinstance(decoded, np.ndarray)
    assert (decoded.shape, decoded.tolist()) == (shape, np.full(shape, 0.5).tolist())


def test_a_bfloat16_model_is_rounded_to_even_and_not_cut_off():
    # 1 + 2^-8 and 1 + 2^-7 + 2^-8 are half way between two bfloat16 numbers
    values = array(1 + 2.0**-8, 1 + 2.0**-7 + 2.0**-8, -(1 + 2.0**-7 + 2.0**-8))
    body = codec.encode_parts("model", {}, {"w": values}, dtype="bfloat16").joined()
    assert codec.decode(body, max_bytes=1000).tensors["w"].tolist() == [1.0, 1.015625, -1.015625]


@given(fields, tensors)
def test_what_is_encoded_is_decoded_to_the_same_bits(some_fields, some_tensors):
    content = codec.decode(codec.encode("update", some_fields, some_tensors), max_bytes=MEBIBYTE)
    assert content.fields == some_fields
    assert {name: (each.shape, each.tobytes()) for name, each in content.tensors.items()} == {
        name: (each.shape, each.tobytes()) for name, each in some_tensors.items()
    }


@pytest.mark.parametrize("size", [0, 1, 63, 64, 16383, 16384])
def test_every_header_is_in_its_shortest_form(size):
    values = np.arange(size, dtype=np.float32)
    tensors_list = [[name, "float32", [size], "raw", None, values.tobytes()] for name in ("a", "b")]
    assert codec.encode("model", {"k": 1}, {"b": values, "a": values}) == packed(*tensors_list, kind="model", fields={"k": 1})


def test_large_arrays_are_not_copied_to_be_encoded():
    values = np.arange(1000, dtype=np.float32)
    parts = codec.encode_parts("model", {}, {"w": values})
    values[0] = 7
    assert codec.decode(parts.joined(), max_bytes=10_000).tensors["w"][0] == 7


ROW = (b"abc", memoryview(b"de"), b"", b"fghij")


@pytest.mark.parametrize(
    ("piece_bytes", "pieces"),
    [
        pytest.param(1, [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i", b"j"], id="byte by byte"),
        pytest.param(3, [b"abc", b"def", b"ghi", b"j"], id="over the borders of the buffers"),
        pytest.param(5, [b"abcde", b"fghij"], id="at a border"),
        pytest.param(9, [b"abcdefghi", b"j"], id="one byte more than a piece"),
        pytest.param(10, [b"abcdefghij"], id="exactly one piece"),
        pytest.param(11, [b"abcdefghij"], id="less than a piece"),
    ],
)
def test_a_row_of_buffers_is_cut_as_if_it_were_one(piece_bytes, pieces):
    assert list(codec.Encoded(ROW).cut(piece_bytes)) == pieces


def test_nothing_is_still_one_piece():
    assert list(codec.Encoded([b""]).cut(4)) == [b""]


def test_size_and_hash_are_those_of_the_whole():
    assert codec.Encoded(ROW).size == 10
    assert codec.Encoded(ROW).hash == hashlib.sha256(b"abcdefghij").hexdigest()


@given(st.lists(st.binary(max_size=12), max_size=6), st.integers(1, 9))
def test_pieces_are_full_but_for_the_last_and_make_the_whole(row, piece_bytes):
    *full, last = codec.Encoded(row).cut(piece_bytes)
    assert {len(piece) for piece in full} <= {piece_bytes}
    assert len(last) <= piece_bytes
    assert b"".join((*full, last)) == b"".join(row)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_content_of_several_tensors_is_cut_into_its_own_bytes(dtype):
    parts = codec.encode_parts("model", {"n": 1}, {"a": np.arange(70, dtype=np.float32), "b": array(1, 2)}, dtype=dtype)
    whole = parts.joined()
    assert (parts.size, parts.hash) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert list(parts.cut(100)) == [whole[start : start + 100] for start in range(0, len(whole), 100)]
    assert list(parts.cut(parts.size)) == [whole]
    assert list(parts.cut(parts.size - 1)) == [whole[:-1], whole[-1:]]


def test_the_order_of_a_dict_of_tensors_does_not_change_the_bytes():
    first, second = {"b": array(1), "a": array(2, 3)}, {"a": array(2, 3), "b": array(1)}
    assert codec.encode("model", {}, first) == codec.encode("model", {}, second)


def test_a_tensor_in_another_memory_order_gives_the_same_bytes():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert codec.encode("model", {}, {"w": np.asfortranarray(values)}) == codec.encode("model", {}, {"w": values})


def test_values_that_are_not_finite_are_decoded_for_admission_to_judge():
    decoded = codec.decode(codec.encode("update", {}, {"w": array(np.nan, -np.inf, 1)}), max_bytes=1000).tensors["w"]
    assert np.isnan(decoded[0])
    assert decoded[1:].tolist() == [-np.inf, 1.0]


def test_decoded_arrays_cannot_be_written_to():
    decoded = codec.decode(bytearray(GOLDEN), max_bytes=100).tensors["w"]
    with pytest.raises(ValueError, match="read-only"):
        decoded[0] = 3


def test_a_body_over_its_limit_is_refused_unread():
    with pytest.raises(MalformedMessageError, match="101 bytes are more than the 100 allowed"):
        codec.decode(bytes(101), max_bytes=100)


@pytest.mark.parametrize(
    "declared",
    [
        pytest.param("c6 80000000", id="2 GiB of bytes"),
        pytest.param("db 80000000", id="2 GiB of text"),
        pytest.param("dd 80000000", id="2 Gi elements"),
        pytest.param("df 80000000", id="2 Gi entries"),
        pytest.param("c9 80000000 05", id="2 GiB of an extension"),
    ],
)
@pytest.mark.parametrize("place", ["whole body", "fields", "tensors", "tensor data"])
def test_a_declared_length_that_is_not_there_is_refused(declared, place):
    before = {
        "whole body": "",
        "fields": "94 01 a1 75",
        "tensors": "94 01 a1 75 80",
        "tensor data": "94 01 a1 75 80 91 96 a1 77 a7 666c6f61743332 91 02 a3 726177 c0",
    }[place]
    with pytest.raises(RejectedMessageError):
        codec.decode(bytes.fromhex(before + declared), max_bytes=MEBIBYTE)


def test_fields_are_measured_before_they_are_built():
    a_million_maps = b"\x94\x01\xa1u\x81\xa1a\xdd" + MEBIBYTE.to_bytes(4, "big") + b"\x80" * MEBIBYTE + b"\x90"
    with pytest.raises(MalformedMessageError, match="more bytes of fields than the 65536"):
        codec.decode(a_million_maps, max_bytes=2 * MEBIBYTE, max_fields_bytes=65536)


def test_a_tensors_description_is_measured_before_it_is_built():
    with pytest.raises(MalformedMessageError, match="more bytes of fields than the 1024"):
        codec.decode(packed(a_tensor(shape=[1] * 2000)), max_bytes=MEBIBYTE)


@pytest.mark.parametrize("schema", [0, 2, True, 1.0, "1", None, [1]])
def test_another_schema_version_is_refused(schema):
    with pytest.raises(UnsupportedSchemaError):
        codec.decode(packed(schema=schema), max_bytes=1000)


def test_a_huge_schema_is_not_repeated_in_the_error():
    with pytest.raises(UnsupportedSchemaError) as caught:
        codec.decode(packed(schema="x" * 10_000), max_bytes=20_000)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param("w", id="not an array"),
        pytest.param(a_tensor()[:5], id="five parts"),
        pytest.param([*a_tensor(), 1], id="seven parts"),
        pytest.param(a_tensor(name=7), id="name of another type"),
        pytest.param(a_tensor(name="n" * 257), id="name too long"),
        pytest.param(a_tensor(dtype="float64"), id="unknown dtype"),
        pytest.param(a_tensor(dtype=["float32"]), id="dtype that cannot be hashed"),
        pytest.param(a_tensor(dtype="bfloat16"), id="bfloat16 with the bytes of float32"),
        pytest.param(a_tensor(dtype="bfloat16", data=bytes(3)), id="bfloat16 and a half"),
        pytest.param(a_tensor(encoding="gzip"), id="unknown encoding"),
        pytest.param(a_tensor(scale=1.0), id="a scale where none belongs"),
        pytest.param(a_tensor(encoding=["raw"]), id="encoding that cannot be hashed"),
        pytest.param(a_tensor(dtype="int8", scale=1.0), id="bytes without their encoding"),
        pytest.param(a_tensor(encoding="scaled", scale=1.0), id="float32 with a scale"),
        pytest.param(a_tensor(dtype="bfloat16", encoding="scaled", scale=1.0, data=bytes(4)), id="bfloat16 with a scale"),
        pytest.param(some_bytes(scale=None), id="bytes without a scale"),
        pytest.param(some_bytes(scale="1"), id="a scale that is text"),
        pytest.param(some_bytes(scale=True), id="a scale that is a boolean"),
        pytest.param(some_bytes(scale=math.nan), id="a scale that is no number"),
        pytest.param(some_bytes(scale=math.inf), id="an infinite scale"),
        pytest.param(some_bytes(scale=-1.0), id="a negative scale"),
        pytest.param(some_bytes(scale=0.0), id="a scale of 0"),
        pytest.param(some_bytes(scale=1e-60), id="a scale that is 0 in float32"),
        pytest.param(some_bytes(scale=1e39), id="a scale that is infinite in float32"),
        pytest.param(some_bytes(scale=2**64 - 1), id="a whole scale that float32 does not have"),
        pytest.param(some_bytes(scale=0.1), id="a scale that would have to be rounded"),
        pytest.param(some_bytes(shape=[3]), id="fewer bytes than numbers"),
        pytest.param(some_bytes(data=bytes(3)), id="more bytes than numbers"),
        pytest.param(some_bytes(shape=[2**39], data=bytes(2)), id="a shape of terabytes"),
        pytest.param(some_bytes(dtype="float16", data=bytes(3)), id="float16 and a half"),
        pytest.param(a_tensor(shape=[-2]), id="negative size"),
        pytest.param(a_tensor(shape=[2.0]), id="fractional size"),
        pytest.param(a_tensor(shape=[True, 2]), id="boolean size"),
        pytest.param(a_tensor(shape=[1] * 9), id="nine dimensions"),
        pytest.param(a_tensor(shape=[0, 2**40, 2**40], data=b""), id="no element but an impossible product"),
        pytest.param(a_tensor(shape=[3]), id="fewer bytes than the shape needs"),
        pytest.param(a_tensor(shape=[1]), id="more bytes than the shape needs"),
        pytest.param(a_tensor(data="12345678"), id="text for data"),
        pytest.param(a_tensor(data=[1, 2]), id="numbers for data"),
        pytest.param(a_tensor(data=None), id="no data"),
    ],
)
def test_a_malformed_tensor_is_refused(tensor):
    with pytest.raises(MalformedMessageError):
        codec.decode(packed(tensor), max_bytes=MEBIBYTE)


def test_a_whole_number_may_stand_where_a_scale_is_asked_for():
    assert codec.decode(packed(some_bytes(scale=2)), max_bytes=1000).tensors["w"].step == 2.0


def test_a_tensor_that_stands_twice_is_refused():
    with pytest.raises(MalformedMessageError, match="twice"):
        codec.decode(packed(a_tensor(), a_tensor()), max_bytes=1000)


@pytest.mark.parametrize(
    "fields", [b"\x82\xa1n\x07\xa1n\x08", b"\x81\xa1p\x82\xa1n\x07\xa1n\x07"], ids=["a field", "within a field"]
)
def test_a_map_in_which_a_name_stands_twice_is_refused_as_readers_differ_about_it(fields):
    with pytest.raises(MalformedMessageError, match="a name stands twice in a map"):
        codec.decode(b"\x94\x01\xa5hello" + fields + b"\x90", max_bytes=MEBIBYTE)


def test_more_tensors_than_allowed_are_refused():
    body = packed(*(a_tensor(name=str(number), shape=[0], data=b"") for number in range(4097)))
    with pytest.raises(MalformedMessageError, match="4097 tensors"):
        codec.decode(body, max_bytes=MEBIBYTE)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(GOLDEN + b"\x00", id="a byte too many"),
        pytest.param(GOLDEN[:-1], id="a byte too few"),
        pytest.param(packed(kind=5), id="kind of another type"),
        pytest.param(packed(fields=[1]), id="fields that are no map"),
        pytest.param(packed(fields={1: 2}), id="a key that is a number"),
        pytest.param(b"\x91" * 2000, id="deep nesting"),
        pytest.param(b"\x80\x04\x95\x00", id="a pickle"),
    ],
)
def test_what_is_no_body_is_refused(body):
    with pytest.raises(RejectedMessageError):
        codec.decode(body, max_bytes=MEBIBYTE)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_a_refusal(body):
    with pytest.raises(RejectedMessageError):
        codec.decode(body, max_bytes=1000)


@given(st.data())
def test_a_damaged_body_is_read_or_refused(data):
    body = bytearray(GOLDEN)
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    try:
        codec.decode(bytes(body), max_bytes=1000)
    except RejectedMessageError:
        return


simple = st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=3) | st.binary(max_size=8)
structures = st.recursive(
    simple, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)


@given(st.lists(st.lists(structures, min_size=6, max_size=6) | structures, max_size=3))
def test_any_structure_in_the_place_of_tensors_is_read_or_refused(tensors_list):
    try:
        codec.decode(packed(*tensors_list), max_bytes=MEBIBYTE)
    except RejectedMessageError:
        return
