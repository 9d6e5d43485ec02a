"""Names in one piece of memory are those of a list."""

import random

import pytest

from backends.wire import PAGE_HASH_BYTES, page_hashes
from gateway.text.page_hashes import PageHashes


def test_page_hashes_index_and_iterate_as_a_list() -> None:
    rng = random.Random(0)
    listed = [rng.randbytes(PAGE_HASH_BYTES) for _ in range(9)]
    page_hashes = PageHashes(b"".join(listed))
    assert list(page_hashes) == listed and len(page_hashes) == 9 and listed[3] in page_hashes
    for at in range(-9, 9):
        assert page_hashes[at] == listed[at]
    for _ in range(200):
        cut = slice(*(rng.choice((None, *range(-12, 12))) for _ in range(2)), rng.choice((None, 1, 2, -1)))
        assert list(page_hashes[cut]) == listed[cut]
    for outside in (9, -10):
        with pytest.raises(IndexError):
            page_hashes[outside]
    assert not PageHashes() and list(PageHashes()[1:]) == []


@pytest.mark.parametrize("shared_tokens", [0, 7, 40, 1000])
def test_hashing_continues_from_the_known_part_of_the_previous_prompt(shared_tokens: int) -> None:
    rng = random.Random(1)
    before, after = rng.randbytes(4 * 83), rng.randbytes(4 * 50)

    def named(prompt: bytes) -> list[bytes]:
        return page_hashes(prompt, page_size=4, fingerprint="f", cache_salt="s", shared_tokens=shared_tokens)

    known = PageHashes(b"".join(named(before)))
    for num_known in range(len(known) + 1):
        prompt = before[: 16 * num_known] + after
        names = PageHashes.of(
            prompt,
            page_size=4,
            fingerprint="f",
            cache_salt="s",
            shared_tokens=shared_tokens,
            before=known,
            num_known=num_known,
        )
        assert list(names) == named(prompt)
    assert list(known) == named(before)
