/** How replies are sampled. */

import { find } from "./dom.js";

const maxTokens = find("#max-tokens");
const temperature = find("#temperature");

/** The request's options, or null after saying which of them is wrong. Without a length the service's limit holds. */
export function readSettings() {
  for (const input of [maxTokens, temperature]) {
    if (input.checkValidity()) continue;
    find("#settings").open = true;
    input.reportValidity();
    return null;
  }
  const options = { temperature: temperature.valueAsNumber };
  if (maxTokens.value !== "") options.max_tokens = maxTokens.valueAsNumber;
  return options;
}
