// The form: what a person chooses, as a request of the service, and a request as choices.

import { byId, el } from "./dom.js";
import { currentLanguage, text } from "./texts.js";

const NUMBERS = ["steps", "guidanceScale", "seed"];
const ASPECTS = ["Auto", "1:1", "3:2", "2:3", "4:3", "3:4", "16:9", "9:16", "21:9", "5:4", "4:5"];
const DRAFT = { imageCount: 4, steps: 12, guidanceScale: 1, refine: false };

export class Composer {
  constructor() {
    this.form = byId("composer");
    this.aspect = "Auto";
    this.size = null; // of a request that named one
    this.limits = { prompt: 500 };
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
  offer({ health, samplers, promptLimit }) {
    this.limits.prompt = promptLimit;
    byId("prompt").maxLength = promptLimit;
    fillSelect(byId("model"), health.models, text("auto"));
    fillSelect(byId("sampler"), samplers, `${text("auto")} (${health.optimizations.scheduler})`);
    byId("refiner-field").hidden = health.refiner === null;
    byId("lora-field").hidden = health.loras.length === 0;
    byId("loras").replaceChildren(...health.loras.map(loraRow));
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
    const loras = chosenLoras();
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
    return request;
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

  // Takes over the choices of a request.
  use({ request }) {
    this.reset();
    byId("prompt").value = request.prompt ?? request.refinePrompt ?? "";
    byId("negativePrompt").value = request.negativePrompt ?? "";
    byId("temperature").value = request.temperature ?? 0.8;
    byId("imageCount").value = request.imageCount ?? 1;
    for (const name of NUMBERS) {
      byId(name).value = request[name] ?? "";
    }
    choose(byId("sampler"), request.sampler);
    choose(byId("model"), request.model);
    if (request.width && request.height) {
      this.size = { width: request.width, height: request.height };
      this.aspect = null;
    } else {
      this.aspect = ASPECTS.includes(request.aspectRatio) ? request.aspectRatio : "Auto";
    }
    byId("refine").checked = request.refine !== false;
    byId("handoff").value = request.handoff ?? 0.8;
    for (const { name, weight } of request.loras ?? []) {
      const box = document.querySelector(`#loras input[type=checkbox][value="${CSS.escape(name)}"]`);
      if (box) {
        box.checked = true;
        box.closest(".lora").querySelector("input[type=range]").value = weight ?? 1;
      }
    }
    if (NUMBERS.some((name) => byId(name).value !== "") || request.negativePrompt) {
      byId("advanced").open = true;
    }
    this.#showAspects();
    this.#showValues();
    this.#showCount();
  }

  reset() {
    for (const name of ["negativePrompt", ...NUMBERS]) {
      byId(name).value = "";
    }
    byId("sampler").value = "";
    byId("model").value = "";
    byId("refine").checked = true;
    byId("handoff").value = 0.8;
    for (const box of document.querySelectorAll("#loras input[type=checkbox]")) {
      box.checked = false;
    }
    this.size = null;
    this.aspect ??= "Auto";
    this.#showAspects();
    this.#showValues();
  }

  // Marks the fields that the service has named in an error.
  showError(error, message) {
    const note = byId("composer-error");
    note.hidden = error === null;
    note.textContent = message ?? "";
    for (const field of this.form.querySelectorAll("[aria-invalid]")) {
      field.removeAttribute("aria-invalid");
    }
    for (const { path } of error?.details ?? []) {
      const field = byId(path);
      if (field) {
        field.setAttribute("aria-invalid", "true");
        byId("advanced").open ||= byId("advanced").contains(field);
        field.focus();
      }
    }
  }

  refreshTexts() {
    this.#showAspects();
    this.#showCount();
    this.#showValues();
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
      { class: "chip aspect" },
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
    const left = this.limits.prompt - byId("prompt").value.length;
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
}

function loraRow(name) {
  const weight = el("input", {
    type: "range",
    min: "-1",
    max: "2",
    step: "0.05",
    value: "1",
    "aria-label": `${name}: ${text("strength")}`,
  });
  return el(
    "div",
    { class: "lora" },
    el("label", { class: "check" }, el("input", { type: "checkbox", value: name }), ` ${name}`),
    weight,
  );
}

function chosenLoras() {
  return [...document.querySelectorAll(".lora")]
    .filter((row) => row.querySelector("input[type=checkbox]").checked)
    .map((row) => ({
      name: row.querySelector("input[type=checkbox]").value,
      weight: Number(row.querySelector("input[type=range]").value),
    }));
}

function number(value) {
  return Number(value).toLocaleString(currentLanguage(), { maximumFractionDigits: 2 });
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
