// The timeline of a run: bars of waiting, prefill and decode for each turn, and the pauses between.

import { h } from "../dom.js";

const LONGEST_PAUSE = 0.12;

// Where every bar begins and how wide it is, in percent. A pause counts for little unless it is
// drawn to scale: agents wait a hundred times longer for tools than for tokens.
export function layout(turns, { toScale }) {
  const ends = turns.map((turn) => turn.at + turn.total_s);
  let latest = turns[0].at;
  const pauses = turns.map((turn, index) => {
    const pause = Math.max(0, turn.at - latest);
    latest = Math.max(latest, ends[index]);
    return pause;
  });
  const busy = ends.reduce((sum, end, index) => sum + end - turns[index].at, 0) || 1;
  const drawn = pauses.map((pause) =>
    toScale
      ? pause
      : Math.min(pause, (LONGEST_PAUSE * busy) / Math.max(1, Math.sqrt(turns.length))),
  );
  let removed = 0;
  const moved = turns.map((turn, index) => {
    removed += pauses[index] - drawn[index];
    return turn.at - removed;
  });
  const start = moved[0];
  const whole = Math.max(...moved.map((at, index) => at + turns[index].total_s)) - start || 1;
  const percentOf = (duration_s) => (100 * duration_s) / whole;
  return turns.map((turn, index) => {
    const at = percentOf(moved[index] - start);
    const queue = Math.min(turn.queue_s, turn.total_s);
    const first = Math.min(Math.max(turn.ttft_s, queue), turn.total_s);
    return {
      pause_s: pauses[index],
      pause: ["pause", percentOf(moved[index] - start - drawn[index]), percentOf(drawn[index])],
      bars: [
        ["queue", at, percentOf(queue)],
        ["prefill", at + percentOf(queue), percentOf(first - queue)],
        ["decode", at + percentOf(first), percentOf(turn.total_s - first)],
      ],
    };
  });
}

// Pieces of one row of the timeline; a label stands behind the last one, or before it where there
// is no room.
export function bar(pieces, label) {
  const shown = pieces
    .filter(([, , width]) => width > 0)
    .map(([kind, left, width]) => {
      const piece = h("span", { class: `w-${kind}` });
      piece.style.left = `${left}%`;
      piece.style.width = `max(${width}%, 2px)`;
      return piece;
    });
  if (label) {
    const [, left, width] = pieces.at(-1);
    const text = h("span", { class: "label" }, label);
    if (left + width > 75) text.style.right = `calc(${100 - left}% + 0.4rem)`;
    else text.style.left = `calc(max(${left + width}%, ${left}% + 2px) + 0.4rem)`;
    shown.push(text);
  }
  return h("div", { class: "track", "aria-hidden": label ? undefined : "true" }, shown);
}
