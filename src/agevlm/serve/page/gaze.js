// Which word is looked at: for a moment the one that is hovered or focused, else the one that is pinned. Words are
// spots of a turn, as turns.js makes them.

export class Gaze {
  constructor(onChange) {
    this.onChange = onChange;
    this.peeked = this.pinned = null;
    this.chosen = false; // whether the user pinned the word, and not the page
  }

  get spot() {
    return this.peeked ?? this.pinned;
  }

  // What a word says of itself: "peek", "leave" or "pin". A second click on a word that the user pinned lets it go.
  tell(spot, how) {
    if (how === "peek") this.peeked = spot;
    else if (how === "pin") this.set(this.chosen && this.pinned === spot ? null : spot, true);
    else if (this.peeked === spot) this.peeked = null;
    this.onChange();
  }

  // Pins a word without the user.
  show(spot) {
    this.pinned = spot;
    this.chosen = false;
    this.onChange();
  }

  release() {
    this.set(null, false);
    this.onChange();
  }

  set(pinned, chosen) {
    Object.assign(this, { peeked: null, pinned, chosen });
  }
}
