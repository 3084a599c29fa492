// The licences of the models: shown to whoever wants to read them, and accepted where they must be.

import { byId, el, toast } from "./dom.js";
import { messageOf } from "./jobs.js";
import { text } from "./texts.js";

let asking = null; // jobs that are refused together ask once

// Asks the person to accept the terms; returns whether the service knows now that they did.
export function askForTerms(client) {
  asking ??= show(client, true).finally(() => {
    asking = null;
  });
  return asking;
}

export function showLicenses(client) {
  return show(client, false);
}

async function show(client, asks) {
  let found;
  try {
    found = await client.licenses();
  } catch (error) {
    toast(messageOf(error));
    return false;
  }
  const dialog = byId("terms");
  let accepted = false;
  const accept = async () => {
    try {
      await client.acceptTerms(found.termsDigest);
      accepted = true;
      dialog.close();
    } catch (error) {
      problem.textContent = messageOf(error);
      problem.hidden = false;
    }
  };
  const problem = el("p", { class: "error", role: "alert", hidden: true });
  const models = found.licenses.map((license) => license.model).join(", ");
  dialog.replaceChildren(
    el("h2", { id: "terms-title" }, text("termsTitle")),
    el("p", {}, asks ? text("termsNeeded") : text("attribution", { models })),
    ...found.licenses.map(section),
    problem,
    el(
      "div",
      { class: "sheet-actions" },
      asks
        ? el("button", { type: "button", class: "primary", textContent: text("accept"), onclick: accept })
        : null,
      el("button", { type: "button", textContent: text("close"), onclick: () => dialog.close() }),
    ),
  );
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(accepted), { once: true });
    dialog.showModal();
  });
}

function section(license) {
  const isLink = /^https:\/\//.test(license.url);
  return el(
    "section",
    { class: "license" },
    el("h3", {}, license.model),
    el("p", {}, isLink ? el("a", { href: license.url, rel: "noreferrer" }, license.name) : license.name),
    license.restrictions.length
      ? el(
          "details",
          {},
          el("summary", {}, text("restrictions")),
          el("ul", {}, license.restrictions.map((restriction) => el("li", {}, restriction))),
        )
      : null,
    license.text
      ? el("details", {}, el("summary", {}, text("wholeText")), el("pre", {}, license.text))
      : null,
  );
}
