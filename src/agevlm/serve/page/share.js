// A conversation as one HTML file that needs nothing else: its pictures, texts and maps, and these very modules.

const MODULES = ["heat.js", "words.js", "stage.js", "turns.js", "shared.js"];

export async function sharedFile(turns, stamp) {
  const [style, ...codes] = await Promise.all(["style.css", ...MODULES].map(async (name) => (await fetch(name)).text()));
  const code = codes.map((text) => text.replace(/^import .*$/gm, "").replace(/^export /gm, "")).join("\n");
  const data = turns.map(({ picture, question, answers }) => ({
    picture,
    question,
    answers: answers.map(({ model, text, words, state, error }) => ({ model, text, words, state, error })),
  }));
  const json = JSON.stringify(data).replace(/</g, "\\u003c");
  const policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
  const head = `<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">`
    + `<meta http-equiv="Content-Security-Policy" content="${policy}"><meta name="color-scheme" content="light dark">`
    + `<title>agevlm · ${stamp}</title><style>${style}</style>`;
  return `<!doctype html><html lang="en"><head>${head}</head><body class="shared"><main id="shared"></main>`
    + `<script type="application/json" id="data">${json}</script><script>"use strict";(() => {${code}\n})();</script>`
    + `</body></html>\n`;
}

export function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
