// Light or dark: the system's choice until the person makes one, which this browser keeps.

const ITEM = "aura-serve.theme";

export function showTheme() {
  try {
    const kept = localStorage.getItem(ITEM);
    if (kept) {
      document.documentElement.dataset.theme = kept;
    }
  } catch {
    // the system's theme then
  }
}

export function switchTheme() {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme
    ? dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem(ITEM, dataset.theme);
  } catch {
    // without storage the choice ends with the page
  }
}
