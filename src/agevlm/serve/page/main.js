// The page: wires the picture, the question, the answers and the stages together.

import * as api from "./api.js";
import { Gaze } from "./gaze.js";
import { fromFile, pictureIn } from "./pictures.js";
import { save, sharedFile } from "./share.js";
import { Stage } from "./stage.js";
import { Turn } from "./turns.js";
import { capital, shortName, walkWords } from "./words.js";

const MAX_QUESTION = 4000; // characters; more than any question needs

const $ = (id) => document.getElementById(id);
const page = { models: [], stages: [], examples: [], picture: null, picks: 0, turns: [], asking: null };
page.gaze = new Gaze(paint);

// Gets the models and the examples; says so and gives false where they are not to be had.
async function load() {
  try {
    page.models = await api.models();
    page.examples = await api.examples();
  } catch (error) {
    page.models = [];
    notice(error.message);
    return false;
  }
  const pill = ({ id }) => Object.assign(document.createElement("span"), { textContent: shortName(id), title: id });
  $("models").replaceChildren(...page.models.map(pill));
  page.stages = page.models.map(({ id }) => new Stage(id));
  $("stages").replaceChildren(...page.stages.map((stage) => stage.element));
  document.body.classList.toggle("two", page.models.length > 1);
  choices();
  $("examples").replaceChildren(...page.examples.map(exampleButton));
  $("or-example").hidden = !page.examples.length;
  $("dotted").hidden = !page.models.some(({ looks }) => looks.lists_words);
  if (page.examples.length && !page.picks) await pickExample(page.examples[0]);
  paint();
  return true;
}

// Pictures.

function exampleButton(example) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = example.title;
  const image = { src: example.url, alt: example.title, width: 64, height: 64 };
  button.append(Object.assign(document.createElement("img"), image));
  button.addEventListener("click", () => pickExample(example));
  return button;
}

function pickExample(example) {
  return pick(async () => {
    const { url, title, questions } = example;
    const picture = () => api.blob(url).then((blob) => fromFile(new File([blob], title, { type: blob.type })));
    return (example.picture ??= { ...(await picture()), questions });
  });
}

function pickFile(file) {
  if (file) pick(async () => ({ ...(await fromFile(file)), questions: page.models[0]?.looks.questions ?? [] }));
}

// Of pictures that are picked one after another the last is taken, whichever is read first.
async function pick(read) {
  const number = ++page.picks;
  try {
    const picture = await read();
    if (number === page.picks) setPicture(picture);
  } catch (error) {
    notice(error.message);
  }
}

// The picture that is asked about from now on, marked where it is an example.
function setPicture(picture) {
  page.picture = picture;
  page.picks++;
  notice("");
  page.gaze.release();
  [...$("examples").children].forEach((button, place) => {
    button.setAttribute("aria-current", page.examples[place].picture === picture);
  });
  $("suggestions").replaceChildren(...picture.questions.map(capital).map((question) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: question });
    button.addEventListener("click", (event) => suggested(question, event.detail === 0));
    return button;
  }));
}

// Asking.

function suggested(question, byKeyboard) {
  if (byKeyboard) $("question").focus(); // the suggestions take no focus while the answer comes
  ask(question);
}

async function ask(question) {
  notice("");
  question = question.trim();
  if (!page.models.length && !(await load())) return;
  if (!question || page.asking) return;
  if (!page.picture) return notice("First choose a picture.");
  if (question.length > MAX_QUESTION) return notice(tooLong(question));
  if ($("question").value.trim() === question) empty($("question"));
  await answered(newTurn(question));
}

function tooLong({ length }) {
  const [has, most] = [length, MAX_QUESTION].map((number) => number.toLocaleString("en"));
  return `The question has ${has} characters and was not sent: ${most} are the most. Shorten it.`;
}

function newTurn(question) {
  const turn = new Turn(page.picture, question, page.models.map(({ id }) => id), onWord, isOld);
  turn.answers.forEach((answer) => Object.assign(answer, { blind: !canLook(answer.model), key: lookKey(), looks: {} }));
  page.turns.push(turn);
  $("welcome")?.remove();
  $("turns").append(turn.element);
  turn.element.scrollIntoView({ block: "end", behavior: "smooth" });
  page.gaze.release();
  return turn;
}

async function answered(turn) {
  page.asking = new AbortController();
  busy(true);
  await Promise.all(turn.answers.map((answer) => write(turn, answer, page.asking.signal)));
  page.asking = null;
  busy(false);
  turn.drawQuestion();
  turn.element.scrollIntoView({ block: "end", behavior: "smooth" });
  const first = page.picture === turn.picture && !page.gaze.pinned && turn.firstSpot();
  if (first) page.gaze.show(first);
  else paint();
  allAnew();
}

async function write(turn, answer, signal) {
  const request = { model: answer.model, messages: messagesOf(turn), attention: JSON.parse(answer.key) ?? true };
  if (answer.blind) delete request.attention;
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
  answer.looks[answer.key] = answer.words;
  turn.drawAnswer(answer);
}

function messagesOf(turn) {
  const content = [{ type: "image_url", image_url: { url: turn.picture.url } }, { type: "text", text: turn.question }];
  return [{ role: "user", content }];
}

function canLook(name) {
  return page.models.find(({ id }) => id === name).looks.layers.length > 0;
}

// Looking.

// Who pins a word of an earlier turn goes on with its picture: what stands still on the stage is what is asked about.
function onWord(spot, how) {
  if (how === "pin" && spot.turn.picture !== page.picture) setPicture(spot.turn.picture);
  page.gaze.tell(spot, how);
}

// Brings the stages up to date: the map of the word that is looked at, else the picture that will be asked about.
function paint() {
  const { spot, pinned } = page.gaze;
  const picture = spot?.turn.picture ?? page.picture;
  page.turns.forEach((turn) => turn.press(pinned));
  if (!picture) return;
  const old = spot && isOldTurn(spot.turn);
  const shown = spot && !old && spot.turn.shown(spot);
  page.stages.forEach((stage, number) => {
    if (stage.picture !== picture) stage.show(picture);
    if (shown) stage.look(shown[number]);
    else stage.clear(old ? "is asked where it looked …" : "");
  });
  if (old) lookAnew(spot.turn);
}

// Layers and heads.

function choices() {
  const shared = page.models.map(({ looks }) => looks.layers).reduce((some, more) => some.filter((n) => more.includes(n)));
  const numHeads = Math.min(...page.models.map(({ looks }) => looks.num_heads));
  for (const [name, numbers] of [["layer", shared], ["head", Array.from({ length: numHeads }, (_, number) => number)]]) {
    $(name).replaceChildren(new Option("all", ""), ...numbers.map((number) => new Option(number, number)));
    $(`${name}-choice`).hidden = numbers.length < 2;
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

// What is chosen, in words; nothing where it is the mean of all.
function chosenName() {
  const { layers, heads } = chosen() ?? {};
  return layers || heads ? `${layers ? `layer ${layers}` : "all layers"}, ${heads ? `head ${heads}` : "all heads"}` : "";
}

function choose() {
  notice("");
  page.turns.forEach((turn) => turn.mark());
  paint();
  allAnew();
}

// Brings every turn up to date, the newest first; given up where something else is chosen meanwhile. False if one fails.
async function allAnew() {
  const key = lookKey();
  for (const turn of page.turns.filter(isOldTurn).reverse()) {
    if (!(await lookAnew(turn))) return false;
    if (key !== lookKey()) break;
  }
  return true;
}

// Whether an answer has the maps of another layer or head than the one that is chosen.
function isOld({ state, blind, key }) {
  return state === "done" && !blind && key !== lookKey();
}

function isOldTurn({ answers }) {
  return answers.some(isOld);
}

// Asks for the maps of a turn, of the chosen layer and head; each is asked for once. Gives whether it has them.
async function lookAnew(turn) {
  try {
    await Promise.all(turn.answers.filter(isOld).map((answer) => lookAgain(turn, answer, lookKey())));
  } catch (error) {
    if (page.gaze.spot?.turn === turn) page.stages.forEach((stage) => stage.clear());
    notice(error.message);
    return false;
  }
  turn.mark();
  paint();
  return true;
}

async function lookAgain(turn, answer, key) {
  const request = { model: answer.model, messages: messagesOf(turn), answer: answer.text, ...chosen() };
  try {
    const words = await (answer.looks[key] ??= api.looks(request));
    if (key === lookKey()) Object.assign(answer, { words, key });
  } catch (error) {
    delete answer.looks[key];
    throw error;
  }
}

// The rest of the page.

function wire() {
  const question = $("question");
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (page.asking) page.asking.abort();
    else ask(question.value);
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
  $("layer").addEventListener("change", choose);
  $("head").addEventListener("change", choose);
  document.addEventListener("paste", (event) => pickFile(pictureIn(event.clipboardData)));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (page.asking) page.asking.abort();
    else page.gaze.release();
  });
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

function empty(area) {
  area.value = "";
  grow(area);
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

// All that is shared is of the layer and head that are chosen when it is saved.
async function share() {
  notice("");
  const stamp = new Date().toISOString().slice(0, 16).replace("T", " ");
  const turns = [...page.turns];
  $("share").disabled = true;
  try {
    while (turns.some(isOldTurn)) if (!(await allAnew())) return;
    save(await sharedFile(turns, stamp, chosenName()), `agevlm ${stamp.replace(":", ".")}.html`);
  } catch (error) {
    notice(error.message);
  } finally {
    $("share").disabled = Boolean(page.asking);
  }
}

// The key that was typed in; nothing where the dialog was closed without it.
function askForKey(wrong) {
  const dialog = $("key-dialog");
  $("key-wrong").hidden = !wrong;
  $("key").value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue && $("key").value.trim()), { once: true });
  });
}

// What went wrong stands over the question until something else is done.
function notice(text) {
  $("notice").textContent = text;
}

function theme() {
  const set = (value) => {
    document.documentElement.dataset.theme = value;
    localStorage.setItem("theme", value);
  };
  const ofSystem = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const now = () => document.documentElement.dataset.theme || ofSystem();
  if (localStorage.getItem("theme")) set(localStorage.getItem("theme"));
  $("theme").addEventListener("click", () => set(now() === "dark" ? "light" : "dark"));
}

api.onKeyWanted(askForKey);
theme();
wire();
load();
