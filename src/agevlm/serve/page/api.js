// What the server is asked, and nothing about how it looks on the page.

import { capital } from "./words.js";

let key = sessionStorage.getItem("key") ?? "";
let askForKey = async () => "";
let asked = null; // the key that is being asked for, whoever waits for it

// `ask(wrong)` is called when the server wants a key, and gives one, or nothing. `wrong`: one was sent and refused.
export function onKeyWanted(ask) {
  askForKey = ask;
}

async function call(path, body, signal) {
  for (;;) {
    const sent = key;
    const headers = sent ? { Authorization: `Bearer ${sent}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    const options = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) };
    const reply = await fetch(path, options).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    });
    if (reply.ok) return reply;
    const message = await reply.json().then((found) => found.error.message).catch(() => reply.statusText);
    if (reply.status !== 401) throw new Error(sentence(message));
    if (sent === key) await renewKey();
  }
}

async function renewKey() {
  sessionStorage.removeItem("key");
  asked ??= askForKey(Boolean(key)).finally(() => (asked = null));
  key = await asked;
  if (!key) throw new Error("This server answers nobody without its key. Ask again to give it.");
  sessionStorage.setItem("key", key);
}

function sentence(text) {
  return capital(text) + (/[.!?]$/.test(text) ? "" : ".");
}

export async function models() {
  return (await (await call("v1/models")).json()).data;
}

export async function examples() {
  return (await call("examples")).json();
}

export async function blob(path) {
  return (await call(path)).blob();
}

export async function text(path) {
  return (await call(path)).text();
}

// Streams an answer: `onText(text so far)`; gives {text, words, notice, finish}.
export async function answer(request, onText, signal) {
  const body = { ...request, stream: true };
  const reply = await call("v1/chat/completions", body, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  const found = { text: "", words: [], notice: null, finish: null };
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new Error("The answer broke off.");
    });
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(sentence(chunk.error.message));
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.delta.content) onText((found.text += choice.delta.content));
      if (choice.finish_reason) found.finish = choice.finish_reason;
      if (choice.attention) found.words = choice.attention;
      if (choice.notice) found.notice = choice.notice;
    }
  }
  if (!found.finish) throw new Error("The answer broke off.");
  return found;
}

// The maps of the words of an answer already given, for some layers and heads.
export async function looks(request) {
  return (await (await call("v1/looks", { ...request, format: "json" })).json()).words;
}
