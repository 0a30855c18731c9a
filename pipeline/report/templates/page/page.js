"use strict";

// --- Theme: the system's unless the reader chooses another ---------------------------------------------------------

const THEMES = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");

function stored(key, value) {
  try { // storage may be disabled, and often is for local files
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch { return null; }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  themeButton.textContent = `Theme: ${theme}`;
}

setTheme(THEMES.includes(stored("cai-theme")) ? stored("cai-theme") : "system");
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  setTheme(theme);
  stored("cai-theme", theme);
});

// --- Printing: open all details. Transcripts are printed as they are on the screen. ---------------------------------

let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open], .entry > details, .entry details:not([open]) *)")];
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
});
