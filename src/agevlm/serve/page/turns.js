// A turn: a question about a picture, and the answer of each model, with words that show where it looked.

import { fillText } from "./words.js";

export class Turn {
  // `onWord(turn, shown, how)` gets the word to be shown for each model, or null for none.
  constructor(picture, question, models, onWord) {
    this.picture = picture;
    this.question = question;
    this.onWord = onWord;
    this.answers = models.map((model) => ({ model, text: "", words: [], state: "waiting" }));
    this.element = document.createElement("article");
    this.element.className = "turn";
    this.asked = document.createElement("p");
    this.asked.className = "question";
    const said = document.createElement("div");
    said.className = "answers";
    for (const answer of this.answers) {
      answer.element = document.createElement("div");
      answer.element.className = "answer";
      if (models.length > 1) {
        const name = document.createElement("h3");
        name.append(answer.model);
        answer.element.append(name);
      }
      answer.body = document.createElement("p");
      answer.element.append(answer.body);
      said.append(answer.element);
    }
    this.element.append(this.asked, said);
    this.draw();
  }

  draw() {
    const heard = this.answers.flatMap((answer) => answer.words.filter((word) => word.where === "question"));
    const distinct = [...new Map(heard.map((word) => [word.start, mostAbsent(heard, word)])).values()];
    fillText(this.asked, this.question, distinct, (word, button, how) => this.say(word, null, button, how));
    for (const answer of this.answers) this.drawAnswer(answer);
  }

  drawAnswer(answer) {
    answer.element.dataset.state = answer.state;
    const said = answer.words.filter((word) => word.where === "answer");
    const text = answer.state === "done" && !answer.text ? "(no answer)" : answer.text;
    fillText(answer.body, text, said, (word, button, how) => this.say(word, answer, button, how));
    if (answer.state === "failed") {
      const failed = document.createElement("span");
      failed.className = "failed";
      failed.setAttribute("role", "alert");
      failed.append(answer.error);
      answer.body.append(failed);
    }
    if (answer.state === "stopped") answer.body.append(" …");
  }

  // A word of the question is shown for all models, one of an answer for its own, and for others that say it too.
  say(word, answer, button, how) {
    const shown = this.answers.map((one) => {
      if (!word) return null;
      if (one === answer) return word;
      const same = (w) => w.word === word.word && (answer || w.start === word.start);
      return one.words.find((w) => w.where === word.where && same(w)) ?? one.words.find((w) => w.word === word.word) ?? null;
    });
    this.onWord(this, word && shown, button, how);
  }

  // The word that is shown when the answer is there: the first of the answer, else of the question.
  firstWord() {
    return this.element.querySelector(".answer button.word") ?? this.element.querySelector("button.word");
  }
}

function mostAbsent(words, word) {
  const same = words.filter((other) => other.start === word.start);
  return same.reduce((most, other) => ((other.made_up ?? 0) > (most.made_up ?? 0) ? other : most), word);
}
