// Before the page is painted, or it would flash in the other colours. What is chosen stays in this browser.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("refgenfs-theme"); } catch { /* no storage: the system's */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
