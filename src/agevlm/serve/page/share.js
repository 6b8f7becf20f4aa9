// A conversation as one HTML file that needs nothing else: its pictures, texts and maps, and these very modules.

import { text } from "./api.js";

const MODULES = ["heat.js", "words.js", "stage.js", "turns.js", "gaze.js", "shared.js"];

// `of` says which layer and head the maps are of; nothing where they are the mean of all.
export async function sharedFile(turns, stamp, of) {
  const json = JSON.stringify({ of, turns: turns.map(kept) }).replace(/</g, "\\u003c"); // as it is now, not after a wait
  const [style, ...codes] = await Promise.all(["style.css", ...MODULES].map(text));
  const code = codes.map((code) => code.replace(/^import .*$/gm, "").replace(/^export /gm, "")).join("\n");
  const policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
  const head = `<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">`
    + `<meta http-equiv="Content-Security-Policy" content="${policy}"><meta name="color-scheme" content="light dark">`
    + `<title>agevlm · ${stamp}${of && ` · ${of}`}</title><style>${style}</style>`;
  return `<!doctype html><html lang="en"><head>${head}</head><body class="shared"><main id="shared"></main>`
    + `<script type="application/json" id="data">${json}</script><script>"use strict";(() => {${code}\n})();</script>`
    + `</body></html>\n`;
}

function kept({ picture: { url, width, height, title }, question, answers }) {
  const said = ({ model, text, words, notice, state, error, blind }) =>
    ({ model, text, words, notice, state, error, blind });
  return { picture: { url, width, height, title }, question, answers: answers.map(said) };
}

export function save(html, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
