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

async function renewed(what) {
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const focus = document.activeElement?.id, fresh = page.getElementById("main");
  if (!fresh || fresh.isEqualNode(document.getElementById("main"))) return;
  const open = [...document.querySelectorAll("#main details[id][open], #main [type=radio][id]:checked")].map((node) => node.id);
  document.getElementById("main").replaceWith(fresh);
  for (const node of open.map((id) => document.getElementById(id))) if (node) node["open" in node ? "open" : "checked"] = true;
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  said.textContent = what;
}

async function followStudies() {
  const before = shown();
  if (!before.length || document.activeElement?.closest("form")) return;
  const rows = await (await fetch("/api/studies")).json();
  const now = new Map(rows.map((row) => [row.study, row.trials]));
  const single = new URLSearchParams(location.search).getAll("study").length === 1 || location.pathname === "/";
  if (single && before.some(([name, trials]) => now.get(name) !== trials)) await renewed("New trials");
}

async function followLogs() {
  const node = document.querySelector("[data-follow]");
  if (!node) return;
  const rows = await (await fetch(node.dataset.follow)).json();
  const chosen = node.dataset.log ? rows.filter((row) => row.log === node.dataset.log) : rows;
  if (chosen.map((row) => row.state).join(" ") !== node.dataset.state) await renewed("New answers");
}

setInterval(() => {
  if (document.hidden) return;
  Promise.all([followStudies(), followLogs()]).catch(() => { said.textContent = "The server does not answer"; });
}, PAUSE);
