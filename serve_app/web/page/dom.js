// Elements are made and filled here; texts are always set as text, never as markup.

// Makes an element. `props` are properties; `class`, `data-*` and `aria-*` are attributes.
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) {
      continue;
    }
    if (name === "class" || name.includes("-") || name === "role" || name === "for") {
      element.setAttribute(name, value);
    } else if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else {
      element[name] = value;
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Returns the parts of a text, with what stands between backticks as code.
export function withCode(words) {
  return words.split("`").map((part, at) => (at % 2 ? el("code", {}, part) : part));
}

export function byId(id) {
  return document.getElementById(id);
}

// Shows a note for a few seconds, perhaps with a button.
export function toast(message, action = null) {
  const note = el("p", { class: "toast" }, el("span", {}, message));
  if (action !== null) {
    note.append(
      el("button", {
        type: "button",
        class: "link",
        textContent: action.label,
        onclick: () => {
          note.remove();
          action.run();
        },
      }),
    );
  }
  byId("toasts").append(note);
  setTimeout(() => note.remove(), action === null ? 4000 : 8000);
}

// Saves a blob as a file of the person's computer.
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
