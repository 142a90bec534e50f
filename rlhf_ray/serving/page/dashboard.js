/** The figures of what people said. */

import { summary } from "./api.js";
import { dayChart } from "./days.js";
import { el, find } from "./dom.js";
import { notice } from "./problems.js";

const FLAGS = { harmful: "harmful", untrue: "untrue", off_topic: "off topic", other: "something else" };
const figures = find("#figures");
const refresh = find("#refresh");

export function startDashboard() {
  refresh.addEventListener("click", loadDashboard);
}

export async function loadDashboard() {
  if (refresh.disabled) return;
  refresh.disabled = true;
  if (figures.childElementCount === 0) figures.replaceChildren(el("p", { class: "soft", text: "Loading…" }));
  try {
    draw(await summary());
    find("#updated").textContent = `As of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    figures.replaceChildren(notice(error, loadDashboard));
  } finally {
    refresh.disabled = false;
  }
}

function draw(body) {
  const { counts } = body;
  const ratings = Object.values(counts.rating).reduce(sum, 0);
  const preferences = Object.values(counts.preference).reduce(sum, 0);
  const flags = Object.values(counts.flag).reduce(sum, 0);
  const all = counts.thumb.up + counts.thumb.down + ratings + preferences + flags + counts.correction + counts.ranking;
  if (all === 0) {
    const words = "Nobody has said anything yet. Judge a reply in the chat, or compare two in the arena; then there are figures here.";
    figures.replaceChildren(el("p", { class: "empty", text: words }));
    return;
  }
  const tiles = el("ul", { class: "tiles", "aria-label": "Counts" });
  const { up, down } = counts.thumb;
  tiles.append(
    tile("Thumbs", up + down, up + down ? `${up} up, ${down} down: ${percent(up / (up + down))} up` : "none yet"),
    tile("Ratings", ratings, ratings ? `mean ${mean(counts.rating, ratings).toFixed(1)} of 5` : "none yet"),
    tile("Comparisons", preferences, preferences ? ties(counts.preference) : "none yet"),
    tile("Rankings", counts.ranking, "orders of several replies"),
    tile("Corrections", counts.correction, "replies that people rewrote"),
    tile("Reports", flags, flags ? named(counts.flag) : "none"),
    tile("Annotators", body.annotators, "different people"),
    agreement(body.agreement),
  );
  figures.replaceChildren(
    tiles,
    card("Canary against stable", canary(body.canary_vs_stable)),
    card("By day", dayChart(body.by_day, figures.clientWidth - 40)),
    card("By policy", policies(body.policies)),
  );
}

function tile(label, value, note) {
  const words = [el("span", { text: label }), el("b", { text: String(value) }), el("small", { text: note })];
  return el("li", { class: "tile" }, ...words);
}

function card(title, ...children) {
  return el("section", { class: "card" }, el("h2", { text: title }), ...children);
}

function agreement({ alpha, items }) {
  const over = `${items} judged by several`;
  if (alpha === null) return tile("Agreement", "none yet", `not enough judgements (${over})`);
  const words = alpha >= 0.8 ? "good" : alpha >= 0.667 ? "fair" : alpha > 0 ? "weak" : "no better than chance";
  return tile("Agreement", alpha.toFixed(2), `${words} (Krippendorff's alpha, ${over})`);
}

/** The share of comparisons that the canary won, with its interval, on a line from 0 to 100 %. */
function canary(found) {
  if (found === null) {
    const none = "No comparison of a canary with the stable policy yet. They come from the arena, while there is a canary.";
    return el("p", { class: "soft", text: none });
  }
  const { wins, comparisons, rate, ci95: [low, high] } = found;
  const [verdict, tone] =
    low > 0.5 ? ["The canary is better", "good"] : high < 0.5 ? ["The canary is worse", "bad"] : ["Not decided yet", "open"];
  const won = `The canary won ${Number(wins.toFixed(2))} of ${comparisons} comparisons (a tie is half a win)`;
  const words = `${won}: ${percent(rate)}, 95% interval ${percent(low)} to ${percent(high)}.`;
  const strip = el("div", { class: "strip", "aria-hidden": "true" });
  for (const part of ["ends", "base", "dot"]) strip.append(el("i", { class: part }));
  for (const [name, value] of Object.entries({ low, high, rate })) strip.style.setProperty(`--${name}`, `${100 * value}%`);
  const scale = el("p", { class: "scale soft small", "aria-hidden": "true" });
  for (const text of ["always stable", "50%", "always canary"]) scale.append(el("span", { text }));
  const said = el("p", {}, el("span", { class: `verdict ${tone}`, text: verdict }));
  return el("div", {}, said, el("p", { text: words }), strip, scale);
}

function policies(rows) {
  if (rows.length === 0) return el("p", { class: "soft", text: "No policy has been judged yet." });
  const head = el("tr");
  for (const text of ["Policy", "Thumbs up", "Thumbs down", "Mean rating", "Replies judged"]) head.append(el("th", { scope: "col", text }));
  const body = el("tbody");
  for (const row of rows) {
    const line = el("tr", {}, el("th", { scope: "row", text: row.version }));
    const rating = row.mean_rating === null ? "none" : row.mean_rating.toFixed(1);
    for (const value of [row.thumbs_up, row.thumbs_down, rating, row.replies_rated]) line.append(el("td", { text: String(value) }));
    body.append(line);
  }
  const table = el("table", { class: "numbers" }, el("thead", {}, head), body);
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "By policy" }, table);
}

function ties({ tie, both_bad: bad }) {
  return `${tie} ${tie === 1 ? "tie" : "ties"}, ${bad} both bad`;
}

function named(flags) {
  const parts = Object.entries(flags).filter(([, count]) => count > 0);
  return parts.map(([reason, count]) => `${count} ${FLAGS[reason] ?? reason}`).join(", ");
}

function mean(ratings, count) {
  return Object.entries(ratings).reduce((total, [rating, times]) => total + Number(rating) * times, 0) / count;
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}

function sum(left, right) {
  return left + right;
}
