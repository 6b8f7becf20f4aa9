// A turn: a question about a picture, and the answer of each model, with words that show where it looked.

import { fillText, markWord, shortName, wordButton } from "./words.js";

export class Turn {
  // `onWord(spot, how)` is told of a word that is looked at: {turn, word, answer, button}, and no answer for a word of
  // the question. The words of an answer ({word, where, start, end, learned, made_up, maps}) may be replaced by those
  // of another layer: a spot stays, and `mark` brings its score up to date. `isOld(answer)` says whether that is still to
  // be done.
  constructor(picture, question, models, onWord, isOld = () => false) {
    this.picture = picture;
    this.question = question;
    this.onWord = onWord;
    this.isOld = isOld;
    this.spots = [];
    this.answers = models.map((model) => ({ model, text: "", words: [], state: "waiting" }));
    this.element = document.createElement("article");
    this.element.className = "turn";
    this.asked = document.createElement("p");
    this.asked.className = "question";
    const said = document.createElement("div");
    said.className = "answers";
    said.append(...this.answers.map((answer) => this.answerElement(answer)));
    this.element.append(this.asked, said);
    this.draw();
  }

  answerElement(answer) {
    answer.element = document.createElement("div");
    answer.element.className = "answer";
    if (this.answers.length > 1) {
      const name = document.createElement("h3");
      name.title = answer.model;
      name.append(shortName(answer.model));
      answer.element.append(name);
    }
    answer.body = document.createElement("p");
    answer.element.append(answer.body);
    return answer.element;
  }

  draw() {
    this.drawQuestion();
    this.answers.forEach((answer) => this.drawAnswer(answer));
  }

  drawQuestion() {
    const read = this.answers.flatMap((answer) => answer.words.filter((word) => word.where === "question"));
    const distinct = [...new Map(read.map((word) => [word.start, word])).values()];
    this.fill(this.asked, this.question, distinct, null);
  }

  drawAnswer(answer) {
    answer.element.dataset.state = answer.state;
    const said = answer.words.filter((word) => word.where === "answer");
    const text = answer.state === "done" && !answer.text ? "(no answer)" : answer.text;
    this.fill(answer.body, text, said, answer);
    if (answer.state === "failed") this.say(answer, "failed", "alert", answer.error);
    if (answer.notice) this.say(answer, "strange", "note", answer.notice);
    if (answer.state === "stopped") answer.body.append(" …");
  }

  say(answer, className, role, text) {
    const said = document.createElement("span");
    said.className = className;
    said.setAttribute("role", role);
    said.append(text);
    answer.body.append(said);
  }

  fill(element, text, words, answer) {
    this.spots = this.spots.filter((spot) => spot.answer !== answer);
    fillText(element, text, words, (written, word) => {
      const spot = { turn: this, word, answer };
      spot.button = wordButton(written, (how) => this.onWord(spot, how));
      this.spots.push(spot);
      return spot.button;
    });
    this.mark();
  }

  // Says of each word whether it found a place. A word of the question has a score of each model, which is named.
  mark() {
    for (const spot of this.spots) {
      const named = !spot.answer && this.answers.length > 1;
      const owners = spot.answer ? [spot.answer] : this.answers;
      const score = (one) => ({ ...find(one, spot), model: named ? one.model : undefined, old: this.isOld(one) });
      markWord(spot.button, owners.map(score));
    }
  }

  // Shows as pressed the word that is pinned, if it is one of this turn, and the same word of other answers.
  press(pinned) {
    const also = (spot) => pinned?.turn === this && pinned.answer && spot.answer && find(spot.answer, pinned);
    for (const spot of this.spots) {
      const pressed = spot === pinned || also(spot)?.start === spot.word.start;
      spot.button.setAttribute("aria-pressed", pressed);
    }
  }

  // For each model its own word at a spot, or a note that says why there is none.
  shown(spot) {
    return this.answers.map((one) => find(one, spot) ?? { note: missing(one, spot) });
  }

  // What is shown when the answers are there: a word that all of them say, else the first that one says, else the
  // first of the question.
  firstSpot() {
    const said = this.spots.filter((spot) => spot.answer).sort((a, b) => this.place(a) - this.place(b));
    const byAll = said.find((spot) => this.answers.every((one) => find(one, spot)));
    return byAll ?? said[0] ?? this.spots[0];
  }

  // Answers one after another, whichever was there first; the words of one stand in order.
  place(spot) {
    return this.answers.indexOf(spot.answer);
  }
}

// The word of one answer at a spot: one of the question is the same for all, one of an answer is whoever says it too.
function find(one, { word, answer }) {
  const here = one.words.find(({ where, start }) => where === word.where && start === word.start);
  if (!answer || one === answer || here?.word === word.word) return here;
  return one.words.find((other) => other.where === word.where && other.word === word.word);
}

function missing(one, { word, answer }) {
  if (["waiting", "writing"].includes(one.state)) return "is still writing";
  if (one.state !== "done") return "did not finish its answer";
  if (one.blind) return "cannot show where it looks";
  return answer ? `did not say “${word.word}”` : `has no map of “${word.word}”`;
}
