/** What went wrong, in words, where it went wrong, and what can be done about it. */

import { button, el } from "./dom.js";
import { askForKey } from "./key.js";

/** A notice about `error`. `retry` does again what failed; `more` are further buttons. */
export function notice(error, retry, ...more) {
  const { words, key, again = true, wait = null } = explained(error);
  const node = el("div", { class: "notice", role: "alert" }, el("p", { text: words }));
  const actions = el("div", { class: "row" });
  if (key) actions.append(button(key, () => withNewKey(retry)));
  else if (again) actions.append(wait === null ? button("Try again", retry) : patient(retry, wait));
  actions.append(...more);
  if (actions.childElementCount) node.append(actions);
  return node;
}

async function withNewKey(retry) {
  if ((await askForKey("Enter a key that allows this.")) !== null) retry();
}

/** A button that counts down to the moment from which trying again makes sense. */
function patient(retry, seconds) {
  const until = Date.now() + 1000 * seconds;
  const made = button("Try again", retry, { disabled: true });
  const count = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    made.disabled = left > 0;
    made.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0) clearInterval(timer);
  };
  const timer = setInterval(count, 250);
  count();
  return made;
}

function explained(error) {
  const said = sentence(error.message);
  if (error.broken) return { words: `This reply is incomplete: ${error.message}. What came of it is kept.` };
  switch (error.status) {
    case 0:
      return { words: "The service cannot be reached. Check that it is running and that you are online, then try again." };
    case 401:
      return { words: "Without a key the service does not answer.", key: "Enter a key" };
    case 403:
      return { words: `The service does not allow this: ${said}`, key: "Use another key" };
    case 404:
      return gone(error, said);
    case 400:
    case 413:
      return refused(error, said);
    case 429:
      return { words: `Too much at once: ${error.message}. ${when(error)}`, wait: error.retryAfter };
    default:
      return { words: `The service cannot do this now. It says: “${error.message}”. ${when(error)}`, wait: error.retryAfter };
  }
}

function gone(error, said) {
  if (error.param === "reply_id" || error.param === "reply_ids") {
    const words = "The service does not have this reply any more, so nothing can be said about it. Ask again for a new one.";
    return { words, again: false };
  }
  return { words: said };
}

function refused(error, said) {
  if (error.param === "max_tokens") return { words: `${said} Change it in the settings, then try again.` };
  if (error.param === "reply_ids") return { words: said, again: false };
  return { words: `${said} Shorten the message or start a new conversation.` };
}

function when({ retryAfter }) {
  if (!Number.isFinite(retryAfter)) return "Try again in a minute.";
  const seconds = Math.max(1, Math.ceil(retryAfter));
  return `Try again in ${seconds} second${seconds === 1 ? "" : "s"}.`;
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
