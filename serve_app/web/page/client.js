// The service's HTTP contract and nothing of the page, so that another frontend may take this file
// as it is. Requests and answers are those of /openapi.json.

const EVENT_STREAM = "text/event-stream";
const REJOIN_MS = [500, 1000, 2000, 4000, 8000]; // pauses between tries to join a job again
const SILENCE_MS = 30_000; // the service sends a comment every 10 s, so after this the stream is dead

// The service has answered with an error: its code, its words, and when to try again.
export class ServiceError extends Error {
  constructor(status, error, retryAfter = null) {
    super(error.message);
    this.name = "ServiceError";
    this.status = status;
    this.code = error.code;
    this.details = error.details ?? [];
    this.requestId = error.requestId ?? "";
    this.retryAfter = retryAfter; // seconds
  }
}

// The service could not be reached, or what answered is not the service.
export class Unreachable extends Error {
  constructor(cause) {
    super("the service can't be reached", { cause });
    this.name = "Unreachable";
  }
}

export class Client {
  // `base` is the service's address; `key` returns the API key, "" for none.
  constructor(base, key = () => "") {
    this.base = base;
    this.key = key;
  }

  health(signal) {
    return this.#json("health", { accepts: [503], signal }); // loading and draining have a body too
  }

  licenses() {
    return this.#json("licenses");
  }

  acceptTerms(termsDigest) {
    return this.#json("licenses", { method: "POST", body: { accept: true, termsDigest } });
  }

  description(signal) {
    return this.#json("openapi.json", { signal });
  }

  // Makes images from a prompt, or from base images. `onJob` gets the job's id as soon as it is
  // accepted, `onEvent` each event's name and data. Returns the data of `done`. A connection that
  // breaks is made again, and `onLost` called each time.
  // Throws `ServiceError`, `Unreachable`, or the signal's reason; then the job may still run, and
  // `cancel` ends it.
  generate(request, options) {
    return this.#stream("generate", request, options);
  }

  refine(request, options) {
    return this.#stream("refine", request, options);
  }

  cancel(job) {
    return this.#json(`jobs/${job}`, { method: "DELETE" });
  }

  async #stream(path, request, { onEvent, onJob, onLost, signal, requestId = randomId() }) {
    // The key makes the job outlive a lost connection, and a second try joins it.
    const headers = { "Idempotency-Key": requestId, Accept: EVENT_STREAM };
    const open = () => this.#fetch(path, { method: "POST", body: request, headers, signal });
    let response = await open();
    const joined = { job: jobOf(response), last: null };
    if (joined.job !== null) {
      onJob?.(joined.job);
    }
    for (let tries = 0; ; tries += 1) {
      try {
        const end = await readEvents(response, (name, data, id) => {
          joined.job = data.jobId ?? joined.job;
          joined.last = id ?? joined.last;
          tries = 0;
          onEvent(name, data);
        });
        if (end !== null) {
          return end;
        }
      } catch (error) {
        if (error instanceof ServiceError || signal?.aborted) {
          throw error;
        }
      }
      onLost?.();
      response = await this.#rejoin(joined, open, tries, signal);
    }
  }

  async #rejoin({ job, last }, open, tries, signal) {
    for (let n = tries; n < REJOIN_MS.length; n += 1) {
      await pause(REJOIN_MS[n], signal);
      try {
        if (job === null) {
          return await open();
        }
        const headers = { Accept: EVENT_STREAM, ...(last && { "Last-Event-ID": last }) };
        return await this.#fetch(`jobs/${job}/events`, { headers, signal });
      } catch (error) {
        if (!(error instanceof Unreachable || error.status === 503)) {
          throw error; // 503: it has just started again
        }
      }
    }
    throw new Unreachable();
  }

  async #json(path, { accepts = [], ...options } = {}) {
    const response = await this.#fetch(path, { accepts, ...options });
    return response.status === 204 ? null : response.json();
  }

  async #fetch(path, { method = "GET", body, headers = {}, accepts = [], signal } = {}) {
    const key = this.key();
    const init = { method, signal, credentials: "omit", cache: "no-store", headers: { ...headers } };
    if (key) {
      init.headers.Authorization = `Bearer ${key}`;
    }
    if (body !== undefined) {
      init.headers["Content-Type"] = "application/json";
      init.body = JSON.stringify(body);
    }
    let response;
    try {
      response = await fetch(new URL(path, this.base), init);
    } catch (error) {
      throw signal?.aborted ? error : new Unreachable(error);
    }
    if (response.ok || accepts.includes(response.status)) {
      return response;
    }
    throw await errorOf(response);
  }
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  try {
    const { error } = await response.json();
    return new ServiceError(response.status, error, retryAfter);
  } catch {
    return new Unreachable(new Error(`HTTP ${response.status}`)); // a proxy's own answer
  }
}

// Returns the id of the job that a response is of; null if a proxy has dropped the header.
function jobOf(response) {
  return response.headers.get("Location")?.split("/").pop() ?? null;
}

// Reads a stream of events to its end. Returns the data of `done`, and null if the stream broke off.
async function readEvents(response, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    return await readAll(reader, onEvent);
  } finally {
    reader.cancel().catch(() => {}); // it has ended, or is silent
  }
}

async function readAll(reader, onEvent) {
  let text = "";
  for (;;) {
    const { value, done } = await withinSilence(reader.read());
    if (done) {
      return null;
    }
    text += value;
    for (let end; (end = text.search(/\r?\n\r?\n/)) >= 0; ) {
      const block = text.slice(0, end);
      text = text.slice(end).replace(/^\r?\n\r?\n/, "");
      const { event, data, id } = fields(block);
      if (event === undefined) {
        continue; // a comment, which only keeps the connection open
      }
      const parsed = JSON.parse(data);
      if (event === "error") {
        throw new ServiceError(200, parsed.error);
      }
      onEvent(event, parsed, id);
      if (event === "done") {
        return parsed;
      }
    }
  }
}

async function withinSilence(reading) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Unreachable()), SILENCE_MS);
  });
  try {
    return await Promise.race([reading, silence]);
  } finally {
    clearTimeout(timer);
  }
}

// Returns a new id. `crypto.randomUUID` is missing where a page comes by plain HTTP from elsewhere.
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fields(block) {
  const found = {};
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(": ");
    if (colon > 0) {
      found[line.slice(0, colon)] = line.slice(colon + 2);
    }
  }
  return found;
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
