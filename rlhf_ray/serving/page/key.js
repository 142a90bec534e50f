/** The API key: asked for once, kept in this tab's session storage, and nowhere else. */

import { find } from "./dom.js";

export const NO_KEY = "This service asks for a key. Whoever runs it has one for you.";

const PLACE = "rlhf-ray-key";
const dialog = find("#key-dialog");
const input = find("#key");
const problem = find("#key-problem");
let asking = null;

export function currentKey() {
  return sessionStorage.getItem(PLACE);
}

/** Forgets a key that was refused, unless another has taken its place meanwhile. */
export function forgetKey(key) {
  if (currentKey() === key) sessionStorage.removeItem(PLACE);
}

/** The key that the person gives, or null. Requests that need one at the same time share one dialog. */
export function askForKey(why) {
  asking ??= new Promise((resolve) => {
    let given = null;
    const submit = (event) => {
      event.preventDefault();
      const key = input.value.trim();
      // Other characters cannot be sent in a header.
      if (!/^[\x21-\x7e]+$/.test(key)) {
        problem.textContent = key ? "A key has no spaces and only plain letters and digits." : "Enter the key first.";
        input.focus();
        return;
      }
      given = key;
      sessionStorage.setItem(PLACE, key);
      dialog.close();
    };
    const form = find("#key-form");
    form.addEventListener("submit", submit);
    dialog.addEventListener(
      "close",
      () => {
        form.removeEventListener("submit", submit);
        input.value = "";
        asking = null;
        resolve(given);
      },
      { once: true },
    );
    find("#key-why").textContent = why;
    problem.textContent = "";
    dialog.showModal();
    input.focus();
  });
  return asking;
}

/** Takes the key out of `#key=...` and out of the address bar, before it gets into the history. */
export function takeKeyFromAddress() {
  const parts = location.hash.slice(1).split("&");
  const found = parts.find((part) => part.startsWith("key="));
  if (found === undefined) return;
  const rest = parts.filter((part) => !part.startsWith("key=")).join("&");
  history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  const key = decoded(found.slice("key=".length)).trim();
  if (/^[\x21-\x7e]+$/.test(key)) sessionStorage.setItem(PLACE, key);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

find("#key-cancel").addEventListener("click", () => dialog.close());
find("#change-key").addEventListener("click", () => askForKey("Another key takes the place of the one in use."));
