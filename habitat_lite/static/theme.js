// Before the first paint, so that a dark page never flashes white.
"use strict";
(() => {
  document.documentElement.dataset.scripted = "";
  let wanted = "auto";
  try { wanted = localStorage.getItem("habitat-theme") || "auto"; } catch { /* private windows may refuse */ }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = wanted === "auto" ? (dark ? "dark" : "light") : wanted;
})();
