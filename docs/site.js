// A long equation scrolls by itself: a tab stop there, so that keys reach its end.
addEventListener("load", () => window.MathJax?.startup?.promise?.then(() => {
  for (const equation of document.querySelectorAll("div.math mjx-container")) {
    if (equation.scrollWidth > equation.clientWidth) equation.tabIndex = 0;
  }
}));
