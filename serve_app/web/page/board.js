// The moodboard: pictures that are being made, and those that this browser keeps.

import { byId, download, el, toast } from "./dom.js";
import { duration, text } from "./texts.js";

const TICK_MS = 1000;

export class Board {
  // `onOpen` gets a picture that is chosen; `actions` has what its tile's buttons do.
  constructor(gallery, { onOpen, onRefine, onPromote }) {
    this.gallery = gallery;
    this.handlers = { onOpen, onRefine, onPromote };
    this.pictures = []; // newest first
    this.running = new Set(); // tiles whose pictures are not there: running, or failed
    this.urls = new Map(); // by the id of a picture
    this.list = byId("tiles");
  }

  async load() {
    this.pictures = await this.gallery.all();
    this.list.replaceChildren(...this.pictures.map((picture) => this.#tile(picture)));
    this.#count();
  }

  picture(id) {
    return this.pictures.find((picture) => picture.id === id) ?? null;
  }

  neighbour(picture, step) {
    return this.pictures[this.pictures.indexOf(picture) + step] ?? null;
  }

  url(picture) {
    if (!this.urls.has(picture.id)) {
      this.urls.set(picture.id, URL.createObjectURL(picture.blob));
    }
    return this.urls.get(picture.id);
  }

  // Adds tiles for the pictures of a job, and returns them in the order of its images.
  begin(job, count, ratio) {
    const tiles = Array.from({ length: count }, () => new RunningTile(job, ratio));
    tiles.forEach((tile) => this.running.add(tile));
    this.list.prepend(...tiles.map((tile) => tile.element));
    this.#count();
    return tiles;
  }

  // Puts a picture where its running tile was.
  async finish(tile, picture) {
    this.pictures.unshift(picture);
    const made = this.#tile(picture);
    tile.element.replaceWith(made);
    this.#end(tile);
    try {
      await this.gallery.put(picture);
    } catch {
      toast(text("storage"));
    }
    return made;
  }

  async delete(picture) {
    await this.gallery.delete(picture.id);
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.#element(picture)?.remove();
    this.#count();
    toast(text("removed"), {
      label: text("undo"),
      run: async () => {
        await this.gallery.put(picture);
        await this.load();
      },
    });
  }

  saveAll() {
    for (const picture of this.pictures) {
      download(picture.blob, fileName(picture));
    }
  }

  focus(picture) {
    this.#element(picture)?.querySelector(".open").focus();
  }

  refreshTexts() {
    this.running.forEach((tile) => tile.show());
    const running = [...this.list.querySelectorAll(".running, .failed")];
    this.list.replaceChildren(...running, ...this.pictures.map((picture) => this.#tile(picture)));
    this.#count();
  }

  discard(tile) {
    tile.element.remove();
    this.#end(tile);
  }

  #end(tile) {
    tile.end();
    this.running.delete(tile);
    this.#count();
  }

  #element(picture) {
    return this.list.querySelector(`[data-id="${CSS.escape(picture.id)}"]`);
  }

  #count() {
    const count = this.pictures.length;
    byId("board-count").textContent =
      count === 0 ? "" : text(count === 1 ? "countOne" : "count", { n: count });
    byId("download-all").hidden = count === 0;
    byId("empty").hidden = this.list.childElementCount > 0;
  }

  #tile(picture) {
    const prompt = promptOf(picture);
    const image = el("img", {
      src: this.url(picture),
      alt: prompt,
      width: picture.width,
      height: picture.height,
      loading: "lazy",
      decoding: "async",
    });
    const buttons = [
      picture.draft &&
        button("promote", "primary small", () => this.handlers.onPromote(picture)),
      button("refine", "small", () => this.handlers.onRefine(picture)),
      button("download", "small", () => download(picture.blob, fileName(picture))),
    ];
    return el(
      "li",
      { class: "tile", "data-id": picture.id },
      el(
        "button",
        {
          type: "button",
          class: "open",
          "aria-label": text("open", { prompt }),
          onclick: () => this.handlers.onOpen(picture),
        },
        image,
      ),
      picture.draft ? el("span", { class: "badge" }, text("draftBadge")) : null,
      el("div", { class: "tile-actions" }, buttons.filter(Boolean)),
    );
  }
}

// A picture that is being made.
class RunningTile {
  constructor(job, ratio) {
    this.eta = null; // when it will be done, as far as is known
    this.status = el("p", { class: "status" });
    this.image = el("img", { class: "preview", alt: "", hidden: true });
    this.bar = el("progress", {
      max: 1,
      value: 0,
      "aria-label": text("generate"),
      "data-label": "generate",
    });
    this.stop = button("cancel", "small", () => job.cancel());
    this.frame = el("div", { class: "frame" }, this.image);
    this.frame.style.aspectRatio = String(ratio);
    this.element = el(
      "li",
      { class: "tile running", "aria-busy": "true" },
      this.frame,
      el("div", { class: "under" }, this.bar, el("div", { class: "line" }, this.status, this.stop)),
    );
    this.words = () => ""; // in the language of the moment
    this.timer = setInterval(() => this.show(), TICK_MS);
  }

  queued({ position, etaMs }) {
    this.#expect(etaMs);
    this.words = () => text("queued", { position });
    this.show();
  }

  progress({ stage, step, of, etaMs }) {
    this.#expect(etaMs);
    this.bar.value = of ? step / of : 0;
    this.words = () => text(stage === "refiner" ? "progressRefiner" : "progress", { step, of });
    this.show();
  }

  preview(blob) {
    URL.revokeObjectURL(this.image.src);
    this.image.src = URL.createObjectURL(blob);
    this.image.hidden = false;
  }

  finishing() {
    this.bar.value = 1;
    this.say(() => text("finishing"));
  }

  say(words) {
    this.eta = null;
    this.words = words;
    this.show();
  }

  // Counts down the seconds that are left of a wait, and says why; 0 ends it.
  wait(left, seconds, words) {
    this.bar.value = left > 0 ? 1 - left / seconds : 0;
    this.frame.dataset.left = left;
    this.element.classList.toggle("waiting", left > 0);
    this.say(words);
  }

  // Says what went wrong, and what can be done.
  fail(message, actions) {
    clearInterval(this.timer);
    this.element.className = "tile failed";
    this.element.removeAttribute("aria-busy");
    this.bar.remove();
    this.stop.remove();
    this.status.setAttribute("role", "alert"); // first, so that the text is announced
    this.say(message);
    this.status.after(el("div", { class: "tile-buttons" }, actions));
  }

  end() {
    clearInterval(this.timer);
    URL.revokeObjectURL(this.image.src);
  }

  #expect(etaMs) {
    this.eta = etaMs === null || etaMs === undefined ? null : performance.now() + etaMs;
  }

  show() {
    const left = this.eta === null ? null : this.eta - performance.now();
    const about = left === null ? "" : ` · ${text("eta", { eta: duration(left) })}`;
    this.status.textContent = this.words() + about;
  }
}

export function button(name, kind, run) {
  const props = { type: "button", class: kind, "data-text": name, onclick: run };
  return el("button", props, text(name));
}

export function promptOf(picture) {
  return picture.request.prompt ?? picture.request.refinePrompt ?? "";
}

export function fileName(picture) {
  const words = promptOf(picture).toLowerCase().normalize("NFKD").replace(/[^a-z0-9]+/g, "-");
  const short = words.replace(/^-+|-+$/g, "").slice(0, 40).replace(/-+$/, "");
  return `aura-${short || "picture"}-${picture.seed ?? picture.id.slice(0, 8)}.png`;
}
