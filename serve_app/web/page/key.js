// The API key: kept in this tab alone, and asked for in a dialog.

import { byId, el } from "./dom.js";
import { text } from "./texts.js";

const ITEM = "aura-serve.api-key"; // as on /docs
const SENDABLE = /^[\x20-\x7e]+$/; // what a header may hold
let asking = null; // jobs that are refused together ask once
let key = keptKey();

export function currentKey() {
  return key;
}

function keptKey() {
  try {
    const kept = sessionStorage.getItem(ITEM) ?? "";
    return SENDABLE.test(kept) ? kept : "";
  } catch {
    return "";
  }
}

function keep(chosen) {
  key = chosen;
  try {
    if (key) {
      sessionStorage.setItem(ITEM, key);
    } else {
      sessionStorage.removeItem(ITEM);
    }
  } catch {
    // without storage the key ends with the page
  }
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
    "aria-describedby": "key-note",
  });
  let hasKey = false;
  const accept = (event) => {
    event.preventDefault();
    const entered = field.value.trim();
    if (SENDABLE.test(entered)) {
      keep(entered);
      hasKey = true;
      dialog.close();
      return;
    }
    if (entered) {
      note.replaceWith(refusal());
    }
    field.focus();
  };
  const forget = () => {
    keep("");
    dialog.close();
  };
  const refusal = () => {
    field.setAttribute("aria-invalid", "true");
    note = el("p", { class: "error", role: "alert" }, text("keyWrong"));
    return note;
  };
  let note = el("p", {}, text("keyNeeded"));
  dialog.replaceChildren(
    el(
      "form",
      { onsubmit: accept },
      el("h2", { id: "key-title" }, text("keyTitle")),
      wrong ? refusal() : note,
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
