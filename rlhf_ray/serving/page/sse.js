/** Server-sent events out of a byte stream. `EventSource` cannot POST, nor send a key. */

/** Takes text in any pieces and gives the data of each event that is complete. */
export class SseParser {
  #rest = "";
  #data = [];

  push(text) {
    this.#rest += text;
    // A carriage return at the very end may be half of a CRLF whose other half is still to come.
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const found = [];
    for (const line of lines) {
      if (line !== "") this.#take(line);
      else if (this.#data.length) found.push(this.#data.splice(0).join("\n"));
    }
    return found;
  }

  #take(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1);
    if (name === "data") this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
  }
}

/** The data of each event of a response body. */
export async function* dataOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // a stream that broke cannot be cancelled, and need not be
  }
}
