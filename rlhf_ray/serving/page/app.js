/** The page: which of its views is shown. */

import { startArena } from "./arena.js";
import { startChat } from "./chat.js";
import { loadDashboard, startDashboard } from "./dashboard.js";
import { find } from "./dom.js";
import { askForKey, currentKey, NO_KEY, takeKeyFromAddress } from "./key.js";

const VIEWS = ["chat", "arena", "dashboard"];
const settings = find("#settings");

takeKeyFromAddress();
startChat();
startArena();
startDashboard();

function show() {
  takeKeyFromAddress(); // a link with a key may be pasted into a tab that is open
  const name = location.hash.slice(1);
  const shown = VIEWS.includes(name) ? name : VIEWS[0];
  for (const view of VIEWS) {
    find(`#view-${view}`).hidden = view !== shown;
    const link = find(`nav [data-view="${view}"]`);
    if (view === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  settings.hidden = shown === "dashboard";
  document.title = `${find(`#${shown}-title`).textContent} · rlhf-ray`;
  if (shown === "dashboard") loadDashboard();
}

addEventListener("hashchange", show);
show();
if (currentKey() === null) askForKey(NO_KEY);
