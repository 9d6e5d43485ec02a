"""Frames hold messages in order, as many as fit."""

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from backends import wire

SIZES = st.lists(st.integers(0, 3 * wire.MAX_PACKED_BYTES // 2), max_size=8)


@given(SIZES)
def test_messages_come_out_as_they_went_in_and_share_frames_while_they_are_small(sizes: list[int]) -> None:
    messages = [wire.Asset(str(number), bytes(size), last=True) for number, size in enumerate(sizes)]
    frames = list(wire.frames(messages))
    decoded = [wire.decode_up(frame) for frame in frames]
    assert [message for frame in decoded for message in frame] == messages
    assert all(len(frame) <= wire.MAX_PACKED_BYTES + 100 for frame, held in zip(frames, decoded, strict=True) if len(held) > 1)
    for before, after in pairwise(decoded):  # none could have taken the first of the next one
        size = sum(len(msgspec.msgpack.encode(message)) for message in (*before, after[0]))
        assert size > wire.MAX_PACKED_BYTES


def test_the_smallest_messages_are_no_more_than_a_head_can_count() -> None:
    messages = [wire.Abort(1)] * 70_000
    frames = list(wire.frames(messages))
    assert len(frames) > 1
    assert [message for frame in frames for message in wire.decode_down(frame)] == messages


def test_a_single_message_is_a_frame_too() -> None:
    assert wire.decode_down(wire.encode(wire.Abort(1))) == [wire.Abort(1)]
