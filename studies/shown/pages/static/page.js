"use strict";
// Copies commands, says that a page is being made, and follows studies while they run.
const PAUSE = 5000;
const said = document.getElementById("live");

document.addEventListener("click", (event) => {
  const button = event.target.closest(".copy");
  if (button) {
    navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent).then(
      () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); },
      () => { said.textContent = "The browser does not let this page copy; mark the command instead."; },
    );
  }
  const link = event.target.closest("a[href^='/insights?']");
  if (link) { document.getElementById("main").setAttribute("aria-busy", "true"); said.textContent = "Reading the trials"; }
});
window.addEventListener("pageshow", () => { document.getElementById("main").removeAttribute("aria-busy"); said.textContent = ""; });

function shown() {
  return [...document.querySelectorAll("[data-study]")].map((node) => [node.dataset.study, Number(node.dataset.trials)]);
}

async function follow() {
  const before = shown();
  if (document.hidden || !before.length || document.activeElement?.closest("form")) return;
  const rows = await (await fetch("/api/studies")).json();
  const now = new Map(rows.map((row) => [row.study, row.trials]));
  const single = new URLSearchParams(location.search).getAll("study").length === 1 || location.pathname === "/";
  if (!single || !before.some(([name, trials]) => now.get(name) !== trials)) return;
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const focus = document.activeElement?.id, fresh = page.getElementById("main");
  if (!fresh) return;
  document.getElementById("main").replaceWith(fresh);
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  said.textContent = "New trials";
}
setInterval(() => follow().catch(() => { said.textContent = "The server does not answer"; }), PAUSE);
