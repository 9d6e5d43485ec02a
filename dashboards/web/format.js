// Numbers as people read them: one unit a column, so that digits line up.

const integer = new Intl.NumberFormat("en-US");

export const count = (value) => integer.format(value);

// Factor, unit, digits, and the least figure that it is used for.
const UNITS = [
  [1, "$", 2, 0.1],
  [1e3, "m$", 2, 1],
  [1e6, "µ$", 2, 0.1],
  [1e9, "n$", 1, 0],
];

// A unit for all of `values`, so that figures side by side compare: {unit, number(value), text(value)}.
export function dollars(values) {
  const sizes = values.map(Math.abs).filter((value) => value > 0);
  const largest = Math.max(0, ...sizes);
  const [factor, unit, least_digits] =
    largest === 0 ? UNITS[0] : UNITS.find(([scale, , , least]) => largest * scale >= least);
  const digits = least_digits + (unit !== "$" && Math.min(...sizes) * factor < 1 ? 1 : 0);
  const number = new Intl.NumberFormat("en-US", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
  return {
    unit,
    factor,
    number: (value) => number.format(value * factor),
    text: (value) =>
      unit === "$" ? `$${number.format(value)}` : `${number.format(value * factor)} ${unit}`,
  };
}

export const money = (value) => dollars([value]).text(value);

// What the small units are, where they are used.
export function unitNote(...units) {
  const said = {
    m$: "1 m$ is a thousandth of a dollar",
    µ$: "1 µ$ is a millionth of a dollar",
    n$: "1 n$ is a billionth of a dollar",
  };
  const used = [...new Set(units.map(({ unit }) => said[unit]).filter(Boolean))];
  return used.length ? `${used.join(", ")}.` : "";
}

export function percent(part, whole, digits = 0) {
  return whole ? `${((100 * part) / whole).toFixed(digits)} %` : "–";
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.0995) return `${(1000 * value).toFixed(1)} ms`;
  if (value < 0.9995) return `${(1000 * value).toFixed(0)} ms`;
  if (value < 99.5) return `${value.toFixed(value < 9.95 ? 2 : 1)} s`;
  if (value < 5970) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

export const ms = (value) =>
  value === null || value === undefined ? "–" : count(Math.round(1000 * value * 10) / 10);

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false,
});
const day = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "2-digit",
  hour: "2-digit",
  minute: "2-digit",
  hour12: false,
});

// Today: the time of day. Else the date as well.
export function moment(at) {
  const date = new Date(1000 * at);
  return date.toDateString() === new Date().toDateString() ? clock.format(date) : day.format(date);
}

export const words = (reason) => reason.replaceAll("_", " ");
