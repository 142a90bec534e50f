/** A conversation: messages, replies that stream in, and what is said about them. */

import { Answer } from "./answer.js";
import { button, el, find, randomId, sendOnEnter } from "./dom.js";
import { feedbackRow } from "./feedback.js";
import { readSettings } from "./settings.js";

const thread = find("#thread");
const message = find("#message");
const send = find("#chat-send");
const stop = find("#chat-stop");
let conversation;

export function startChat() {
  find("#chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  sendOnEnter(message, submit);
  stop.addEventListener("click", () => conversation.running?.abort());
  find("#new-conversation").addEventListener("click", () => {
    begin();
    message.focus();
  });
  begin();
}

function begin() {
  conversation?.running?.abort();
  conversation = { id: randomId(), exchanges: [], running: null };
  thread.replaceChildren(
    el("p", { class: "empty", text: "Ask something. What you say about the replies is kept, and the policy can learn from it." }),
  );
  busy(false);
}

function submit() {
  const text = message.value;
  if (conversation.running || text.trim() === "" || readSettings() === null) return;
  for (const { answer } of conversation.exchanges) if (answer.state !== "finished") answer.close(closing(answer));
  const node = el("div", { class: "exchange" });
  const asked = el("article", { class: "asking", "aria-label": "You" }, el("p", { class: "who", text: "You" }));
  asked.append(el("div", { class: "text", text }));
  node.append(asked);
  if (conversation.exchanges.length === 0) thread.replaceChildren();
  thread.append(node);
  const exchange = { text, node, answer: new Answer("Reply") };
  node.append(exchange.answer.node);
  conversation.exchanges.push(exchange);
  message.value = "";
  reply(exchange);
}

async function reply(exchange) {
  const options = readSettings();
  const within = conversation;
  if (options === null || within.running) return;
  const { answer } = exchange;
  within.running = new AbortController();
  busy(true);
  const following = follow(answer.node);
  const request = { messages: messagesUpTo(within, exchange), conversation: within.id, options, signal: within.running.signal };
  await answer.stream(request, () => reply(exchange), button("Edit the message", () => edit(within, exchange)));
  within.running = null;
  if (within !== conversation) return following.end();
  if (answer.state === "finished") answer.add(feedbackRow(answer.reply));
  if (answer.state === "stopped") answer.add(button("Answer again", () => reply(exchange)));
  busy(false);
  following.end();
}

/** What has been said before and got an answer, and the message of this exchange. */
function messagesUpTo({ exchanges }, exchange) {
  const said = exchanges.slice(0, exchanges.indexOf(exchange)).filter(({ answer }) => spoken(answer));
  const turns = said.flatMap(({ text, answer }) => [
    { role: "user", content: text },
    { role: "assistant", content: answer.text },
  ]);
  return [...turns, { role: "user", content: exchange.text }];
}

/** A reply that was stopped is part of the conversation as far as it came; one that failed is not. */
function spoken({ state, text }) {
  return (state === "finished" || state === "stopped") && text !== "";
}

/** Later messages build on what is there, so it cannot be tried again any more. */
function closing(answer) {
  return spoken(answer) ? "Stopped." : "Not part of the conversation.";
}

function edit(within, exchange) {
  if (within !== conversation || within.running) return;
  within.exchanges.splice(within.exchanges.indexOf(exchange), 1);
  exchange.node.remove();
  if (message.value === "") message.value = exchange.text;
  message.focus();
}

function busy(running) {
  const focused = document.activeElement === stop;
  send.hidden = running;
  stop.hidden = !running;
  if (focused && !running) message.focus();
}

/** Scrolls along with a reply that grows, unless the reader has scrolled away from its end. */
function follow(node) {
  let height = document.documentElement.scrollHeight;
  const grown = () => {
    if (scrollY + innerHeight >= height - 80) keepInView();
    height = document.documentElement.scrollHeight;
  };
  const observer = new ResizeObserver(grown);
  observer.observe(node);
  keepInView();
  return {
    end() {
      observer.disconnect();
      grown();
    },
  };
}

function keepInView() {
  scrollTo({ top: document.documentElement.scrollHeight });
}
