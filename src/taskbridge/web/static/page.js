// Keeps the live part of a page up to date: fetches the page again every few seconds, and replaces that part.
"use strict";

async function refresh() {
  const live = document.querySelector("[data-live]");
  if (!live) return;
  const pulse = document.getElementById("pulse");
  try {
    if (document.hidden || live.contains(document.activeElement) || !getSelection().isCollapsed) return;
    const response = await fetch(location.href);
    if (!response.ok) throw new Error(response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById("live");
    if (!fresh) throw new Error("it is not shown any more");
    if (!live.contains(document.activeElement)) live.replaceWith(fresh);
    pulse.classList.remove("stale");
    pulse.title = "This page is up to date";
  } catch (error) {
    pulse.classList.add("stale");
    pulse.title = "This page could not be loaded again: " + error.message;
  } finally {
    setTimeout(refresh, live.dataset.live * 1000);
  }
}

setTimeout(refresh, 3000);
