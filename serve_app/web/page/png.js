// What a PNG says of how it was made: our record, or AUTOMATIC1111's text.

import { requestOfInfotext } from "./infotext.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const RECORD = "aura";
const INFOTEXT = "parameters";
const MAX_TEXT = 1 << 20; // bytes of one chunk

const FIELDS = { // of a request that the form takes over, by what they are
  string: ["prompt", "refinePrompt", "negativePrompt", "aspectRatio", "sampler", "model", "cache"],
  number: ["temperature", "imageCount", "steps", "guidanceScale", "seed", "width", "height", "handoff"],
  boolean: ["refine"],
};

// Returns the request that made a PNG, as {route, request}; null if it says nothing usable.
export async function requestOf(file) {
  const texts = await textChunks(file);
  if (texts.has(RECORD)) {
    try {
      const { route, request } = JSON.parse(texts.get(RECORD));
      if (isRequest(request)) {
        return { route, request };
      }
    } catch {
      // not ours after all
    }
  }
  if (!texts.has(INFOTEXT)) {
    return null;
  }
  return { route: "/generate", request: requestOfInfotext(texts.get(INFOTEXT)) };
}

function isRequest(request) {
  if (!isObject(request)) {
    return false;
  }
  const isAbsent = (name) => (request[name] ?? null) === null;
  const has = (name, check) => isAbsent(name) || check(request[name]);
  return (
    Object.entries(FIELDS).every(([type, names]) =>
      names.every((name) => has(name, (value) => typeof value === type)),
    ) &&
    has("loras", (loras) => Array.isArray(loras) && loras.every(isLora)) &&
    has("guidanceInterval", (ends) => Array.isArray(ends) && ends.every(isNumber))
  );
}

function isLora(lora) {
  return isObject(lora) && typeof lora.name === "string" && isNumber(lora.weight ?? 1);
}

function isNumber(value) {
  return typeof value === "number";
}

function isObject(value) {
  return typeof value === "object" && value !== null;
}

async function textChunks(file) {
  const texts = new Map();
  const view = new DataView(await file.arrayBuffer());
  if (!SIGNATURE.every((byte, at) => at < view.byteLength && view.getUint8(at) === byte)) {
    return texts;
  }
  for (let at = 8; at + 12 <= view.byteLength; ) {
    const size = view.getUint32(at);
    const type = ascii(view, at + 4, 4);
    const start = at + 8;
    if (start + size > view.byteLength || type === "IEND") {
      break;
    }
    if ((type === "tEXt" || type === "iTXt") && size <= MAX_TEXT) {
      addText(texts, type, new Uint8Array(view.buffer, view.byteOffset + start, size));
    }
    at = start + size + 4;
  }
  return texts;
}

function addText(texts, type, bytes) {
  const end = bytes.indexOf(0);
  const keyword = new TextDecoder("latin1").decode(bytes.subarray(0, end));
  if (type === "tEXt") {
    texts.set(keyword, new TextDecoder("latin1").decode(bytes.subarray(end + 1)));
    return;
  }
  if (bytes[end + 1] !== 0) {
    return; // compressed: neither we nor A1111 do that
  }
  const language = bytes.indexOf(0, end + 3);
  const translated = bytes.indexOf(0, language + 1);
  texts.set(keyword, new TextDecoder().decode(bytes.subarray(translated + 1)));
}

function ascii(view, at, length) {
  return String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at, length));
}
