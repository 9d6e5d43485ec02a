from gateway.random_ids import AT_A_TIME, BYTES, RandomIds


def test_no_id_comes_twice_and_the_system_is_asked_seldom() -> None:
    asked: list[int] = []

    def read(count: int) -> bytes:
        asked.append(count)
        return b"".join(len(asked).to_bytes(2, "big") + at.to_bytes(BYTES - 2, "big") for at in range(count // BYTES))

    ids = RandomIds(read)
    taken = [ids.take() for _ in range(2 * AT_A_TIME + 1)]
    assert len(set(taken)) == len(taken) and {len(id) for id in taken} == {2 * BYTES}
    assert asked == [BYTES * AT_A_TIME] * 3
