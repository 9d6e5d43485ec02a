import asyncio

from backends.worker.send_buffer import Close, SendBuffer


async def test_frames_are_sent_in_order_with_the_reason_last() -> None:
    send_buffer = SendBuffer()
    waiting = asyncio.create_task(send_buffer.get())
    await asyncio.sleep(0)
    assert send_buffer.put([b"a", b"bc"]) and send_buffer.put([]) and send_buffer.put([b"d"])
    send_buffer.close("enough")
    assert [await waiting, *[await send_buffer.get() for _ in range(3)]] == [b"a", b"bc", b"d", Close("enough")]
    assert send_buffer.num_bytes == 0


async def test_send_buffer_is_bounded_in_bytes_besides_the_greeting() -> None:
    send_buffer = SendBuffer([b"hello", b"there"], max_bytes=10)
    assert all(send_buffer.put([b"z"]) for _ in range(10))
    assert not send_buffer.put([b"z"])
    assert [await send_buffer.get() for _ in range(3)] == [b"hello", b"there", b"z"]
    assert send_buffer.put([b"z", b"z"]) and send_buffer.num_bytes == 11
