// What this service is and whether it is there: /health, its description, its licences.

const EVERY_MS = 5000;
const PATIENCE_MS = 4000; // with one answer
const DEFAULT_PROMPT_LIMIT = 500;

export class Service {
  constructor(client, onChange) {
    this.client = client;
    this.onChange = onChange;
    this.health = null; // as it answered last
    this.samplers = [];
    this.promptLimit = DEFAULT_PROMPT_LIMIT;
    this.sides = null; // {minimum, maximum, multipleOf} of a picture, in pixels
    this.needsKey = null; // until the service has described itself
    this.isReachable = true;
    this.isDescribed = false;
    this.describing = null; // while the description is awaited
  }

  async start() {
    setInterval(() => this.#look(), EVERY_MS);
    for (const change of ["online", "offline"]) {
      window.addEventListener(change, () => this.#look());
    }
    await Promise.all([this.#describe(), this.#look()]);
  }

  get isDemo() {
    return this.health?.model === "demo" || (this.health?.model ?? "").startsWith("demo-");
  }

  get isCloud() {
    return (this.health?.cloudModels ?? []).includes(this.health?.model);
  }

  async #look() {
    let health = null;
    try {
      health = await this.client.health(AbortSignal.timeout(PATIENCE_MS));
    } catch {
      // it is not there
    }
    const before = JSON.stringify([this.health, this.isReachable]);
    const isBack = health !== null && !this.isReachable;
    this.isReachable = health !== null;
    this.health = health ?? this.health;
    this.isDescribed &&= !isBack; // it may have other models or keys now
    if (JSON.stringify([this.health, this.isReachable]) !== before) {
      this.onChange();
    }
    if (this.isReachable && !this.isDescribed) {
      await this.#describe();
    }
  }

  // Takes from the description what a form must know; without one, the next look asks again.
  #describe() {
    this.describing ??= this.#readDescription().finally(() => {
      this.describing = null;
    });
    return this.describing;
  }

  async #readDescription() {
    try {
      const { components } = await this.client.description(AbortSignal.timeout(PATIENCE_MS));
      const { schemas } = components;
      const fields = schemas.GenerateRequest.properties;
      this.samplers = branches(fields.sampler).flatMap(
        (branch) => branch.enum ?? schemas[branch.$ref?.split("/").pop()]?.enum ?? [],
      );
      this.promptLimit = branches(fields.prompt).find((b) => b.maxLength)?.maxLength ?? this.promptLimit;
      this.sides = branches(fields.width).find((b) => b.maximum) ?? null;
      this.needsKey = components.securitySchemes !== undefined;
      this.isDescribed = true;
      this.onChange();
    } catch {
      // the form then offers what the service chooses
    }
  }
}

function branches(schema) {
  return schema?.anyOf ?? (schema ? [schema] : []);
}
