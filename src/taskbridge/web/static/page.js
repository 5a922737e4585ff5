// Keeps the live part of a page up to date: fetches the page again every few seconds, and replaces that part.
"use strict";

async function refresh() {
  const live = document.querySelector("[data-live]");
  if (!live) return;
  setTimeout(refresh, live.dataset.live * 1000);
  if (document.hidden || live.contains(document.activeElement) || !getSelection().isCollapsed) return;
  const pulse = document.getElementById("pulse");
  try {
    const response = await fetch(location.href);
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

setTimeout(refresh, 3000);
