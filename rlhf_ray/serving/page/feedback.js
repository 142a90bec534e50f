/** What a person can say about one reply, each kind once: thumb, rating, correction, report. */

import { sendFeedback } from "./api.js";
import { button, el, randomId, svg } from "./dom.js";
import { notice } from "./problems.js";

const REASONS = { harmful: "Harmful", untrue: "Untrue", off_topic: "Off topic", other: "Something else" };
const LONGEST = 32000;
const LONGEST_COMMENT = 4000;
const SAID = { thumb: "Thumb saved.", rating: "Rating saved.", correction: "Correction saved.", flag: "Report saved." };

/** The row of controls under `reply` (`{ id, text }`). */
export function feedbackRow(reply) {
  return new FeedbackRow(reply).node;
}

class FeedbackRow {
  #reply;
  #keys = new Map();
  #sending = new Set();
  #said = el("p", { class: "soft small said", role: "status" });
  #forms = el("div");
  #troubles = el("div");
  #controls = { thumb: [], rating: [], correction: [], flag: [] };

  constructor(reply) {
    this.#reply = reply;
    const thumbs = el("span", { class: "set", role: "group", "aria-label": "Thumb" });
    thumbs.append(this.#thumb("up", "Thumbs up"), this.#thumb("down", "Thumbs down"));
    const ratings = el("span", { class: "set", role: "group", "aria-label": "Rating" });
    ratings.append(el("span", { class: "soft small", text: "Rating", "aria-hidden": "true" }));
    for (let rating = 1; rating <= 5; rating += 1) ratings.append(this.#rating(rating));
    const correct = this.#control("correction", null, "Correct it", () => this.#open("correction", () => this.#correcting()));
    const report = this.#control("flag", null, "Report", () => this.#open("flag", () => this.#reporting()));
    const row = el("div", { class: "judging", role: "group", "aria-label": "What you say about this reply" });
    row.append(thumbs, ratings, correct, report);
    this.node = el("div", { class: "feedback" }, row, this.#said, this.#forms, this.#troubles);
  }

  #thumb(value, label) {
    const made = this.#control("thumb", value, "", () => this.#give("thumb", value));
    made.setAttribute("aria-label", label);
    const hand = svg("svg", { viewBox: "0 0 24 24", class: `icon ${value}`, "aria-hidden": "true" });
    hand.append(svg("path", { d: "M3 11h4v9H3zM7 11l4-8c1.6 0 2.6 1 2.6 2.6V9H19c1.3 0 2.2 1 2 2.3l-1.2 7A2 2 0 0 1 17.8 20H7" }));
    made.append(hand);
    return made;
  }

  #rating(value) {
    const made = this.#control("rating", value, String(value), () => this.#give("rating", value));
    made.setAttribute("aria-label", `Rate ${value} of 5`);
    return made;
  }

  /** A button of a kind; it stays focusable after it has been used, but does nothing any more. */
  #control(kind, value, text, act) {
    const made = button(text, () => made.getAttribute("aria-disabled") !== "true" && act(), { class: "tiny", "data-kind": kind });
    if (value !== null) made.setAttribute("aria-pressed", "false");
    this.#controls[kind].push({ made, value });
    return made;
  }

  #lock(kind, locked) {
    for (const { made } of this.#controls[kind]) made.setAttribute("aria-disabled", String(locked));
  }

  /** Sends it. The same words sent again, after an answer got lost, are the same statement to the service. */
  async #give(kind, value, comment = null) {
    if (this.#sending.has(kind)) return;
    this.#sending.add(kind);
    this.#lock(kind, true);
    this.#troubles.replaceChildren();
    const words = JSON.stringify([kind, value, comment]);
    if (!this.#keys.has(words)) this.#keys.set(words, randomId());
    try {
      const item = { reply_id: this.#reply.id, kind, value, idempotency_key: this.#keys.get(words) };
      await sendFeedback(comment ? { ...item, comment } : item);
      this.#given(kind, value);
    } catch (error) {
      this.#lock(kind, false);
      this.#troubles.replaceChildren(notice(error, () => this.#give(kind, value, comment)));
    } finally {
      this.#sending.delete(kind);
    }
  }

  #given(kind, value) {
    for (const { made, value: own } of this.#controls[kind]) {
      const chosen = own === null || own === value;
      made.classList.toggle("given", chosen);
      if (own !== null) made.setAttribute("aria-pressed", String(chosen));
    }
    if (kind === "correction") {
      this.#controls.correction[0].made.textContent = "Corrected";
      const text = el("div", { class: "text", text: value });
      this.node.before(el("div", { class: "corrected" }, el("p", { class: "who", text: "Your correction" }), text));
    }
    if (kind === "flag") this.#controls.flag[0].made.textContent = `Reported: ${REASONS[value].toLowerCase()}`;
    if (kind === "correction" || kind === "flag") this.#close(kind);
    this.#said.textContent = SAID[kind];
  }

  #form(kind) {
    return this.#forms.querySelector(`[data-kind="${kind}"]`);
  }

  #open(kind, make) {
    if (this.#form(kind) === null) this.#forms.append(make());
    this.#form(kind).querySelector("textarea, select").focus();
  }

  #close(kind) {
    const form = this.#form(kind);
    const focused = form?.contains(document.activeElement);
    form?.remove();
    if (focused) this.#controls[kind][0].made.focus();
  }

  #made(kind, words, submit, ...fields) {
    const row = el("div", { class: "row" });
    row.append(button("Cancel", () => this.#close(kind)), el("button", { type: "submit", class: "main", text: words }));
    const sent = (event) => {
      event.preventDefault();
      submit();
    };
    return el("form", { class: "saying", "data-kind": kind, submit: sent }, ...fields, row);
  }

  #correcting() {
    const id = `correction-${randomId()}`;
    const problem = el("p", { class: "bad small", role: "alert" });
    const text = el("textarea", { id, rows: 5, maxlength: LONGEST });
    text.value = this.#reply.text;
    const before = text.value; // a text box has line ends of its own
    const label = el("label", { for: id, text: "What the reply should have been" });
    const submit = () => {
      const same = text.value === before;
      problem.textContent = same ? "Change the reply first." : text.value.trim() ? "" : "Write what it should have been.";
      if (problem.textContent) text.focus();
      else this.#give("correction", text.value);
    };
    return this.#made("correction", "Save correction", submit, label, text, problem);
  }

  #reporting() {
    const id = `report-${randomId()}`;
    const reason = el("select", { id });
    for (const [value, text] of Object.entries(REASONS)) reason.append(el("option", { value, text }));
    const comment = el("textarea", { id: `${id}-more`, rows: 2, maxlength: LONGEST_COMMENT });
    return this.#made(
      "flag",
      "Send report",
      () => this.#give("flag", reason.value, comment.value.trim() || null),
      el("label", { for: id, text: "What is wrong with it" }),
      reason,
      el("label", { for: comment.id, text: "More about it (optional)" }),
      comment,
    );
  }
}
