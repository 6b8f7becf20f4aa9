// Text whose object words can be hovered, tapped and reached by the keyboard. Text goes in as text, never as HTML.

export const ABSENT = 0.5; // from this share without a place on, a word is marked

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

// Fills `element` with `text`; `words` are those of it ({start, end, made_up, …} in characters). `onWord(word, button)`
// is told what is looked at: hovered or focused words for a moment (null when it ends), clicked ones for good.
export function fillText(element, text, words, onWord) {
  element.replaceChildren();
  const characters = Array.from(text);
  let at = 0;
  for (const word of [...words].sort((a, b) => a.start - b.start)) {
    element.append(characters.slice(at, word.start).join(""));
    element.append(wordButton(characters.slice(word.start, word.end).join(""), word, onWord));
    at = word.end;
  }
  element.append(characters.slice(at).join(""));
}

function wordButton(text, word, onWord) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "word";
  button.append(text);
  button.title = "Where the model looked";
  if (word.made_up !== null && word.made_up >= ABSENT) {
    button.classList.add("absent");
    button.title = `${percent(word.made_up)} of its attention found no place in the picture`;
    const score = document.createElement("sup");
    score.append(percent(word.made_up));
    button.append(score);
  }
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && onWord(word, button, "peek"));
  button.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && onWord(null, button, "peek"));
  button.addEventListener("focus", () => button.matches(":focus-visible") && onWord(word, button, "peek"));
  button.addEventListener("blur", () => onWord(null, button, "peek"));
  button.addEventListener("click", () => onWord(word, button, "pin"));
  return button;
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
