from gateway.pipeline.ids import AT_A_TIME, BYTES, RandomIds


def test_ids_are_unique_and_system_randomness_is_read_in_blocks() -> None:
    asked: list[int] = []

    def read(count: int) -> bytes:
        asked.append(count)
        return b"".join(len(asked).to_bytes(2, "big") + at.to_bytes(BYTES - 2, "big") for at in range(count // BYTES))

    ids = RandomIds(read, lambda: 1_700_000_000.9)
    taken = [ids.take() for _ in range(2 * AT_A_TIME + 1)]
    assert len(set(taken)) == len(taken) and {len(id) for id in taken} == {24}
    assert asked == [BYTES * AT_A_TIME] * 3


def test_ids_sort_by_the_second_in_which_they_were_made() -> None:
    now = 1_700_000_000.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    ids = RandomIds(lambda count: bytes(reversed(range(256))) * (count // 256), clock)
    taken = [ids.take() for _ in range(200)]
    assert taken == sorted(taken)
