// Text whose object words can be hovered, tapped and reached by the keyboard. Text goes in as text, never as HTML.

export const ABSENT = 0.5; // from this share without a place on, a word is marked

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// The name of a model, its middle left out where it is long: paths and hub ids differ at their ends.
export function shortName(name) {
  return name.length > 26 ? `${name.slice(0, 8)}…${name.slice(-17)}` : name;
}

// Fills `element` with `text`; each of its `words` ({start, end} in characters) becomes what `make(text, word)` gives.
export function fillText(element, text, words, make) {
  element.replaceChildren();
  const characters = Array.from(text);
  let at = 0;
  for (const word of [...words].sort((a, b) => a.start - b.start)) {
    element.append(characters.slice(at, word.start).join(""));
    element.append(make(characters.slice(word.start, word.end).join(""), word));
    at = word.end;
  }
  element.append(characters.slice(at).join(""));
}

// A word that tells how it is looked at: "peek" while it is hovered or focused, "leave" after that, "pin" when clicked.
export function wordButton(text, tell) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "word";
  button.append(text);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && tell("peek"));
  button.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && tell("leave"));
  button.addEventListener("focus", () => button.matches(":focus-visible") && tell("peek"));
  button.addEventListener("blur", () => tell("leave"));
  button.addEventListener("click", () => tell("pin"));
  return button;
}

// What is said of a word that a model did not learn: the model is its subject.
export function unlearned(word) {
  return `did not learn “${word}”, so its answer means nothing`;
}

// Marks a word by its `scores` ({word, learned, made_up, model, old}): those without a place are written behind it. Where
// a score has the name of its model, so that one of several can be meant, the name is written too. One that is `old` is
// of another layer or head than is looked at: it is not written, and the word is faint.
export function markWord(button, scores) {
  const absent = scores.filter(({ made_up, old }) => !old && made_up >= ABSENT);
  const line = ({ made_up, model = "" }) =>
    `${model && `${model}: `}${percent(made_up)} of the attention was not on the picture`;
  const strange = scores.filter(({ learned }) => learned === false);
  const lines = [...strange.map(({ word, model = "The model" }) => `${model} ${unlearned(word)}`), ...absent.map(line)];
  const old = scores.some((score) => score.old);
  button.title = lines.join("\n") || (old ? "Not yet read of this layer and head" : "Where the model looked");
  button.classList.toggle("old", old);
  button.classList.toggle("unlearned", strange.length > 0);
  button.classList.toggle("absent", absent.length > 0);
  button.querySelector("sup")?.remove();
  if (!absent.length) return;
  const score = document.createElement("sup");
  score.append(absent.map(({ made_up, model = "" }) => `${percent(made_up)} ${shortName(model)}`.trim()).join(" · "));
  button.append(score);
}

// Left and right go from word to word, whatever stands between them.
export function walkWords(root) {
  root.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.classList?.contains("word")) return;
    const all = [...root.querySelectorAll("button.word")];
    all[all.indexOf(event.target) + step]?.focus({ focusVisible: true });
    event.preventDefault();
  });
}
