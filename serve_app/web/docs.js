// The page /docs: Swagger UI over this service's own description, and a field for an API key.
// The key lives in sessionStorage, so it ends with the tab, and travels in a header alone.
"use strict";

const KEY_ITEM = "aura-serve.api-key";
const base = new URL(".", window.location.href); // right under any prefix, and behind any proxy

const form = document.getElementById("key-form");
const field = document.getElementById("key");
const state = document.getElementById("key-state");

function storedKey() {
  return window.sessionStorage.getItem(KEY_ITEM) ?? "";
}

function store(key) {
  if (key) {
    window.sessionStorage.setItem(KEY_ITEM, key);
  } else {
    window.sessionStorage.removeItem(KEY_ITEM);
  }
  field.value = "";
  state.textContent = key ? "sent with every request of this tab" : "no key is sent";
}

function withKey(request) {
  const key = storedKey();
  if (key && new URL(request.url, base).origin === base.origin) {
    request.headers = { ...request.headers, Authorization: `Bearer ${key}` };
  }
  return request;
}

function fail(reason) {
  const failure = document.getElementById("failure");
  failure.textContent = `openapi.json could not be read: ${reason}`;
  failure.hidden = false;
}

async function show() {
  const response = await fetch(new URL("openapi.json", base), { credentials: "omit" });
  if (!response.ok) {
    throw new Error(`the service answered ${response.status}`);
  }
  const description = await response.json();
  description.servers = [{ url: base.href.replace(/\/$/, "") }];
  form.hidden = !description.components?.securitySchemes;
  SwaggerUIBundle({
    spec: description,
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    persistAuthorization: false,
    tryItOutEnabled: true,
    validatorUrl: null,
    requestInterceptor: withKey,
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  store(field.value.trim());
});
document.getElementById("forget").addEventListener("click", () => store(""));
store(storedKey());
show().catch((error) => fail(error.message));
