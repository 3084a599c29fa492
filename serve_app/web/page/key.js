// The API key: kept in this tab alone, and asked for in a dialog.

import { byId, el } from "./dom.js";
import { text } from "./texts.js";

const ITEM = "aura-serve.api-key"; // as on /docs
let asking = null; // jobs that are refused together ask once

export function currentKey() {
  return sessionStorage.getItem(ITEM) ?? "";
}

// Asks for a key; returns whether there is one now. `wrong` says that the last was refused.
export function askForKey({ wrong = false } = {}) {
  asking ??= ask(wrong).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(wrong) {
  const dialog = byId("key-dialog");
  const field = el("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    spellcheck: false,
    "aria-invalid": wrong ? "true" : null,
    "aria-describedby": "key-note",
  });
  let hasKey = false;
  const accept = (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (key) {
      sessionStorage.setItem(ITEM, key);
      hasKey = true;
      dialog.close();
    } else {
      field.focus();
    }
  };
  const forget = () => {
    sessionStorage.removeItem(ITEM);
    dialog.close();
  };
  dialog.replaceChildren(
    el(
      "form",
      { onsubmit: accept },
      el("h2", { id: "key-title" }, text("keyTitle")),
      wrong
        ? el("p", { class: "error", role: "alert" }, text("keyWrong"))
        : el("p", {}, text("keyNeeded")),
      el("label", { class: "hidden", for: "key" }, text("keyTitle")),
      field,
      el("p", { id: "key-note", class: "note" }, text("keyNote")),
      el(
        "div",
        { class: "sheet-actions" },
        el("button", { type: "submit", class: "primary" }, text("use_key")),
        currentKey()
          ? el("button", { type: "button", textContent: text("forget"), onclick: forget })
          : null,
        el("button", {
          type: "button",
          class: "quiet",
          textContent: text("close"),
          onclick: () => dialog.close(),
        }),
      ),
    ),
  );
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(hasKey), { once: true });
    dialog.showModal();
    field.focus();
  });
}
