// The page: wires the picture, the question, the answers and the stages together.

import * as api from "./api.js";
import { fromFile, pictureIn } from "./pictures.js";
import { save, sharedFile } from "./share.js";
import { Stage } from "./stage.js";
import { Turn } from "./turns.js";
import { walkWords } from "./words.js";

const $ = (id) => document.getElementById(id);
const page = { models: [], stages: [], picture: null, turns: [], pinned: null, asking: null, examples: [] };

async function start() {
  api.onKeyWanted(askForKey);
  theme();
  wire();
  try {
    page.models = await api.models();
    page.examples = await api.examples();
  } catch (error) {
    notice(error.message);
    return;
  }
  $("models").replaceChildren(...page.models.map(({ id }) => Object.assign(document.createElement("span"), { textContent: id })));
  page.stages = page.models.map(({ id }) => new Stage(id));
  $("stages").replaceChildren(...page.stages.map((stage) => stage.element));
  document.body.classList.toggle("two", page.models.length > 1);
  choices();
  page.examples.forEach(addExample);
  if (page.examples.length && !page.picture) await pickExample(0);
}

// Pictures.

function addExample(example, number) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = example.title;
  const image = Object.assign(document.createElement("img"), { src: example.url, alt: example.title, width: 64, height: 64 });
  button.append(image);
  button.addEventListener("click", () => pickExample(number));
  $("examples").append(button);
}

async function pickExample(number) {
  const { url, title, questions } = page.examples[number];
  const blob = await (await fetch(url)).blob();
  const picture = await fromFile(new File([blob], title, { type: "image/png" }));
  setPicture(picture, questions);
  [...$("examples").children].forEach((button, place) => button.setAttribute("aria-current", place === number));
}

async function pickFile(file) {
  if (!file) return;
  try {
    setPicture(await fromFile(file), ["What is in the picture?", "Describe the picture."]);
    [...$("examples").children].forEach((button) => button.setAttribute("aria-current", false));
  } catch (error) {
    notice(error.message);
  }
}

function setPicture(picture, questions) {
  page.picture = picture;
  unpin();
  page.stages.forEach((stage) => stage.show(picture));
  $("suggestions").replaceChildren(...questions.map((question) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: question });
    button.addEventListener("click", () => ask(question));
    return button;
  }));
}

// Asking.

async function ask(question) {
  question = question.trim();
  if (!question || page.asking) return;
  if (!page.picture) return notice("First choose a picture.");
  const turn = new Turn(page.picture, question, page.models.map(({ id }) => id), showWord);
  page.turns.push(turn);
  $("welcome")?.remove();
  $("turns").append(turn.element);
  turn.element.scrollIntoView({ block: "end", behavior: "smooth" });
  unpin();
  page.stages.forEach((stage) => stage.show(turn.picture));
  page.asking = new AbortController();
  busy(true);
  await Promise.all(turn.answers.map((answer) => write(turn, answer, page.asking.signal)));
  page.asking = null;
  busy(false);
  turn.draw();
  turn.element.scrollIntoView({ block: "end", behavior: "smooth" });
  if (!page.pinned) turn.firstWord()?.click();
}

async function write(turn, answer, signal) {
  const request = { model: answer.model, messages: messagesOf(turn), attention: chosen() ?? true };
  if (!canLook(answer.model)) delete request.attention;
  answer.state = "writing";
  try {
    const found = await api.answer(request, (text) => {
      answer.text = text;
      turn.drawAnswer(answer);
    }, signal);
    Object.assign(answer, found, { state: "done" });
  } catch (error) {
    Object.assign(answer, signal.aborted ? { state: "stopped" } : { state: "failed", error: error.message });
  }
  answer.looks = { [lookKey()]: answer.words };
  turn.drawAnswer(answer);
}

function messagesOf(turn) {
  const content = [{ type: "image_url", image_url: { url: turn.picture.url } }, { type: "text", text: turn.question }];
  return [{ role: "user", content }];
}

function canLook(name) {
  return page.models.find(({ id }) => id === name).looks.num_layers > 0;
}

// Looking.

function showWord(turn, shown, button, how) {
  if (how === "pin") pin(turn, shown, button);
  const now = how === "peek" && shown ? { turn, shown } : page.pinned;
  page.stages.forEach((stage, number) => {
    if (now && stage.picture !== now.turn.picture) stage.show(now.turn.picture);
    if (now?.shown[number]) stage.look(now.shown[number]);
    else stage.clear();
  });
}

function pin(turn, shown, button) {
  const again = page.pinned?.button === button;
  unpin();
  if (again || !shown) return;
  button.setAttribute("aria-pressed", "true");
  page.pinned = { turn, shown, button };
}

function unpin() {
  page.pinned?.button.setAttribute("aria-pressed", "false");
  page.pinned = null;
  page.stages.forEach((stage) => stage.picture && stage.clear());
}

// Layers and heads.

function choices() {
  const least = (key) => Math.min(...page.models.map(({ looks }) => looks[key]));
  for (const [name, count] of [["layer", least("num_layers")], ["head", least("num_heads")]]) {
    const options = [new Option("all", ""), ...Array.from({ length: count }, (_, number) => new Option(number + 1, number))];
    $(name).replaceChildren(...options);
    $(`${name}-choice`).hidden = count < 2;
    $(name).addEventListener("change", relook);
  }
}

function chosen() {
  const found = {};
  if ($("layer").value) found.layers = [Number($("layer").value)];
  if ($("head").value) found.heads = [Number($("head").value)];
  return Object.keys(found).length ? found : null;
}

function lookKey() {
  return JSON.stringify(chosen());
}

// Asks for the maps of the turn that is shown, of the chosen layer and head; each is asked for once.
async function relook() {
  const turn = page.pinned?.turn ?? page.turns.at(-1);
  if (!turn) return;
  const before = page.pinned?.button;
  const place = before ? [...turn.element.querySelectorAll("button.word")].indexOf(before) : 0;
  const wanted = lookKey();
  await Promise.all(turn.answers.map(async (answer) => {
    if (answer.state !== "done" || !canLook(answer.model)) return;
    const request = { model: answer.model, messages: messagesOf(turn), answer: answer.text, ...chosen() };
    try {
      answer.looks[wanted] ??= await api.looks(request);
    } catch (error) {
      notice(error.message);
    }
  }));
  if (wanted !== lookKey()) return;
  turn.answers.forEach((answer) => (answer.words = answer.looks?.[wanted] ?? answer.words));
  unpin();
  turn.draw();
  turn.element.querySelectorAll("button.word")[place]?.click();
}

// The rest of the page.

function wire() {
  const question = $("question");
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (page.asking) return page.asking.abort();
    const text = question.value;
    question.value = "";
    grow(question);
    ask(text);
  });
  question.addEventListener("input", () => grow(question));
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!page.asking) $("ask").requestSubmit();
    }
  });
  $("file").addEventListener("change", (event) => pickFile(event.target.files[0]));
  $("share").addEventListener("click", share);
  document.addEventListener("paste", (event) => pickFile(pictureIn(event.clipboardData)));
  document.addEventListener("keydown", (event) => event.key === "Escape" && (page.asking ? page.asking.abort() : unpin()));
  walkWords($("turns"));
  wireDrop();
}

function wireDrop() {
  const over = (shown) => (event) => {
    event.preventDefault();
    $("drop").hidden = !shown;
  };
  addEventListener("dragover", over(true));
  addEventListener("dragleave", (event) => event.relatedTarget || over(false)(event));
  addEventListener("drop", (event) => {
    over(false)(event);
    pickFile(pictureIn(event.dataTransfer));
  });
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function busy(is) {
  $("send").textContent = is ? "Stop" : "Ask";
  $("send").classList.toggle("stop", is);
  $("share").disabled = is || !page.turns.length;
  $("suggestions").inert = is;
}

async function share() {
  const stamp = new Date().toISOString().slice(0, 16).replace("T", " ");
  save(await sharedFile(page.turns, stamp), `agevlm ${stamp.replace(":", ".")}.html`);
}

function askForKey() {
  return new Promise((resolve) => {
    const dialog = $("key-dialog");
    dialog.addEventListener("close", () => resolve($("key").value.trim()), { once: true });
    dialog.showModal();
  });
}

function notice(text) {
  const line = document.createElement("p");
  line.className = "notice";
  line.setAttribute("role", "alert");
  line.append(text);
  $("turns").append(line);
  setTimeout(() => line.remove(), 8000);
}

function theme() {
  const set = (value) => {
    document.documentElement.dataset.theme = value;
    localStorage.setItem("theme", value);
  };
  const now = () => document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  if (localStorage.getItem("theme")) set(localStorage.getItem("theme"));
  $("theme").addEventListener("click", () => set(now() === "dark" ? "light" : "dark"));
}

start();
