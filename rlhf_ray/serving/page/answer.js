/** One reply that streams into the page: its text, and what became of it. */

import { streamReply } from "./api.js";
import { el } from "./dom.js";
import { notice } from "./problems.js";

const CUT = "Cut off at the longest reply that is allowed.";

export class Answer {
  #text = el("div", { class: "text", "aria-live": "polite" });
  #note = el("p", { class: "soft small" });
  #below = el("div");

  /** `waiting`, `streaming`, `finished`, `stopped` or `failed`. */
  state = "waiting";
  reply = { id: null, text: "" };

  constructor(title) {
    this.node = el("article", { class: "reply", "aria-label": title }, el("p", { class: "who", text: title }));
    this.node.append(this.#text, this.#note, this.#below);
  }

  /** Streams it in; `troubled` gives the buttons of the notice if that fails. Never throws. */
  async stream(request, retry, ...more) {
    this.state = "streaming";
    this.reply = { id: null, text: "" };
    this.#show("");
    this.#note.textContent = "";
    this.#below.replaceChildren();
    this.node.classList.add("streaming");
    this.#text.setAttribute("aria-busy", "true");
    try {
      const { id, finish } = await streamReply(request.messages, { ...request, onText: (text) => this.#show(text) });
      this.reply.id = id;
      this.state = "finished";
      this.#note.textContent = finish === "length" ? CUT : this.reply.text === "" ? "The reply is empty." : "";
    } catch (error) {
      this.state = request.signal.aborted ? "stopped" : "failed";
      if (this.state === "stopped") this.#note.textContent = "Stopped.";
      else this.add(notice(error, retry, ...more));
    } finally {
      this.node.classList.remove("streaming");
      this.#text.removeAttribute("aria-busy");
    }
  }

  get text() {
    return this.reply.text;
  }

  /** Puts something under the text. */
  add(node) {
    this.#below.append(node);
  }

  /** Nothing can be done about it any more. */
  close(words) {
    this.#below.replaceChildren();
    this.#note.textContent = words;
  }

  #show(text) {
    this.reply.text += text;
    this.#text.textContent = this.reply.text;
  }
}
