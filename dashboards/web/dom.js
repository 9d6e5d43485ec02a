// Elements in one expression: h("td", {class: "num"}, text). Text is always text, never markup.

export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

// A table that scrolls on its own where it is too wide, and can be scrolled by keyboard.
// `columns`: {title, cell(row), num, sort(row), optional, unit}; `sorted`: {index, down}.
export function table(caption, columns, rows, { empty, sorted, onSort, after, total } = {}) {
  if (!rows.length) return h("p", { class: "empty" }, empty || "Nothing yet.");
  const head = columns.map((column, index) =>
    h(
      "th",
      {
        scope: "col",
        class: classes(column),
        "aria-sort":
          sorted?.index === index ? (sorted.down ? "descending" : "ascending") : undefined,
      },
      column.sort && onSort
        ? h("button", { type: "button", class: "sort", onclick: () => onSort(index) }, column.title)
        : column.title,
    ),
  );
  const body = rows.flatMap((row) => [
    h(
      "tr",
      {},
      columns.map((column, index) =>
        h(
          index || !column.head ? "td" : "th",
          { class: classes(column), scope: index || !column.head ? undefined : "row" },
          column.cell(row),
        ),
      ),
    ),
    ...(after ? after(row) : []),
  ]);
  return h(
    "div",
    { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    h(
      "table",
      {},
      h("caption", { class: "visually-hidden" }, caption),
      h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, body),
      total
        ? h(
            "tfoot",
            {},
            h(
              "tr",
              {},
              columns.map((column) => h("td", { class: classes(column) }, total(column) ?? "")),
            ),
          )
        : null,
    ),
  );
}

function classes(column) {
  return (
    [column.num && "num", column.optional && "optional", column.wide && "stretch"]
      .filter(Boolean)
      .join(" ") || undefined
  );
}

export function sortRows(rows, column, down) {
  const sign = down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [x, y] = [column.sort(a), column.sort(b)];
    return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
  });
}

// Figures on top of a view: [label, value, note].
export function figures(...items) {
  return h(
    "dl",
    { class: "figures" },
    items
      .filter(Boolean)
      .map(([label, value, note, tone]) =>
        h(
          "div",
          { class: tone ? `tone-${tone}` : undefined },
          h("dt", {}, label),
          h("dd", {}, value, note ? h("span", { class: "note" }, note) : null),
        ),
      ),
  );
}

// What routing saved, or that it saved nothing.
export function routed(usd, large, unit, percent) {
  return large >= usd
    ? ["Saved by routing", unit.text(large - usd), `${percent(large - usd, large)} of all on large`]
    : ["Saved by routing", "nothing", `${unit.text(usd - large)} more than all on large`];
}

// A number with a bar of its size beside it, so that the largest of a column is seen at once.
export function weighed(text, value, largest) {
  const bar = h("span", { class: "weight" });
  bar.style.width = `${largest > 0 ? Math.max(0, (100 * value) / largest) : 0}%`;
  return h(
    "span",
    { class: "weighed" },
    h("span", { class: "weights", "aria-hidden": "true" }, bar),
    h("span", {}, text),
  );
}

export const runLink = (tenant, run, request) =>
  `#/run/${[tenant, run, request].filter(Boolean).map(encodeURIComponent).join("/")}`;

export function section(title, ...children) {
  return h("section", { "aria-label": title }, h("h2", {}, title), ...children);
}

// One choice out of a few, as radio buttons that look like one control.
export function choice(label, name, options, chosen, onchange) {
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", { class: "visually-hidden" }, label),
    options.map(([value, text]) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name,
          value,
          checked: value === chosen,
          onchange: () => onchange(value),
        }),
        h("span", {}, text),
      ),
    ),
  );
}

export function tag(text, tone) {
  return h("span", { class: tone ? `tag tone-${tone}` : "tag" }, text);
}
