"""Frames hold messages in order, as many as fit."""

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from backends import wire

SIZES = st.lists(st.integers(0, 3 * wire.MAX_PACKED_BYTES // 2), max_size=8)


@given(SIZES)
def test_messages_round_trip_and_small_ones_share_frames(sizes: list[int]) -> None:
    messages = [wire.Asset(str(number), bytes(size), last=True) for number, size in enumerate(sizes)]
    frames = list(wire.frames(messages))
    decoded = [wire.decode_up(frame) for frame in frames]
    assert [message for frame in decoded for message in frame] == messages
    assert all(len(frame) <= wire.MAX_PACKED_BYTES + 100 for frame, held in zip(frames, decoded, strict=True) if len(held) > 1)
    for before, after in pairwise(decoded):  # none could have taken the first of the next one
        size = sum(len(msgspec.msgpack.encode(message)) for message in (*before, after[0]))
        assert size > wire.MAX_PACKED_BYTES


def test_number_of_messages_fits_the_frame_head() -> None:
    messages = [wire.Abort(1)] * 70_000
    frames = list(wire.frames(messages))
    assert len(frames) > 1
    assert [message for frame in frames for message in wire.decode_down(frame)] == messages


def test_a_single_message_is_a_frame_too() -> None:
    assert wire.decode_down(wire.encode(wire.Abort(1))) == [wire.Abort(1)]
