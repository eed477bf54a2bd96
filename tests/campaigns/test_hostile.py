"""What the campaign puts into a queue is wrong in the way it says, and in no other."""

import random

import pytest

from campaigns.hostile import corrupted, reordered, repeated, truncated
from shared.chunks import split

CONTENT = bytes(range(200)) * 3
CHUNKS = list(split(CONTENT, kind="update", run_id="ab" * 8, identity="bank-a/1/1", chunk_bytes=256))
SEEDS = range(20)


def whole(chunks) -> bytes:
    return b"".join(chunk.body for chunk in chunks)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_corrupt_upload_differs_by_one_bit_and_keeps_its_headers(seed):
    wrong = corrupted(CHUNKS, random.Random(seed))
    differing = [a ^ b for a, b in zip(whole(wrong), CONTENT, strict=True) if a != b]
    assert [bin(each).count("1") for each in differing] == [1]
    assert [chunk.headers for chunk in wrong] == [chunk.headers for chunk in CHUNKS]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_truncated_upload_is_a_true_beginning(seed):
    wrong = whole(truncated(CHUNKS, random.Random(seed)))
    assert 0 < len(wrong) < len(CONTENT)
    assert CONTENT.startswith(wrong)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reordered_upload_has_all_chunks_in_another_order(seed):
    wrong = [chunk.message_id for chunk in reordered(CHUNKS, random.Random(seed))]
    right = [chunk.message_id for chunk in CHUNKS]
    assert wrong != right
    assert sorted(wrong) == sorted(right)


def test_a_repeated_upload_is_the_same():
    assert repeated(CHUNKS, random.Random(0)) == CHUNKS
