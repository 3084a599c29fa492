// What the page says, in English and in Spanish. `{name}` stands for a value.

const TEXTS = {
  en: {
    skip: "Skip to the prompt",
    settings: "Settings",
    notice: "Notice",
    messages: "Messages",
    key: "API key",
    theme: "Light or dark",
    language: "Language",
    prompt: "What do you want to see?",
    promptNote: "Ctrl + Enter draws it.",
    aspect: "Aspect ratio",
    temperature: "Freedom",
    literal: "literal",
    free: "free",
    images: "Pictures",
    advanced: "Advanced",
    negative: "What should not be there",
    steps: "Steps",
    guidance: "Guidance",
    seed: "Seed",
    sampler: "Sampler",
    model: "Model",
    auto: "automatic",
    refiner: "Finish with the refiner",
    handoff: "Hand-off to it",
    reset: "Reset to the service's choice",
    generate: "Draw",
    draft: "Four drafts",
    dropHint: "Drop a PNG made here or by AUTOMATIC1111 anywhere to take over its settings.",
    board: "Moodboard",
    count: "{n} pictures",
    countOne: "1 picture",
    downloadAll: "Download all",
    empty: "Nothing here yet. Describe a picture, or begin with one of these:",
    licenses: "Licences and attribution",
    api: "HTTP API",
    ready: "{model} is ready",
    degraded: "{model} is ready; {reason}",
    loading: "Starting: {reason}",
    draining: "The service is about to stop",
    offline: "The service can't be reached. Trying again…",
    demo: "This is the demo: a tiny model that draws simple shapes. Real SDXL comes with a checkpoint: see “models” in the documentation.",
    queued: "waiting, number {position}",
    queuedEta: "waiting, number {position}, about {eta}",
    progress: "{stage}: step {step} of {of}",
    eta: "about {eta}",
    seconds: "{n} s",
    minutes: "{n} min",
    finishing: "almost done",
    cancel: "Cancel",
    cancelled: "cancelled",
    failed: "This picture could not be made",
    retry: "Try again",
    dismiss: "Remove",
    open: "Open picture: {prompt}",
    use: "Use this again",
    download: "Download",
    remove: "Delete",
    removed: "Picture deleted",
    undo: "Undo",
    refine: "Refine",
    refineTitle: "Refine this picture",
    refinePrompt: "What should change?",
    strength: "How much is made anew",
    promote: "Draw in full",
    draftBadge: "draft",
    before: "before",
    after: "after",
    compare: "Before and after",
    close: "Close",
    previous: "Previous picture",
    next: "Next picture",
    details: "How it was made",
    size: "Size",
    taken: "Settings taken over",
    noSettings: "That file says nothing of how it was made",
    keyTitle: "API key",
    keyNote: "The key stays in this tab until you close it, and is sent in a header alone.",
    keyNeeded: "This service wants an API key.",
    use_key: "Use",
    forget: "Forget",
    termsTitle: "Licences of the models",
    termsNeeded: "Before your first picture, please read and accept the terms of the models.",
    accept: "I accept these terms",
    restrictions: "You may not use it for",
    wholeText: "The whole text",
    attribution: "Pictures are made with {models}. They carry metadata that says that a model made them.",
    overloaded: "The service is busy.",
    retryIn: "Trying again in {n} s",
    error_LOADING: "The service is still starting.",
    error_OVERLOADED: "The service is busy.",
    error_DRAINING: "The service is about to stop.",
    error_UNAUTHORIZED: "The API key is missing or wrong.",
    error_RATE_LIMITED: "You have used up your share for now.",
    error_SAFETY_BLOCK: "The safety filter refuses this.",
    error_DEADLINE_EXCEEDED: "It was not done in time.",
    error_CANCELLED: "It was cancelled.",
    error_UNREACHABLE: "The service can't be reached. Your settings are kept; try again when it is back.",
    storage: "This browser keeps no pictures for this page, so they are gone when you close it.",
    dropHere: "Drop it to take over its settings",
  },
  es: {
    skip: "Ir a la descripción",
    settings: "Ajustes",
    notice: "Aviso",
    messages: "Mensajes",
    key: "Clave de API",
    theme: "Claro u oscuro",
    language: "Idioma",
    prompt: "¿Qué quieres ver?",
    promptNote: "Ctrl + Intro la dibuja.",
    aspect: "Proporción",
    temperature: "Libertad",
    literal: "literal",
    free: "libre",
    images: "Imágenes",
    advanced: "Avanzado",
    negative: "Lo que no debe aparecer",
    steps: "Pasos",
    guidance: "Guía",
    seed: "Semilla",
    sampler: "Muestreador",
    model: "Modelo",
    auto: "automático",
    refiner: "Terminar con el refinador",
    handoff: "Relevo",
    reset: "Volver a lo que elige el servicio",
    generate: "Dibujar",
    draft: "Cuatro bocetos",
    dropHint: "Suelta en cualquier sitio un PNG hecho aquí o con AUTOMATIC1111 para tomar sus ajustes.",
    board: "Tablero",
    count: "{n} imágenes",
    countOne: "1 imagen",
    downloadAll: "Descargar todas",
    empty: "Aún no hay nada. Describe una imagen o empieza con una de estas:",
    licenses: "Licencias y atribución",
    api: "API HTTP",
    ready: "{model} está listo",
    degraded: "{model} está listo; {reason}",
    loading: "Arrancando: {reason}",
    draining: "El servicio está a punto de parar",
    offline: "No se puede contactar con el servicio. Reintentando…",
    demo: "Esto es la demo: un modelo diminuto que dibuja formas sencillas. El SDXL de verdad llega con un checkpoint: mira «models» en la documentación.",
    queued: "en espera, número {position}",
    queuedEta: "en espera, número {position}, unos {eta}",
    progress: "{stage}: paso {step} de {of}",
    eta: "unos {eta}",
    seconds: "{n} s",
    minutes: "{n} min",
    finishing: "casi lista",
    cancel: "Cancelar",
    cancelled: "cancelada",
    failed: "No se pudo hacer esta imagen",
    retry: "Reintentar",
    dismiss: "Quitar",
    open: "Abrir imagen: {prompt}",
    use: "Usar de nuevo",
    download: "Descargar",
    remove: "Borrar",
    removed: "Imagen borrada",
    undo: "Deshacer",
    refine: "Refinar",
    refineTitle: "Refinar esta imagen",
    refinePrompt: "¿Qué debe cambiar?",
    strength: "Cuánto se rehace",
    promote: "Dibujar del todo",
    draftBadge: "boceto",
    before: "antes",
    after: "después",
    compare: "Antes y después",
    close: "Cerrar",
    previous: "Imagen anterior",
    next: "Imagen siguiente",
    details: "Cómo se hizo",
    size: "Tamaño",
    taken: "Ajustes tomados",
    noSettings: "Ese archivo no dice cómo se hizo",
    keyTitle: "Clave de API",
    keyNote: "La clave se queda en esta pestaña hasta que la cierres y solo viaja en una cabecera.",
    keyNeeded: "Este servicio pide una clave de API.",
    use_key: "Usar",
    forget: "Olvidar",
    termsTitle: "Licencias de los modelos",
    termsNeeded: "Antes de tu primera imagen, lee y acepta las condiciones de los modelos.",
    accept: "Acepto estas condiciones",
    restrictions: "No puedes usarlo para",
    wholeText: "El texto completo",
    attribution: "Las imágenes se hacen con {models}. Llevan metadatos que dicen que las hizo un modelo.",
    overloaded: "El servicio está ocupado.",
    retryIn: "Nuevo intento en {n} s",
    error_LOADING: "El servicio aún está arrancando.",
    error_OVERLOADED: "El servicio está ocupado.",
    error_DRAINING: "El servicio está a punto de parar.",
    error_UNAUTHORIZED: "Falta la clave de API o no es válida.",
    error_RATE_LIMITED: "Has agotado tu parte por ahora.",
    error_SAFETY_BLOCK: "El filtro de seguridad lo rechaza.",
    error_DEADLINE_EXCEEDED: "No estuvo lista a tiempo.",
    error_CANCELLED: "Se canceló.",
    error_UNREACHABLE: "No se puede contactar con el servicio. Tus ajustes se conservan; inténtalo cuando vuelva.",
    storage: "Este navegador no guarda imágenes para esta página: se pierden al cerrarla.",
    dropHere: "Suéltala para tomar sus ajustes",
  },
};

const LANGUAGE_ITEM = "aura-serve.language";
let language = firstLanguage();

export function currentLanguage() {
  return language;
}

export function text(name, values = {}) {
  const found = TEXTS[language][name] ?? TEXTS.en[name] ?? name;
  return found.replace(/\{(\w+)\}/g, (_, value) => values[value] ?? "");
}

export function hasText(name) {
  return name in TEXTS.en;
}

// Speaks another language from now on, everywhere on the page.
export function speak(chosen) {
  language = chosen in TEXTS ? chosen : "en";
  try {
    localStorage.setItem(LANGUAGE_ITEM, language);
  } catch {
    // without storage the choice ends with the page
  }
  translate(document);
}

// Fills in the texts of the elements that name one.
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = text(element.dataset.text);
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
    if (element.matches("button")) {
      element.title = text(element.dataset.label);
    }
  }
}

// Returns seconds in words: whole seconds, from ten on in fives, then minutes.
export function duration(milliseconds) {
  const seconds = Math.max(1, Math.round(milliseconds / 1000));
  if (seconds < 90) {
    return text("seconds", { n: seconds > 10 ? Math.ceil(seconds / 5) * 5 : seconds });
  }
  return text("minutes", { n: Math.round(seconds / 60) });
}

function firstLanguage() {
  try {
    const kept = localStorage.getItem(LANGUAGE_ITEM);
    if (kept in TEXTS) {
      return kept;
    }
  } catch {
    // as if nothing was kept
  }
  return (navigator.languages ?? []).some((name) => name.startsWith("es")) &&
    !(navigator.language ?? "en").startsWith("en")
    ? "es"
    : "en";
}
