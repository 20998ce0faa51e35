// Light and dark: what the system prefers, until the reader chooses.

const CHOSEN_THEME = "qk-taxonomy-theme";

function storedTheme() {
  // A page that was opened as a file may have no storage.
  try {
    return localStorage.getItem(CHOSEN_THEME);
  } catch {
    return null;
  }
}

function currentTheme() {
  const chosen = document.documentElement.dataset.theme;
  return chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
}

/** `redraw` is called whenever the colours of charts change. */
function openTheme(redraw) {
  const button = document.getElementById("theme");
  const stored = storedTheme();
  setTheme(stored === "dark" || stored === "light" ? stored : currentTheme());
  button.addEventListener("click", () => {
    const theme = currentTheme() === "dark" ? "light" : "dark";
    setTheme(theme);
    try {
      localStorage.setItem(CHOSEN_THEME, theme);
    } catch {
      // The choice then holds until the page is closed.
    }
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    if (storedTheme()) return;
    setTheme(event.matches ? "dark" : "light");
    redraw();
  });
  // Paper is white, and narrower than a window; the style sheet knows how wide.
  let before = currentTheme();
  const print = (starts) => {
    if (starts) before = currentTheme();
    setTheme(starts ? "light" : before);
    document.documentElement.classList.toggle("printed", starts);
    redraw();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
}

/** A colour of the style sheet. */
function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
