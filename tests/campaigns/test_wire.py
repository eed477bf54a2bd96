"""The stranger's reading agrees with the page's worked example, and with numbers worked out by hand."""

import numpy as np

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
