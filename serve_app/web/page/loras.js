// The LoRAs that this service has, each with a switch and a weight.

import { byId, el } from "./dom.js";
import { currentLanguage, text } from "./texts.js";

const WEIGHT = { min: -2, max: 2, step: 0.05, value: 1 };

export class LoraList {
  constructor() {
    this.rows = new Map(); // by name
  }

  // Offers these names. What was chosen of them stays chosen.
  offer(names) {
    const chosen = this.chosen();
    this.rows = new Map(names.map((name) => [name, row(name)]));
    byId("lora-field").hidden = names.length === 0;
    byId("loras").replaceChildren(...[...this.rows.values()].map(({ element }) => element));
    this.choose(chosen);
  }

  chosen() {
    return [...this.rows]
      .filter(([, { box }]) => box.checked)
      .map(([name, { weight }]) => ({ name, weight: Number(weight.value) }));
  }

  // Switches on exactly these LoRAs; returns the names of those that are not here.
  choose(loras) {
    for (const { box, show } of this.rows.values()) {
      box.checked = false;
      show();
    }
    const missing = [];
    for (const { name, weight } of loras) {
      const found = this.rows.get(name);
      if (found) {
        found.box.checked = true;
        found.weight.value = weight ?? WEIGHT.value;
        found.show();
      } else {
        missing.push(name);
      }
    }
    return missing;
  }
}

function row(name) {
  const box = el("input", { type: "checkbox", value: name });
  const shown = el("output");
  const weight = el("input", { type: "range", ...WEIGHT, "aria-label": text("loraWeight", { name }) });
  const show = () => {
    weight.disabled = !box.checked;
    shown.textContent = Number(weight.value).toLocaleString(currentLanguage(), {
      minimumFractionDigits: 2,
    });
  };
  box.addEventListener("change", show);
  weight.addEventListener("input", show);
  const label = el("label", { class: "check" }, box, el("span", {}, name));
  return { box, weight, show, element: el("div", { class: "lora" }, label, weight, shown) };
}
