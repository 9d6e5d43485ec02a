import asyncio

from backends.worker.send_buffer import Close, SendBuffer


async def test_frames_leave_in_order_and_the_reason_last() -> None:
    outbox = SendBuffer()
    waiting = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    assert outbox.put([b"a", b"bc"]) and outbox.put([]) and outbox.put([b"d"])
    outbox.close("enough")
    assert [await waiting, *[await outbox.get() for _ in range(3)]] == [b"a", b"bc", b"d", Close("enough")]
    assert outbox.num_bytes == 0


async def test_it_is_bounded_in_bytes_beside_its_greeting() -> None:
    outbox = SendBuffer([b"hello", b"there"], max_bytes=10)
    assert all(outbox.put([b"z"]) for _ in range(10))
    assert not outbox.put([b"z"])
    assert [await outbox.get() for _ in range(3)] == [b"hello", b"there", b"z"]
    assert outbox.put([b"z", b"z"]) and outbox.num_bytes == 11
