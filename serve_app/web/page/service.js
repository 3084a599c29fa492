// What this service is and whether it is there: /health, its description, its licences.

const EVERY_MS = 5000;
const DEFAULT_PROMPT_LIMIT = 500;

export class Service {
  constructor(client, onChange) {
    this.client = client;
    this.onChange = onChange;
    this.health = null; // as it answered last
    this.samplers = [];
    this.promptLimit = DEFAULT_PROMPT_LIMIT;
    this.needsKey = false;
    this.isReachable = true;
  }

  async start() {
    await Promise.all([this.#describe(), this.#look()]);
    setInterval(() => this.#look(), EVERY_MS);
  }

  get isReady() {
    return this.isReachable && ["ready", "degraded"].includes(this.health?.status);
  }

  get isDemo() {
    return this.health?.model === "demo" || (this.health?.model ?? "").startsWith("demo-");
  }

  async #look() {
    let health = null;
    try {
      health = await this.client.health();
    } catch {
      // it is not there
    }
    const before = JSON.stringify([this.health, this.isReachable]);
    this.isReachable = health !== null;
    this.health = health ?? this.health;
    if (JSON.stringify([this.health, this.isReachable]) !== before) {
      this.onChange();
    }
  }

  // Takes from the description what a form must know.
  async #describe() {
    try {
      const { components } = await this.client.description();
      const fields = components.schemas.GenerateRequest.properties;
      this.samplers = valuesOf(fields.sampler);
      this.promptLimit = branches(fields.prompt).find((b) => b.maxLength)?.maxLength ?? this.promptLimit;
      this.needsKey = components.securitySchemes !== undefined;
      this.onChange();
    } catch {
      // the form then offers what the service chooses
    }
  }
}

function branches(schema) {
  return schema?.anyOf ?? (schema ? [schema] : []);
}

function valuesOf(schema) {
  return branches(schema).flatMap((branch) => branch.enum ?? []);
}
