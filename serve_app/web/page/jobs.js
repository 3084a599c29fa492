// Jobs at work: a request, its tiles on the board, and what becomes of them.

import { ServiceError, Unreachable } from "./client.js";
import { button } from "./board.js";
import { duration, hasText, text } from "./texts.js";

const WAITS = new Set([ // with Retry-After
  "OVERLOADED", "LOADING", "DRAINING", "LEDGER_UNAVAILABLE", "RATE_LIMITED",
]);
const MAX_WAIT_S = 120; // for a place in a full queue
const TICK_MS = 1000;

export class Jobs {
  // `needKey` and `needTerms` ask the person for what nobody else can give, and return whether the
  // request may be sent again; `needKey` gets the key that was refused, and returns null where no key
  // would help.
  constructor(client, board, { onError, needKey, needTerms }) {
    this.client = client;
    this.board = board;
    this.handlers = { onError, needKey, needTerms };
  }

  // Makes the pictures of a request. `base` is the id of the picture that it refines; `full` is what
  // a draft becomes.
  async run(route, request, { ratio = 1, base = null, draft = false, full = null } = {}) {
    const job = new Job(this.client);
    const count = request.imageCount ?? 1;
    const tiles = this.board.begin(job, count, ratio);
    const made = [];
    job.onCancel = () => this.#discard(tiles);
    try {
      const done = await this.#send(route, request, job, tiles, made);
      await this.#keep({ route, request, base, draft, full }, tiles, made, done.meta);
    } catch (error) {
      await this.#fail(error, job, { route, request, base, draft, full, ratio }, tiles);
    }
  }

  async #send(route, request, job, tiles, made) {
    const path = route === "/refine" ? "refine" : "generate";
    const send = () => {
      job.key = this.client.key();
      job.isSent = true;
      return this.client[path](request, {
        signal: job.signal,
        onJob: (id) => job.begin(id),
        onLost: () => tiles.forEach((tile) => tile.say(() => text("rejoining"))),
        onEvent: (name, data) => {
          job.begin(data.jobId);
          onEvent(name, data, tiles, made);
        },
      });
    };
    for (;;) {
      try {
        return await send();
      } catch (error) {
        job.isSent = false;
        if (!(await this.#canGoOn(error, job, tiles))) {
          throw error;
        }
      }
    }
  }

  // Returns whether a request that was refused should be sent again.
  async #canGoOn(error, job, tiles) {
    if (job.isCancelled || !(error instanceof ServiceError)) {
      return false;
    }
    if (error.status === 401) {
      const goesOn = await this.handlers.needKey(job.key);
      if (goesOn === null) {
        throw new ServiceError(401, { code: "NO_KEYS", message: error.message });
      }
      return goesOn;
    }
    if (error.code === "TERMS_NOT_ACCEPTED") {
      return this.handlers.needTerms();
    }
    const seconds = error.retryAfter;
    if (!WAITS.has(error.code) || seconds === null || seconds > MAX_WAIT_S) {
      return false;
    }
    const end = Date.now() + seconds * 1000; // a tab in the background ticks late
    for (let left = seconds; left > 0; left = Math.ceil((end - Date.now()) / 1000)) {
      const words = () => `${text(`error_${error.code}`)} ${text("retryIn", { n: left })}`;
      tiles.forEach((tile) => tile.wait(left, seconds, words));
      await pause(TICK_MS, job.signal);
    }
    tiles.forEach((tile) => tile.wait(0, seconds, () => ""));
    return true;
  }

  async #keep(kind, tiles, made, meta) {
    for (const [number, file] of made.entries()) {
      const tile = tiles[number];
      const blob = new Blob([file], { type: "image/png" });
      const size = await createImageBitmap(blob);
      const seed = meta.seeds?.[number] ?? null;
      await this.board.finish(tile, {
        id: `${meta.jobId}-${number}`,
        created: Date.now() + made.length - number,
        blob,
        width: size.width,
        height: size.height,
        route: kind.route,
        request: seed === null ? kind.request : { ...kind.request, seed },
        seed,
        meta,
        base: kind.base,
        draft: kind.draft,
        full: kind.full,
      });
      size.close();
    }
  }

  async #fail(error, job, kind, tiles) {
    if (job.isCancelled) {
      this.#discard(tiles);
      return;
    }
    if (error instanceof ServiceError && error.code === "VALIDATION_ERROR") {
      this.#discard(tiles);
      this.handlers.onError(error);
      return;
    }
    for (const tile of tiles) {
      const dismiss = button("dismiss", "small", () => this.board.discard(tile));
      const retry = button("retry", "primary small", () => {
        this.#discard(tiles);
        this.run(kind.route, kind.request, kind);
      });
      tile.fail(() => messageOf(error), [retry, dismiss]);
    }
  }

  #discard(tiles) {
    tiles.forEach((tile) => this.board.discard(tile));
  }
}

class Job {
  constructor(client) {
    this.client = client;
    this.key = ""; // with which it was sent
    this.id = null; // until the service has accepted it
    this.isSent = false;
    this.onCancel = () => {};
    this.aborting = new AbortController();
    this.isCancelled = false;
  }

  get signal() {
    return this.aborting.signal;
  }

  // Notes the id that the service has given the job.
  begin(id) {
    const isNew = this.id === null;
    this.id = id;
    if (isNew && this.isCancelled) {
      this.cancel();
    }
  }

  // Ends the job: the stream, and the work behind it. A request that is not answered yet goes on
  // until its job has an id, since the service may have begun it.
  async cancel() {
    this.isCancelled = true;
    if (this.isSent && this.id === null) {
      this.onCancel();
      return;
    }
    this.aborting.abort();
    if (this.id !== null) {
      try {
        await this.client.cancel(this.id);
      } catch {
        // it has ended by itself, or the service is gone
      }
    }
  }
}

function onEvent(name, data, tiles, made) {
  const tile = tiles[data.image];
  switch (name) {
    case "queued":
      tile.queued(data);
      break;
    case "progress":
      tile.progress(data);
      break;
    case "preview":
      tile.preview(new Blob([bytesOf(data.jpeg)], { type: "image/jpeg" }));
      break;
    case "image":
      made[data.image] = bytesOf(data.png);
      tile.preview(new Blob([made[data.image]], { type: "image/png" }));
      tile.finishing();
      break;
    default: // an event of a later version
  }
}

// Says what went wrong, and what to do, in the person's language where the page knows the words.
export function messageOf(error) {
  if (error instanceof Unreachable) {
    return text("error_UNREACHABLE");
  }
  if (!(error instanceof ServiceError)) {
    return text("failed");
  }
  const own = `error_${error.code}`;
  const words = hasText(own) ? text(own, { id: error.requestId }) : error.message;
  const later = error.retryAfter !== null && WAITS.has(error.code);
  return later ? `${words} ${text("tryLater", { time: duration(error.retryAfter * 1000) })}` : words;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
