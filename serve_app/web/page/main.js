// The page: the form on one side, the moodboard on the other, and the service behind them.

import { Board } from "./board.js";
import { Client } from "./client.js";
import { Composer } from "./composer.js";
import { byId, el, toast } from "./dom.js";
import { Gallery } from "./gallery.js";
import { Jobs, messageOf } from "./jobs.js";
import { requestOf } from "./png.js";
import { Service } from "./service.js";
import { currentLanguage, speak, text, translate } from "./texts.js";
import { Viewer } from "./viewer.js";

const KEY_ITEM = "aura-serve.api-key"; // as on /docs
const THEME_ITEM = "aura-serve.theme";
const IDEAS = {
  demo: {
    en: ["a large yellow star on a black background", "a red circle next to a blue square", "a green heart"],
    es: ["una estrella amarilla grande sobre fondo negro", "un círculo rojo junto a un cuadrado azul", "un corazón verde"],
  },
  sdxl: {
    en: ["a lighthouse in the fog, watercolour", "a bowl of lemons by a window, film photograph", "a fox asleep in autumn leaves, linocut"],
    es: ["un faro entre la niebla, acuarela", "un cuenco de limones junto a una ventana, fotografía", "un zorro dormido entre hojas de otoño, linograbado"],
  },
};

const base = new URL(".", window.location.href); // right under any prefix, and behind any proxy
const client = new Client(base, () => sessionStorage.getItem(KEY_ITEM) ?? "");
const service = new Service(client, showService);
const composer = new Composer();
let board;
let viewer;
let jobs;

async function start() {
  translate(document);
  byId("language").value = currentLanguage();
  showTheme();
  const gallery = await Gallery.open();
  board = new Board(gallery, {
    onOpen: (picture) => viewer.open(picture),
    onRefine: (picture) => viewer.open(picture, { refines: true }),
    onPromote: promote,
  });
  viewer = new Viewer(board, { onUse: use, onRefine: refine, onPromote: promote });
  jobs = new Jobs(client, board, {
    onError: (error, message) => composer.showError(error, message),
    needKey: askForKey,
    needTerms: () => showTerms({ asks: true }),
  });
  await board.load();
  if (!gallery.isKept) {
    toast(text("storage"));
  }
  listen();
  await service.start();
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    generate(composer.request());
  });
  byId("draft").addEventListener("click", () => {
    generate(composer.draftRequest(), { draft: true, full: composer.request() });
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      byId("composer").requestSubmit();
    }
  });
  byId("language").addEventListener("change", () => {
    speak(byId("language").value);
    board.refreshTexts();
    composer.refreshTexts();
    showService();
  });
  byId("theme").addEventListener("click", switchTheme);
  byId("open-key").addEventListener("click", askForKey);
  byId("open-licenses").addEventListener("click", () => showTerms({ asks: false }));
  byId("download-all").addEventListener("click", () => board.saveAll());
  window.addEventListener("dragover", (event) => {
    if ([...event.dataTransfer.types].includes("Files")) {
      event.preventDefault();
      document.body.classList.add("dropping");
    }
  });
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) {
      document.body.classList.remove("dropping");
    }
  });
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    if (file) {
      await takeOver(file);
    }
  });
}

function generate(request, options = {}) {
  composer.showError(null);
  if (request !== null) {
    jobs.run("/generate", request, { ratio: ratioOf(request), ...options });
  }
}

async function refine(picture, words, strength) {
  const request = {
    refinePrompt: words,
    baseImages: [await base64Of(picture.blob)],
    strength,
    imageCount: 1,
  };
  await jobs.run("/refine", request, {
    ratio: picture.width / picture.height,
    base: picture.id,
  });
}

// Draws a draft in full: the same seed and size, with all that was chosen for the picture.
function promote(picture) {
  const { aspectRatio: _, ...request } = picture.full;
  const { seed, width, height } = picture;
  jobs.run("/generate", { ...request, seed, width, height, imageCount: 1 }, { ratio: width / height });
}

function use(picture) {
  composer.use({ request: picture.request });
  byId("prompt").focus();
  toast(text("taken"));
}

async function takeOver(file) {
  const found = await requestOf(file);
  if (found === null) {
    toast(text("noSettings"));
    return;
  }
  composer.use(found);
  byId("prompt").focus();
  toast(text("taken"));
}

function showService() {
  const { health, isReachable } = service;
  const status = isReachable ? (health?.status ?? "loading") : "offline";
  document.documentElement.dataset.service = status;
  const values = { model: health?.model ?? "", reason: health?.reason ?? "" };
  byId("service-text").textContent = text(status, values);
  byId("version").textContent = health ? `Aura Serve ${health.version}` : "";
  byId("open-key").hidden = !service.needsKey;
  byId("banner").hidden = !service.isDemo;
  byId("banner").textContent = text("demo");
  if (health !== null) {
    composer.offer(service);
  }
  const ideas = IDEAS[service.isDemo ? "demo" : "sdxl"][currentLanguage()];
  byId("ideas").replaceChildren(
    ...ideas.map((idea) =>
      el("button", {
        type: "button",
        class: "chip idea",
        textContent: idea,
        onclick: () => {
          byId("prompt").value = idea;
          byId("prompt").focus();
        },
      }),
    ),
  );
}

// Asks for a key; returns whether there is one now.
function askForKey() {
  const dialog = byId("key-dialog");
  const field = el("input", { id: "key", type: "password", autocomplete: "off", spellcheck: false });
  return new Promise((resolve) => {
    const end = (found) => {
      dialog.close();
      resolve(found);
    };
    dialog.replaceChildren(
      el(
        "form",
        {
          onsubmit: (event) => {
            event.preventDefault();
            sessionStorage.setItem(KEY_ITEM, field.value.trim());
            end(field.value.trim() !== "");
          },
        },
        el("h2", { id: "key-title" }, text("keyTitle")),
        el("p", {}, text("keyNeeded")),
        el("label", { for: "key" }, text("keyTitle")),
        field,
        el("p", { class: "note" }, text("keyNote")),
        el(
          "div",
          { class: "actions" },
          el("button", { type: "submit", class: "primary" }, text("use_key")),
          el("button", {
            type: "button",
            textContent: text("forget"),
            onclick: () => {
              sessionStorage.removeItem(KEY_ITEM);
              end(false);
            },
          }),
        ),
      ),
    );
    dialog.addEventListener("cancel", () => resolve(false), { once: true });
    dialog.showModal();
    field.focus();
  });
}

// Shows the licences; with `asks`, returns whether they were accepted.
async function showTerms({ asks }) {
  let found;
  try {
    found = await client.licenses();
  } catch (error) {
    toast(messageOf(error));
    return false;
  }
  const dialog = byId("terms");
  const models = found.licenses.map((license) => license.model).join(", ");
  return new Promise((resolve) => {
    const end = async (accepted) => {
      dialog.close();
      if (accepted) {
        await client.acceptTerms(found.termsDigest);
      }
      resolve(accepted);
    };
    dialog.replaceChildren(
      el("h2", { id: "terms-title" }, text("termsTitle")),
      el("p", {}, asks ? text("termsNeeded") : text("attribution", { models })),
      ...found.licenses.map(licenseSection),
      el(
        "div",
        { class: "actions" },
        asks
          ? el("button", {
              type: "button",
              class: "primary",
              textContent: text("accept"),
              onclick: () => end(true),
            })
          : null,
        el("button", { type: "button", textContent: text("close"), onclick: () => end(false) }),
      ),
    );
    dialog.addEventListener("cancel", () => resolve(false), { once: true });
    dialog.showModal();
  });
}

function licenseSection(license) {
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

function showTheme() {
  try {
    const kept = localStorage.getItem(THEME_ITEM);
    if (kept) {
      document.documentElement.dataset.theme = kept;
    }
  } catch {
    // the system's theme then
  }
}

function switchTheme() {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme
    ? dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem(THEME_ITEM, dataset.theme);
  } catch {
    // without storage the choice ends with the page
  }
}

function ratioOf({ aspectRatio = "Auto", width, height }) {
  if (width && height) {
    return width / height;
  }
  const [a, b] = aspectRatio === "Auto" ? [1, 1] : aspectRatio.split(":").map(Number);
  return a / b;
}

async function base64Of(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

start();
