// The language in which the page speaks, and what it says in it.

import en from "./en.js";
import es from "./es.js";

const TEXTS = { en, es };

const LANGUAGE_ITEM = "aura-serve.language";
let language = firstLanguage();

export function currentLanguage() {
  return language;
}

export function text(name, values = {}) {
  const found = TEXTS[language][name] ?? TEXTS.en[name] ?? name;
  return found.replace(/\{(\w+)\}/g, (_, value) => values[value] ?? "");
}

export function hasText(name) {
  return name in TEXTS.en;
}

// Speaks another language from now on, everywhere on the page.
export function speak(chosen) {
  language = chosen in TEXTS ? chosen : "en";
  try {
    localStorage.setItem(LANGUAGE_ITEM, language);
  } catch {
    // without storage the choice ends with the page
  }
  translate(document);
}

// Fills in the texts of the elements that name one.
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = text(element.dataset.text);
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
    if (element.matches("button")) {
      element.title = text(element.dataset.label);
    }
  }
}

// Returns seconds in words: whole seconds, from ten on in fives, then minutes.
export function duration(milliseconds) {
  const seconds = Math.max(1, Math.round(milliseconds / 1000));
  if (seconds < 90) {
    return text("seconds", { n: seconds > 10 ? Math.ceil(seconds / 5) * 5 : seconds });
  }
  return text("minutes", { n: Math.round(seconds / 60) });
}

function firstLanguage() {
  try {
    const kept = localStorage.getItem(LANGUAGE_ITEM);
    if (kept in TEXTS) {
      return kept;
    }
  } catch {
    // as if nothing was kept
  }
  return (navigator.languages ?? []).some((name) => name.startsWith("es")) &&
    !(navigator.language ?? "en").startsWith("en")
    ? "es"
    : "en";
}
