// Keeps the live part of a page up to date: fetches the page again and replaces that part.
"use strict";

const PERIOD_MS = 5000;

async function refresh() {
  const live = document.querySelector("[data-live]");
  if (!live || document.hidden || live.contains(document.activeElement) || !getSelection().isCollapsed) return;
  const pulse = document.getElementById("pulse");
  try {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) throw new Error(response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById("live");
    if (fresh && !live.contains(document.activeElement)) live.replaceWith(fresh);
    pulse.classList.remove("stale");
    pulse.title = "This page is up to date";
  } catch (error) {
    pulse.classList.add("stale");
    pulse.title = "This page could not be loaded again: " + error.message;
  }
}

setInterval(refresh, PERIOD_MS);
document.addEventListener("visibilitychange", refresh);
