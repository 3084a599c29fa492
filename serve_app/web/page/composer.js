// The form: what a person chooses, as a request of the service, and a request as choices.

import { byId, el } from "./dom.js";
import { LoraList } from "./loras.js";
import { currentLanguage, text } from "./texts.js";

const NUMBERS = ["steps", "guidanceScale", "seed"];
const ASPECTS = ["Auto", "1:1", "21:9", "5:4", "4:3", "3:2", "16:9", "4:5", "3:4", "2:3", "9:16"];
const UNSHOWN = ["guidanceInterval", "cache"]; // fields of a request that the form only keeps
const DRAFT = { imageCount: 4, steps: 12, guidanceScale: 1, refine: false };

export class Composer {
  constructor() {
    this.form = byId("composer");
    this.aspect = "Auto";
    this.size = null; // of a request that named one
    this.promptLimit = 500;
    this.sides = null;
    this.kept = {};
    this.problems = []; // functions that say what is shown of them
    this.loras = new LoraList();
    this.offered = ""; // as the selects show it
    this.#showAspects();
    for (const slider of ["temperature", "handoff"]) {
      byId(slider).addEventListener("input", () => this.#showValues());
    }
    byId("prompt").addEventListener("input", () => this.#showCount());
    byId("reset").addEventListener("click", () => this.reset());
    this.#showValues();
    this.#showCount();
  }

  // Offers what this service has: models, LoRAs, samplers, a refiner.
  offer({ health, samplers, promptLimit, sides }) {
    const { models, loras, refiner, optimizations } = health;
    const offered = JSON.stringify([
      currentLanguage(), models, loras, refiner, optimizations, samplers, promptLimit, sides,
    ]);
    if (offered === this.offered) {
      return; // an open list stays open
    }
    this.offered = offered;
    this.promptLimit = promptLimit;
    this.sides = sides;
    byId("prompt").maxLength = promptLimit;
    fillSelect(byId("model"), models, text("auto"));
    fillSelect(byId("sampler"), samplers, `${text("auto")} (${optimizations.scheduler})`);
    byId("refiner-field").hidden = refiner === null;
    this.loras.offer(loras);
    this.#showCount();
  }

  // Returns the request, or null with the reason shown if there is no prompt.
  request() {
    const prompt = byId("prompt").value.trim();
    if (!prompt) {
      byId("prompt").focus();
      return null;
    }
    const request = { prompt, temperature: Number(byId("temperature").value) };
    if (this.size === null) {
      request.aspectRatio = this.aspect;
    } else {
      Object.assign(request, this.size);
    }
    request.imageCount = clamp(Number(byId("imageCount").value) || 1, 1, 8);
    const negative = byId("negativePrompt").value.trim();
    if (negative) {
      request.negativePrompt = negative;
    }
    for (const name of NUMBERS) {
      const value = byId(name).value;
      if (value !== "") {
        request[name] = Number(value);
      }
    }
    for (const name of ["sampler", "model"]) {
      if (byId(name).value) {
        request[name] = byId(name).value;
      }
    }
    const loras = this.loras.chosen();
    if (loras.length) {
      request.loras = loras;
    }
    if (!byId("refiner-field").hidden) {
      if (!byId("refine").checked) {
        request.refine = false;
      } else {
        request.handoff = Number(byId("handoff").value);
      }
    }
    return { ...request, ...this.kept };
  }

  // Returns the request for drafts: quick, and without guidance.
  draftRequest() {
    const request = this.request();
    if (request === null) {
      return null;
    }
    const { temperature: _, negativePrompt: __, handoff: ___, ...rest } = request;
    return { ...rest, ...DRAFT };
  }

  // Takes over the choices of a request; returns a sentence for each that can't be had here.
  use({ request, route = "/generate" }) {
    this.reset();
    const missing = [];
    const miss = (what, name = "") => missing.push(() => text(`not_${what}`, { name }));
    byId("prompt").value = request.prompt ?? request.refinePrompt ?? "";
    byId("negativePrompt").value = request.negativePrompt ?? "";
    byId("temperature").value = request.temperature ?? 0.8;
    byId("imageCount").value = request.imageCount ?? 1;
    for (const name of NUMBERS) {
      byId(name).value = request[name] ?? "";
    }
    for (const field of ["sampler", "model"]) {
      if (!choose(byId(field), request[field])) {
        miss(field, request[field]);
      }
    }
    const { width, height } = request;
    if (width && height && this.#canDraw(width, height)) {
      this.size = { width, height };
      this.aspect = null;
    } else if (width && height) {
      this.aspect = nearestAspect(width / height);
      miss("size", `${width} × ${height}`);
    } else {
      this.aspect = ASPECTS.includes(request.aspectRatio) ? request.aspectRatio : "Auto";
    }
    byId("refine").checked = request.refine !== false;
    byId("handoff").value = request.handoff ?? 0.8;
    this.loras.choose(request.loras ?? []).forEach((name) => miss("lora", name));
    if (route === "/refine") {
      miss("base");
    }
    for (const field of UNSHOWN.filter((name) => request[name] !== undefined)) {
      this.kept[field] = request[field];
    }
    const isAdvanced = NUMBERS.some((name) => byId(name).value !== "");
    byId("advanced").open ||= isAdvanced || Boolean(request.negativePrompt || request.loras?.length);
    this.refreshTexts();
    this.showProblems(missing.length ? [() => text("notTaken"), ...missing] : []);
    return missing;
  }

  reset() {
    for (const name of ["negativePrompt", ...NUMBERS]) {
      byId(name).value = "";
    }
    byId("sampler").value = "";
    byId("model").value = "";
    byId("refine").checked = true;
    byId("handoff").value = 0.8;
    this.loras.choose([]);
    this.kept = {};
    this.showProblems([]);
    this.size = null;
    this.aspect ??= "Auto";
    this.refreshTexts();
  }

  // Marks the fields that the service has named in an error, and says what is wrong with each.
  showError(error) {
    for (const field of this.form.querySelectorAll("[aria-invalid]")) {
      field.removeAttribute("aria-invalid");
    }
    const details = error?.details ?? [];
    for (const { path } of details) {
      const field = byId(path);
      if (field) {
        field.setAttribute("aria-invalid", "true");
        byId("advanced").open ||= byId("advanced").contains(field);
        field.focus();
      }
    }
    const problems = details.map(({ path, message }) => {
      const problem = problemOf(byId(path)) ?? (() => message);
      return () => `${labelOf(path)}: ${problem()}`;
    });
    const all = problems.length ? problems : [() => error.message];
    this.showProblems(error ? [() => text("checkFields"), ...all] : [], true);
  }

  // Shows a sentence with the points that belong to it; without any, shows nothing. Each is given by
  // a function, since the language may change while it is shown.
  showProblems(sentences, refused = false) {
    this.problems = sentences;
    const note = byId("composer-error");
    note.classList.toggle("refused", refused);
    note.hidden = sentences.length === 0;
    this.#showProblemTexts();
  }

  #showProblemTexts() {
    const [sentence = "", ...points] = this.problems.map((words) => words());
    byId("composer-error").replaceChildren(
      el("p", {}, sentence),
      el("ul", {}, points.map((point) => el("li", {}, point))),
    );
  }

  refreshTexts() {
    this.#showAspects();
    this.#showCount();
    this.#showValues();
    const kept = Object.entries(this.kept).map(([name, value]) => `${name} ${[value].flat().join(", ")}`);
    byId("kept").hidden = kept.length === 0;
    byId("kept").textContent = text("alsoKept", { names: kept.join(", ") });
    this.#showProblemTexts();
  }

  #canDraw(...sides) {
    const { minimum = 0, maximum = Infinity, multipleOf = 1 } = this.sides ?? {};
    return sides.every((side) => side >= minimum && side <= maximum && side % multipleOf === 0);
  }

  #showAspects() {
    const options = this.size === null ? ASPECTS : [null, ...ASPECTS];
    byId("aspects").replaceChildren(...options.map((name) => this.#aspect(name)));
  }

  #aspect(name) {
    const label = name === null ? `${this.size.width} × ${this.size.height}` : name;
    const [width, height] = shape(name === null ? `${this.size.width}:${this.size.height}` : name);
    const outline = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    outline.setAttribute("viewBox", "0 0 24 24");
    outline.setAttribute("aria-hidden", "true");
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({
      x: 12 - width / 2,
      y: 12 - height / 2,
      width,
      height,
      rx: 2,
    })) {
      box.setAttribute(key, value);
    }
    outline.append(box);
    const isChosen = name === this.aspect;
    return el(
      "label",
      { class: `chip aspect ${{ Auto: "named", null: "own" }[name] ?? ""}` },
      el("input", {
        type: "radio",
        name: "aspectRatio",
        value: name ?? "",
        checked: isChosen,
        onchange: () => {
          this.aspect = name;
          if (name !== null) {
            this.size = null;
          }
        },
      }),
      outline,
      el("span", {}, name === "Auto" ? text("auto") : label),
    );
  }

  #showValues() {
    byId("temperature-value").textContent = number(byId("temperature").value);
    byId("handoff-value").textContent = number(byId("handoff").value);
  }

  #showCount() {
    const left = this.promptLimit - byId("prompt").value.length;
    byId("prompt-count").textContent = left < 100 ? String(left) : "";
  }
}

function shape(ratio) {
  const [a, b] = ratio === "Auto" ? [1, 1] : ratio.split(":").map(Number);
  return a > b ? [20, (20 * b) / a] : [(20 * a) / b, 20];
}

function fillSelect(select, names, automatic) {
  const chosen = select.value;
  const options = names.map((name) => el("option", { value: name }, name));
  select.replaceChildren(el("option", { value: "" }, automatic), ...options);
  choose(select, chosen);
}

function choose(select, value) {
  const known = [...select.options].some((option) => option.value === value);
  select.value = known ? value : "";
  return known || !value;
}

function nearestAspect(ratio) {
  const distance = (name) => {
    const [a, b] = name.split(":").map(Number);
    return Math.abs(Math.log(a / b / ratio));
  };
  return ASPECTS.slice(1).reduce((best, name) => (distance(name) < distance(best) ? name : best));
}

// Returns what the form calls a field of the service; its own name where the form has none.
function labelOf(path) {
  const label = document.querySelector(`label[for="${CSS.escape(path)}"]`);
  return label?.querySelector("[data-text]")?.textContent ?? label?.textContent ?? path;
}

// Returns what says how a field's number is wrong, in the language of the moment; null if the page
// can't tell.
function problemOf(field) {
  const { rangeOverflow, rangeUnderflow, stepMismatch } = field?.validity ?? {};
  if (rangeOverflow || rangeUnderflow) {
    return () => text("mustBeBetween", { min: number(field.min), max: number(field.max) });
  }
  return stepMismatch && !field.step ? () => text("mustBeWhole") : null;
}

function number(value) {
  return Number(value).toLocaleString(currentLanguage(), { maximumFractionDigits: 2 });
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
