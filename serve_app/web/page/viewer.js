// One picture, large: how it was made, what it was refined from, and what can be done with it.

import { byId, download, el } from "./dom.js";
import { button, fileName, promptOf } from "./board.js";
import { currentLanguage, text } from "./texts.js";

const FACTS = [
  ["model", (picture) => picture.meta.model],
  ["seed", (picture) => picture.seed],
  ["steps", (picture) => picture.meta.steps],
  ["guidance", (picture) => picture.meta.guidanceScale],
  ["sampler", (picture) => picture.meta.sampler],
];

export class Viewer {
  constructor(board, { onUse, onRefine, onPromote }) {
    this.board = board;
    this.handlers = { onUse, onRefine, onPromote };
    this.dialog = byId("viewer");
    this.picture = null;
    this.dialog.addEventListener("close", () => this.board.focus(this.picture));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) {
        this.dialog.close();
      }
    });
    this.dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !event.target.matches("input, textarea")) {
        this.#go(step);
      }
    });
  }

  // Shows a picture; with `refines`, its form for a refinement has the focus.
  open(picture, { refines = false } = {}) {
    this.picture = picture;
    const base = picture.base === null ? null : this.board.picture(picture.base);
    this.dialog.replaceChildren(
      el("div", { class: "stage" }, base ? this.#compare(base) : this.#image(picture)),
      el("div", { class: "side" }, this.#side(base)),
    );
    if (!this.dialog.open) {
      this.dialog.showModal();
    }
    (refines ? byId("refine-prompt") : this.dialog.querySelector(".close")).focus();
  }

  #go(step) {
    const next = this.board.neighbour(this.picture, step);
    if (next !== null) {
      this.open(next);
    }
  }

  #image(picture) {
    const image = el("img", { src: this.board.url(picture), alt: promptOf(picture) });
    return shaped(image, picture);
  }

  // Both pictures in one place, with a handle that moves the line between them.
  #compare(base) {
    const box = shaped(el("div", { class: "compare" }), this.picture);
    const slider = el("input", {
      type: "range",
      min: "0",
      max: "100",
      value: "50",
      "aria-label": text("compare"),
      oninput: () => box.style.setProperty("--at", `${slider.value}%`),
    });
    box.style.setProperty("--at", "50%");
    const after = this.#image(this.picture);
    after.className = "after";
    box.append(
      this.#image(base),
      after,
      el("span", { class: "tag left" }, text("before")),
      el("span", { class: "tag right" }, text("after")),
      el("span", { class: "line", "aria-hidden": "true" }),
      slider,
    );
    return box;
  }

  #side(base) {
    const { picture } = this;
    const title = promptOf(picture);
    const warnings = (picture.meta.warnings ?? []).map((warning) => el("li", {}, warning));
    return [
      el(
        "div",
        { class: "side-top" },
        this.#step("previous", "←", -1),
        this.#step("next", "→", 1),
        button("remove", "delete quiet", () => this.#close(() => this.board.delete(picture))),
        el("button", {
          type: "button",
          class: "close quiet",
          "aria-label": text("close"),
          textContent: "✕",
          onclick: () => this.dialog.close(),
        }),
      ),
      el("h2", { id: "viewer-title" }, title),
      base ? el("p", { class: "note" }, `${text("before")}: ${promptOf(base)}`) : null,
      el(
        "div",
        { class: "side-actions" },
        picture.draft
          ? button("promote", "promote primary", () => this.#close(() => this.handlers.onPromote(picture)))
          : null,
        button("use", picture.draft ? "" : "primary", () =>
          this.#close(() => this.handlers.onUse(picture)),
        ),
        button("download", "", () => download(picture.blob, fileName(picture))),
      ),
      this.#refineForm(),
      el("h3", {}, text("details")),
      el("dl", { class: "facts" }, this.#facts()),
      warnings.length ? el("ul", { class: "warnings" }, warnings) : null,
    ];
  }

  #step(name, sign, step) {
    return el("button", {
      type: "button",
      class: "quiet",
      "aria-label": text(name),
      textContent: sign,
      disabled: this.board.neighbour(this.picture, step) === null,
      onclick: () => this.#go(step),
    });
  }

  #close(run) {
    this.dialog.close();
    run();
  }

  #refineForm() {
    const strength = el("input", {
      id: "strength",
      type: "range",
      min: "0.05",
      max: "1",
      step: "0.05",
      value: "0.6",
    });
    const value = el("output", { for: "strength" }, shown(0.6));
    strength.addEventListener("input", () => {
      value.textContent = Number(strength.value).toLocaleString(currentLanguage());
    });
    const prompt = el("textarea", { id: "refine-prompt", rows: 2, required: true });
    return el(
      "form",
      {
        class: "refine",
        onsubmit: (event) => {
          event.preventDefault();
          const words = prompt.value.trim();
          if (words) {
            this.#close(() => this.handlers.onRefine(this.picture, words, Number(strength.value)));
          } else {
            prompt.focus();
          }
        },
      },
      el("h3", {}, text("refineTitle")),
      el("label", { for: "refine-prompt" }, text("refinePrompt")),
      prompt,
      el("label", { for: "strength" }, `${text("strength")} `, value),
      strength,
      el("button", { type: "submit" }, text("refine")),
    );
  }

  #facts() {
    const { picture } = this;
    const size = `${picture.width} × ${picture.height}`;
    const facts = FACTS.map(([name, of]) => [text(name), of(picture)]);
    return [...facts, [text("size"), size]]
      .filter(([, value]) => value !== null && value !== undefined)
      .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, shown(value))]);
  }
}

// Gives an element the shape of a picture.
function shaped(element, { width, height }) {
  element.style.setProperty("--ratio", width / height);
  return element;
}

// A seed is a name rather than an amount, so it has no separators.
function shown(value) {
  const isAmount = typeof value === "number" && value < 1000;
  return isAmount ? value.toLocaleString(currentLanguage()) : String(value);
}
