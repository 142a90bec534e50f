/** A chart of what was said each day: thumbs and comparisons, stacked. */

import { el, svg } from "./dom.js";

const SERIES = [
  { name: "up", label: "Thumbs up" },
  { name: "down", label: "Thumbs down" },
  { name: "preferences", label: "Comparisons" },
];
const MOST_DAYS = 30;
const DAY_MS = 86_400_000;
const HEIGHT = 180;
const EDGE = { left: 34, right: 4, top: 10, bottom: 24 };

/** `room` is the width that it will have: letters keep their size then. */
export function dayChart(rows, room) {
  if (rows.length === 0) return el("p", { class: "soft", text: "No thumbs and no comparisons yet." });
  const days = withoutGaps(rows);
  const legend = el("ul", { class: "legend" });
  for (const { name, label } of SERIES) legend.append(el("li", { class: `of-${name}`, text: label }));
  const note = days[0].day > rows[0].day ? `The last ${MOST_DAYS} days` : "";
  return el("div", {}, legend, drawing(days, Math.max(room, 240)), el("p", { class: "soft small", text: note }), asTable(days));
}

/** Days on which nothing was said are days too. */
function withoutGaps(rows) {
  const byDay = new Map(rows.map((row) => [row.day, row]));
  const last = Date.parse(rows.at(-1).day);
  const first = Math.max(Date.parse(rows[0].day), last - (MOST_DAYS - 1) * DAY_MS);
  const days = [];
  for (let time = first; time <= last; time += DAY_MS) {
    const day = new Date(time).toISOString().slice(0, 10);
    days.push(byDay.get(day) ?? { day, up: 0, down: 0, preferences: 0 });
  }
  return days;
}

function drawing(days, width) {
  const most = nice(Math.max(...days.map(total)));
  const inner = HEIGHT - EDGE.top - EDGE.bottom;
  const step = (width - EDGE.left - EDGE.right) / days.length;
  const y = (value) => EDGE.top + inner * (1 - value / most);
  const made = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "days", role: "img", "aria-label": spoken(days) });
  for (const value of [0, most / 2, most]) {
    made.append(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }));
    made.append(svg("text", { x: EDGE.left - 6, y: y(value) + 4, class: "at-end", text: String(value) }));
  }
  const thick = Math.min(step * 0.7, 36);
  const labelled = Math.ceil(days.length / Math.min(12, Math.floor(width / 70)));
  days.forEach((day, index) => {
    const middle = EDGE.left + step * (index + 0.5);
    let below = 0;
    for (const { name, label } of SERIES) {
      if (day[name] === 0) continue;
      const top = y(below + day[name]);
      const bar = { class: `bar-${name}`, x: middle - thick / 2, width: thick, y: top, height: y(below) - top };
      made.append(svg("rect", bar, svg("title", { text: `${day.day}: ${day[name]} ${label.toLowerCase()}` })));
      below += day[name];
    }
    if (index % labelled === 0) made.append(svg("text", { x: middle, y: HEIGHT - 6, class: "at-middle", text: short(day.day) }));
  });
  return made;
}

/** The same figures for those who do not see the chart, or want the numbers. */
function asTable(days) {
  const head = el("tr", {}, el("th", { scope: "col", text: "Day" }));
  for (const { label } of SERIES) head.append(el("th", { scope: "col", text: label }));
  const body = el("tbody");
  for (const day of [...days].reverse().filter(total)) {
    const row = el("tr", {}, el("th", { scope: "row", text: day.day }));
    for (const { name } of SERIES) row.append(el("td", { text: String(day[name]) }));
    body.append(row);
  }
  const table = el("table", { class: "numbers" }, el("thead", {}, head), body);
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "By day" }, table);
  return el("details", { class: "plain" }, el("summary", { text: "As a table" }), scroll);
}

function spoken(days) {
  const all = days.reduce((count, day) => count + total(day), 0);
  return `Thumbs and comparisons by day, ${days[0].day} to ${days.at(-1).day}: ${all} in all. The table below has the figures.`;
}

function total({ up, down, preferences }) {
  return up + down + preferences;
}

/** The next even number of which half is round. */
function nice(most) {
  const size = 10 ** Math.floor(Math.log10(Math.max(most, 2)));
  return [2, 4, 6, 8, 10].map((times) => times * size).find((value) => value >= most);
}

function short(day) {
  return new Date(`${day}T00:00:00Z`).toLocaleDateString("en", { day: "numeric", month: "short", timeZone: "UTC" });
}
