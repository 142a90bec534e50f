/** Two blind answers to one prompt, and a vote by button or key. */

import { Answer } from "./answer.js";
import { button, find, randomId, sendOnEnter } from "./dom.js";
import { readSettings } from "./settings.js";
import { Vote } from "./votes.js";

const KEYS = { arrowleft: "left", a: "left", arrowright: "right", b: "right", t: "tie", n: "both_bad", u: "undo" };
const WORDS = { left: "A is better", right: "B is better", tie: "a tie", both_bad: "both bad" };
const view = find("#view-arena");
const prompt = find("#prompt");
const area = find("#round");
const said = find("#round-said");
const another = find("#another");
const ballot = [...document.querySelectorAll("[data-vote]")];
let round = null;
let vote = null;
let votes = [];
let chosen = null;

export function startArena() {
  find("#arena-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  sendOnEnter(prompt, submit);
  find("#arena-stop").addEventListener("click", () => round?.running.abort());
  for (const choice of ballot) choice.addEventListener("click", () => cast(choice.dataset.vote));
  another.addEventListener("click", () => prompt.focus());
  document.addEventListener("keydown", pressed);
}

function submit() {
  const text = prompt.value;
  const options = readSettings();
  if (options === null || text.trim() === "" || isRunning()) return;
  vote?.flush();
  vote = null;
  for (const old of votes) if (old.state === "sent") old.node.remove();
  votes = votes.filter((old) => old.state !== "sent");
  const left = Math.random() < 0.5 ? "a" : "b";
  round = { text, options, conversation: randomId(), running: new AbortController(), sides: [] };
  round.sides = [side("Answer A", left), side("Answer B", left === "a" ? "b" : "a")];
  find("#asked").textContent = text;
  find("#sides").replaceChildren(...round.sides.map(({ answer }) => answer.node));
  area.hidden = false;
  prompt.value = "";
  area.focus({ preventScroll: true }); // out of the text box, where keys are text
  for (const each of round.sides) ask(each);
}

/** `side` is the service's name for it, which stays the same wherever it is shown. */
function side(title, name) {
  return { name, answer: new Answer(title) };
}

async function ask(each) {
  const within = round;
  if (within.running.signal.aborted) within.running = new AbortController();
  const { conversation, text, options, running } = within;
  const request = { messages: [{ role: "user", content: text }], conversation, side: each.name, options, signal: running.signal };
  const streamed = each.answer.stream(request, () => within === round && ask(each));
  update();
  await streamed;
  if (within !== round) return;
  if (each.answer.state === "stopped") each.answer.add(button("Answer again", () => within === round && ask(each)));
  update();
}

function isRunning() {
  return round?.sides.some(({ answer }) => answer.state === "streaming") ?? false;
}

function isOpen() {
  return vote === null && (round?.sides.every(({ answer }) => answer.state === "finished") ?? false);
}

function update() {
  const running = isRunning();
  const stop = find("#arena-stop");
  const focused = document.activeElement === stop;
  stop.hidden = !running;
  find("#arena-send").hidden = running;
  if (focused && !running) area.focus({ preventScroll: true });
  for (const choice of ballot) {
    choice.disabled = !isOpen();
    choice.classList.toggle("given", vote !== null && choice.dataset.vote === chosen);
  }
  another.hidden = vote === null;
  said.textContent = running
    ? "You can vote when both answers are complete."
    : isOpen()
      ? "Which one is better?"
      : vote === null
        ? "Only answers that are both complete can be compared."
        : "";
}

function cast(choice) {
  if (!isOpen()) return;
  const [left, right] = round.sides;
  const better = { left: left.name, right: right.name, tie: "tie", both_bad: "both_bad" }[choice];
  const ids = Object.fromEntries(round.sides.map(({ name, answer }) => [name, answer.reply.id]));
  vote = new Vote({ reply_ids: [ids.a, ids.b], choice: better }, WORDS[choice], () => {
    votes = votes.filter((other) => other.state !== "undone");
    vote = null;
    update();
    area.focus({ preventScroll: true });
  });
  chosen = choice;
  votes.push(vote);
  find("#votes").append(vote.node);
  update();
  another.focus({ preventScroll: true });
}

function pressed(event) {
  const act = KEYS[event.key.toLowerCase()];
  const away = view.hidden || document.querySelector("dialog[open]") !== null;
  if (!act || away || event.repeat || event.ctrlKey || event.altKey || event.metaKey || isText(event.target)) return;
  if (act === "undo" ? vote?.state !== "pending" : !isOpen()) return;
  event.preventDefault(); // arrows would scroll
  if (act === "undo") vote.undo();
  else cast(act);
}

function isText(node) {
  return node instanceof Element && node.closest("input, textarea, select, [contenteditable]") !== null;
}
