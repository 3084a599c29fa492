// What a PNG says of how it was made: our record, or AUTOMATIC1111's text.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const RECORD = "aura";
const INFOTEXT = "parameters";
const MAX_TEXT = 1 << 20; // bytes of one chunk

// Returns the request that made a PNG, as {route, request}; null if it says nothing.
export async function requestOf(file) {
  const texts = await textChunks(file);
  if (texts.has(RECORD)) {
    try {
      const { route, request } = JSON.parse(texts.get(RECORD));
      if (request && typeof request === "object") {
        return { route, request };
      }
    } catch {
      // not ours after all
    }
  }
  return texts.has(INFOTEXT) ? fromInfotext(texts.get(INFOTEXT)) : null;
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

// A1111's text: the prompt, perhaps "Negative prompt: ...", and a line of "Name: value" pairs.
function fromInfotext(text) {
  const lines = text.trim().split("\n");
  const last = /^Steps: \d/.test(lines.at(-1)) ? lines.pop() : "";
  const rest = lines.join("\n");
  const [prompt, negative] = rest.split(/\n?Negative prompt: /, 2);
  const values = new Map();
  for (const [, name, quoted, plain] of last.matchAll(/([\w ]+): (?:"((?:\\.|[^"])*)"|([^,]*))(?:,|$)/g)) {
    values.set(name.trim().toLowerCase(), (quoted ?? plain).trim());
  }
  const size = /^(\d+)x(\d+)$/.exec(values.get("size") ?? "");
  const request = { prompt: prompt.trim() };
  const add = (field, value) => {
    if (value !== undefined && value !== "" && !Number.isNaN(value)) {
      request[field] = value;
    }
  };
  add("negativePrompt", negative?.trim());
  add("steps", number(values.get("steps")));
  add("guidanceScale", number(values.get("cfg scale")));
  add("seed", number(values.get("seed")));
  add("width", size ? Number(size[1]) : undefined);
  add("height", size ? Number(size[2]) : undefined);
  add("sampler", values.get("sampler"));
  return { route: "/generate", request };
}

function number(text) {
  return text === undefined ? undefined : Number(text);
}
