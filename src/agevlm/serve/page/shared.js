// Runs in a shared file alone: shows the turns that it holds.

import { Stage } from "./stage.js";
import { Turn } from "./turns.js";
import { walkWords } from "./words.js";

function showShared() {
  const root = document.getElementById("shared");
  for (const held of JSON.parse(document.getElementById("data").textContent)) {
    const models = held.answers.map((answer) => answer.model);
    const stages = models.map((model) => new Stage(model));
    let pinned = null;
    const onWord = (_, shown, button, how) => {
      if (how === "pin") {
        pinned = pinned?.button === button ? null : { button, shown };
        root.querySelectorAll("button.word").forEach((one) => one.setAttribute("aria-pressed", one === pinned?.button));
      }
      const now = how === "peek" && shown ? shown : pinned?.shown;
      stages.forEach((stage, number) => (now?.[number] ? stage.look(now[number]) : stage.clear()));
    };
    const turn = new Turn(held.picture, held.question, models, onWord);
    turn.answers.forEach((answer, number) => Object.assign(answer, held.answers[number]));
    turn.draw();
    const see = document.createElement("div");
    see.className = "stages";
    see.append(...stages.map((stage) => stage.element));
    stages.forEach((stage) => stage.show(held.picture));
    const section = document.createElement("section");
    section.append(see, turn.element);
    root.append(section);
    turn.firstWord()?.click();
  }
  walkWords(root);
}

if (document.getElementById("shared")) showShared();
