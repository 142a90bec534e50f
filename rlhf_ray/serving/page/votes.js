/** A vote that can be taken back: it is sent a little later, or when the next prompt is. */

import { sendPreference } from "./api.js";
import { button, el, randomId } from "./dom.js";
import { notice } from "./problems.js";

const WINDOW_MS = 5000;

export class Vote {
  #item;
  #words;
  #until = Date.now() + WINDOW_MS;
  #timer;
  #left = el("span", { class: "soft", "aria-hidden": "true" });
  #undone;

  /** `state`: `pending`, `undone`, `sending`, `sent` or `failed`. */
  state = "pending";

  /** `item` is the body of the request; `undone` is called if it is taken back. */
  constructor(item, words, undone) {
    this.#item = { ...item, idempotency_key: randomId() };
    this.#words = words;
    this.#undone = undone;
    this.node = el("div", { class: "vote" });
    const said = el("p", {}, el("span", { text: `Your vote: ${words}. ` }), this.#left);
    const undo = button("Undo", () => this.undo(), { "aria-keyshortcuts": "U" });
    undo.append(el("kbd", { text: "U", "aria-hidden": "true" }));
    this.node.append(said, undo);
    this.#timer = setInterval(() => this.#tick(), 200);
    this.#tick();
  }

  undo() {
    if (this.state !== "pending") return;
    this.#end("undone");
    this.node.remove();
    this.#undone();
  }

  /** Sends it now, if it is still to be sent. */
  flush() {
    if (this.state === "pending") this.#send();
  }

  #tick() {
    const left = Math.ceil((this.#until - Date.now()) / 1000);
    if (left <= 0) this.flush();
    else this.#left.textContent = `Sent in ${left} s`;
  }

  #end(state) {
    this.state = state;
    clearInterval(this.#timer);
  }

  async #send() {
    this.#end("sending");
    const said = el("p", { text: `Your vote: ${this.#words}.` });
    this.node.replaceChildren(said);
    try {
      await sendPreference(this.#item);
      this.state = "sent";
      said.textContent = `Your vote: ${this.#words}. Saved.`;
    } catch (error) {
      this.state = "failed";
      said.textContent = `Your vote (${this.#words}) is not saved.`;
      this.node.append(notice(error, () => this.#send()));
    }
  }
}
