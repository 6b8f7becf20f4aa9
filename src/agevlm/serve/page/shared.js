// Runs in a shared file alone: shows the turns that it holds, each answer under the picture of its model.

import { Gaze } from "./gaze.js";
import { Stage } from "./stage.js";
import { Turn } from "./turns.js";
import { walkWords } from "./words.js";

function showShared(root) {
  const { of, turns } = JSON.parse(document.getElementById("data").textContent);
  if (of) root.append(sharedOf(of));
  root.append(...turns.map(sharedTurn));
  walkWords(root);
}

function sharedOf(of) {
  const textContent = `Maps and figures are of ${of}.`;
  return Object.assign(document.createElement("p"), { className: "of", textContent });
}

function sharedTurn({ picture, question, answers }) {
  const models = answers.map(({ model }) => model);
  const stages = models.map((model) => new Stage(model));
  stages.forEach((stage) => stage.show(picture));
  const turn = new Turn(picture, question, models, (spot, how) => gaze.tell(spot, how));
  turn.answers.forEach((answer, number) => Object.assign(answer, answers[number]));
  turn.draw();
  const gaze = new Gaze(() => {
    const shown = gaze.spot && turn.shown(gaze.spot);
    turn.press(gaze.pinned);
    stages.forEach((stage, number) => (shown ? stage.look(shown[number]) : stage.clear()));
  });
  if (turn.firstSpot()) gaze.show(turn.firstSpot());
  const columns = document.createElement("div");
  columns.className = "stages";
  columns.append(...turn.answers.map(({ element }, number) => {
    const column = document.createElement("div");
    column.append(stages[number].element, element);
    return column;
  }));
  const section = document.createElement("section");
  section.className = "turn";
  section.append(turn.asked, columns);
  return section;
}

if (document.getElementById("shared")) showShared(document.getElementById("shared"));
