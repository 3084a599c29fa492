// AUTOMATIC1111's text of how a picture was made: the prompt, perhaps "Negative prompt: ...", and a
// line of "Name: value" pairs.

const SOLVERS = {
  euler: "euler",
  "euler a": "euler_a",
  heun: "heun",
  ddim: "ddim",
  "dpm++ 2m": "dpmpp_2m",
  "dpm++ 2m sde": "dpmpp_2m_sde",
  "dpm++ sde": "dpmpp_sde",
  unipc: "unipc",
  lcm: "lcm",
};
const SPACINGS = { "": "", automatic: "", karras: "_karras", exponential: "_exponential", simple: "_trailing" };
const PAIR = /([\w ]{1,64}): (?:"((?:\\.|[^"\\])*)"|([^,]*))(?:,|$)/g;
const LORA = /<(?:lora|lyco):([^:<>]+)(?::([^<>]*))?>/gi;

// Returns the request that such a text describes. A sampler that no service has keeps its own name.
export function requestOfInfotext(text) {
  const lines = text.trim().split(/\r?\n/);
  const at = lines.findLastIndex((line) => /^Steps: \d/.test(line));
  const values = pairsOf(at < 0 ? "" : lines[at]);
  const words = (at < 0 ? lines : lines.slice(0, at)).join("\n");
  const [before, negative = ""] = words.split(/(?:^|\n)Negative prompt: /, 2);
  const { prompt, loras } = withoutLoras(before);
  const size = /^(\d+)x(\d+)$/.exec(values.get("size") ?? "");
  const request = { prompt, imageCount: 1 };
  const add = (field, value) => {
    if (value !== undefined && value !== "" && !Number.isNaN(value)) {
      request[field] = value;
    }
  };
  add("negativePrompt", negative.trim());
  add("steps", number(values.get("steps")));
  add("guidanceScale", number(values.get("cfg scale")));
  add("seed", number(values.get("seed")));
  add("width", size ? Number(size[1]) : undefined);
  add("height", size ? Number(size[2]) : undefined);
  add("sampler", samplerOf(values.get("sampler"), values.get("schedule type")));
  add("model", values.get("model"));
  add("loras", loras.length ? loras : undefined);
  return request;
}

function pairsOf(line) {
  const values = new Map();
  for (const [, name, quoted, plain] of line.matchAll(PAIR)) {
    values.set(name.trim().toLowerCase(), (quoted ?? plain).trim());
  }
  return values;
}

function withoutLoras(prompt) {
  const loras = [];
  for (const [, name, weight = ""] of prompt.matchAll(LORA)) {
    const first = Number.parseFloat(weight);
    loras.push({ name: name.trim(), weight: Number.isNaN(first) ? 1 : first });
  }
  return { prompt: prompt.replace(LORA, "").replace(/[ \t]{2,}/g, " ").trim(), loras };
}

// "DPM++ 2M Karras", as it was written until 2024, or "DPM++ 2M" with the schedule type "Karras".
function samplerOf(name, type = "") {
  if (!name) {
    return undefined;
  }
  const joined = /^(.*\S) (karras|exponential)$/i.exec(name);
  const [solver, spacing] = joined ? joined.slice(1) : [name, type];
  const known = SOLVERS[solver.toLowerCase()];
  const end = SPACINGS[spacing.toLowerCase()];
  return known === undefined || end === undefined ? `${name} ${type}`.trim() : known + end;
}

function number(text) {
  return text === undefined ? undefined : Number(text);
}
