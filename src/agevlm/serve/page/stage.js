// A picture with the heat map of one word over it, and a line that says in words what it shows.

import { clearHeat, drawHeat, peak } from "./heat.js";
import { ABSENT, percent } from "./words.js";

export class Stage {
  constructor(name) {
    this.element = document.createElement("figure");
    this.element.className = "stage empty";
    this.frame = document.createElement("div");
    this.frame.className = "frame";
    this.image = document.createElement("img");
    this.image.alt = "";
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    this.frame.append(this.image, this.canvas);
    this.caption = document.createElement("figcaption");
    this.name = document.createElement("strong");
    this.name.append(name);
    this.said = document.createElement("span");
    this.caption.append(this.name, this.said);
    this.element.append(this.frame, this.caption);
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

  // Lays the map of a word over the picture.
  look(word) {
    const map = word?.maps?.at(-1);
    if (!map) return this.clear();
    drawHeat(this.canvas, map, this.picture.width, this.picture.height);
    this.element.classList.add("looking");
    const absent = word.made_up !== null && word.made_up >= ABSENT;
    this.element.classList.toggle("nowhere", absent);
    this.said.replaceChildren(said(word, map, absent));
  }

  clear() {
    clearHeat(this.canvas);
    this.element.classList.remove("looking", "nowhere");
    this.said.replaceChildren("");
  }
}

function said(word, map, absent) {
  if (absent) return `“${word.word}” found no place here · ${percent(word.made_up)}`;
  const made = word.made_up >= 0.05 ? ` · ${percent(word.made_up)} found no place` : "";
  return `“${word.word}” · ${percent(peak(map))} in the brightest cell${made}`;
}
