// The page: the form on one side, the moodboard on the other, and the service behind them.

import { Board } from "./board.js";
import { Client } from "./client.js";
import { Composer } from "./composer.js";
import { byId, el, toast, withCode } from "./dom.js";
import { Gallery } from "./gallery.js";
import { Jobs } from "./jobs.js";
import { askForKey, currentKey } from "./key.js";
import { requestOf } from "./png.js";
import { Service } from "./service.js";
import { askForTerms, showLicenses } from "./terms.js";
import { currentLanguage, speak, text, translate } from "./texts.js";
import { showTheme, switchTheme } from "./theme.js";
import { Viewer } from "./viewer.js";

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
const client = new Client(base, currentKey);
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
    onError: (error) => composer.showError(error),
    needKey,
    needTerms: () => askForTerms(client),
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
  byId("open-key").addEventListener("click", () => askForKey());
  byId("open-licenses").addEventListener("click", () => showLicenses(client));
  byId("download-all").addEventListener("click", () => board.saveAll());
  window.addEventListener("dragover", (event) => {
    if (hasFiles(event)) {
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
    if (!hasFiles(event)) {
      return; // text, which a field takes by itself
    }
    event.preventDefault();
    document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files;
    const found = file ? await requestOf(file) : null;
    if (found !== null) {
      takeOver(found);
    } else {
      toast(text("noSettings"));
    }
  });
}

function hasFiles(event) {
  return event.dataTransfer.types.includes("Files");
}

// Returns whether a request that was refused with a key, or without any, may be sent again; null
// where no key would help.
async function needKey(refused) {
  if (service.needsKey === false) {
    return null;
  }
  if (currentKey() !== refused) {
    return true; // it was entered for another job meanwhile
  }
  return askForKey({ wrong: refused !== "" });
}

function generate(request, options = {}) {
  composer.showError(null);
  if (request !== null) {
    jobs.run("/generate", request, { ratio: ratioOf(request), ...options });
    showBoard();
  }
}

// Scrolls to the board where it lies below the form, as on a phone.
function showBoard() {
  const board = byId("board-title");
  if (board.getBoundingClientRect().top > window.innerHeight / 2) {
    board.scrollIntoView();
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
  takeOver({ request: picture.request, route: picture.route });
}

function takeOver(found) {
  const missing = composer.use(found);
  byId("prompt").focus();
  if (missing.length === 0) {
    toast(text("taken"));
  }
}

function showService() {
  const { health, isReachable } = service;
  const status = isReachable ? (health?.status ?? "loading") : "offline";
  document.documentElement.dataset.service = status;
  const values = { model: health?.model ?? "", reason: health?.reason ?? "" };
  byId("service-text").textContent = text(status, values);
  byId("version").textContent = health ? `Aura Serve ${health.version}` : "";
  byId("open-key").hidden = service.needsKey !== true;
  byId("banner").hidden = !service.isDemo && !service.isCloud;
  byId("banner").replaceChildren(...withCode(service.isCloud ? text("cloud") : text("demo")));
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
