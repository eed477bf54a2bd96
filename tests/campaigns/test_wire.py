"""The stranger's reading agrees with the page's worked example, and with numbers worked out by hand."""

import msgpack
import numpy as np
import pytest

from campaigns.wire import Stored, read_body, read_tensors, sha256, whole_contents, write_blob

RUN = "0123456789abcdef"
MODEL = {"weight": np.array([[1, -2]], np.float32), "bias": np.array([0.5], np.float32)}


def test_the_page_s_model_has_the_page_s_name():
    assert sha256(write_blob("model", RUN, MODEL)) == "bff805c373730d28f7a0150a54dfe22f5e84613928014275032f8086a59a5148"


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_the_even_one():
    # 1 + 2^-8 lies between 1 and 1 + 2^-7, 1 + 3 x 2^-8 between 1 + 2^-7 and 1 + 2^-6: the even last bits are 1 and 1 + 2^-6
    numbers = np.array([1, 1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8, -0.75, 0], np.float32)
    body = read_body(write_blob("model", RUN, {"w": numbers}, "bfloat16"))
    assert read_tensors(body)["w"].tolist() == [1, 1, 1 + 2**-7, 1 + 2**-6, -0.75, 0]
    assert len(body.tensors[0][5]) == 12


def test_scaled_numbers_are_rounded_to_float32_and_no_further():
    # 3 x 13421773 x 2^-27 has 26 bits, of which float32 keeps 24; in float16 1.5 stands in the bytes 00 3e
    tensors = [
        ["b", "int8", [2, 1], "scaled", 13421773 * 2.0**-27, b"\x03\xfd"],
        ["h", "float16", [1], "scaled", 4.0, b"\x00\x3e"],
    ]
    found = read_tensors(read_body(msgpack.packb([1, "update", {}, tensors])))
    assert found["b"].tolist() == [[40265320 * 2.0**-27], [-40265320 * 2.0**-27]]
    assert found["h"].tolist() == [6.0]


@pytest.mark.parametrize(("dtype", "encoding"), [("int8", "raw"), ("float32", "scaled"), ("float64", "raw")])
def test_what_the_page_does_not_know_is_no_number(dtype, encoding):
    body = read_body(msgpack.packb([1, "update", {}, [["w", dtype, [1], encoding, 1.0, bytes(8)]]]))
    with pytest.raises(ValueError, match="the page knows no"):
        read_tensors(body)


def chunk(index: int, body: bytes, of: bytes = b"abcdef") -> Stored:
    return Stored("update", {"id": "x/1/1", "chunk": index, "chunks": 3, "sha256": sha256(of)}, body)


def test_a_content_is_whole_whatever_else_lies_between_its_chunks():
    stored = [
        chunk(2, b"ef"),
        chunk(0, b"zz"),
        chunk(0, b"ab"),
        chunk(0, b"ab"),
        chunk(1, b"xx"),
        chunk(1, b"cd"),
        chunk(1, b"cd"),
    ]
    assert list(whole_contents(stored)) == [("x/1/1", sha256(b"abcdef"), b"abcdef")]


def test_a_content_without_all_its_chunks_or_with_wrong_ones_is_none():
    assert list(whole_contents([chunk(0, b"ab"), chunk(1, b"cd")])) == []
    assert list(whole_contents([chunk(0, b"ab"), chunk(1, b"cd"), chunk(2, b"eg")])) == []
