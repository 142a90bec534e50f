/** Requests to the service: the key in their header, errors as `Failure`, replies as streams. */

import { askForKey, currentKey, forgetKey, NO_KEY } from "./key.js";
import { dataOf } from "./sse.js";

/** Why a request failed. `broken`: in the middle of a reply. Status 0: there was no answer. */
export class Failure extends Error {
  constructor(message, { status = 0, param = null, retryAfter = null, broken = false } = {}) {
    super(message);
    Object.assign(this, { status, param, retryAfter, broken });
  }
}

let model = null;

/** Streams the reply to `messages`: `onText` gets each piece. Gives its id and why it ended. */
export async function streamReply(messages, { conversation, side, options, signal, onText }) {
  const headers = { "X-Conversation-Id": conversation };
  if (side) headers["X-Arena-Side"] = side;
  const body = { model: await modelName(signal), messages, stream: true, ...options };
  const response = await send("v1/chat/completions", { body, headers, signal });
  const reply = { id: null, finish: null };
  try {
    for await (const data of dataOf(response.body)) {
      if (data === "[DONE]") return reply;
      take(JSON.parse(data), reply, onText);
    }
  } catch (error) {
    if (error instanceof Failure || signal.aborted) throw error;
    throw new Failure("the connection broke off", { broken: true });
  }
  throw new Failure("the service stopped in the middle of it", { broken: true });
}

function take(chunk, reply, onText) {
  if (chunk.error) throw new Failure(chunk.error.message ?? "the service failed", { broken: true });
  reply.id ??= chunk.id;
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) onText(choice.delta.content);
  reply.finish = choice?.finish_reason ?? reply.finish;
}

export async function sendFeedback(item) {
  await send("v1/feedback", { body: item });
}

export async function sendPreference(item) {
  await send("v1/preferences", { body: item });
}

export async function summary() {
  return (await send("v1/feedback/summary")).json();
}

/** The service has one model, under a name of its own. */
async function modelName(signal) {
  model ??= (await (await send("v1/models", { signal })).json()).data?.[0]?.id ?? null;
  if (model === null) throw new Failure("it has no model at the moment", { status: 503 });
  return model;
}

/** Asks for a key when there is none or the service refuses it, until one is taken or the person gives up. */
async function send(path, { body, headers = {}, signal } = {}) {
  let why = NO_KEY;
  for (;;) {
    const key = currentKey() ?? (await askForKey(why));
    if (key === null) throw new Failure("no key was given", { status: 401 });
    const response = await answer(path, {
      method: body === undefined ? "GET" : "POST",
      headers: { ...headers, Authorization: `Bearer ${key}`, ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
      signal,
    });
    if (response.ok) return response;
    if (response.status !== 401) throw await failure(response);
    forgetKey(key);
    why = "The service does not accept this key. Enter another one.";
  }
}

async function answer(path, request) {
  try {
    return await fetch(path, request);
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Failure("there was no answer");
  }
}

async function failure(response) {
  const error = (await response.json().catch(() => null))?.error ?? {};
  if (response.status === 404 && error.param === "model") model = null; // the service was started anew with another name
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Failure(error.message ?? `the service answered ${response.status}`, {
    status: response.status,
    param: error.param,
    retryAfter: Number.isFinite(seconds) ? Math.max(0, seconds) : null,
  });
}
