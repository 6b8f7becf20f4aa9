// A picture with the heat map of one word over it, and a sentence that says what it shows: the model is its subject.

import { clearHeat, drawHeat, isEven } from "./heat.js";
import { ABSENT, percent, shortName, unlearned } from "./words.js";

export class Stage {
  constructor(model) {
    this.element = document.createElement("figure");
    this.element.className = "stage empty";
    this.frame = document.createElement("div");
    this.frame.className = "frame";
    this.image = document.createElement("img");
    this.image.alt = "";
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    this.frame.append(this.image, this.canvas);
    const view = document.createElement("div");
    view.className = "view";
    view.append(this.frame);
    const caption = document.createElement("figcaption");
    const name = document.createElement("strong");
    name.title = model;
    name.append(shortName(model));
    this.said = document.createElement("span");
    caption.append(name, " ", this.said);
    this.element.append(view, caption);
  }

  // Shows a picture ({url, width, height, title}) without a map.
  show(picture) {
    if (this.image.getAttribute("src") !== picture.url) this.image.src = picture.url;
    this.image.alt = picture.title;
    this.picture = picture;
    this.frame.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.frame.style.setProperty("--shape", picture.width / picture.height);
    this.element.classList.toggle("empty", false);
    this.clear();
  }

  // Lays the map of a word over the picture; where there is none, says its note.
  look(word) {
    const map = word.maps?.at(-1);
    if (!map) return this.clear(word.learned === false ? unlearned(word.word) : word.note);
    drawHeat(this.canvas, map, this.picture.width, this.picture.height);
    this.element.classList.add("looking");
    this.element.classList.toggle("nowhere", word.made_up >= ABSENT);
    this.said.replaceChildren(sentence(word, map));
  }

  clear(note = "") {
    clearHeat(this.canvas);
    this.element.classList.remove("looking", "nowhere");
    this.said.replaceChildren(note);
  }
}

function sentence({ word, where, made_up }, map) {
  const off = `${percent(made_up)} of its attention was not on the picture`;
  if (made_up >= ABSENT) return `found no place for “${word}”: ${off}`;
  const looked = isEven(map) ? "looked at no part in particular" : "looked at the bright parts";
  const when = `when it ${where === "answer" ? "said" : "read"} “${word}”`;
  return `${looked} ${when}${made_up >= 0.05 ? `; ${off}` : ""}`;
}
