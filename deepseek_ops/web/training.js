// Keeps an open run page new: asks for its sections again and puts in those that have changed.
// The server escaped them, and the page's policy runs no script that they might hold.
(() => {
  "use strict";
  const live = document.getElementById("live");
  const fresh = document.getElementById("fresh");
  const pause = document.getElementById("pause");
  const READING = 200, RUNNING = 5000, RESTING = 30000, LONGEST = 120000;
  let paused = false, failures = 0, timer = 0;

  const put = (name, html) => {
    const section = document.getElementById(name);
    if (!section) return;
    const key = (one) => one.id || one.dataset.key;
    const open = new Set([...section.querySelectorAll("details[open]")].map(key));
    const parsed = new DOMParser().parseFromString(html, "text/html");
    for (const one of parsed.querySelectorAll("details")) if (open.has(key(one))) one.open = true;
    section.replaceChildren(...parsed.body.childNodes);
  };

  const plan = () => {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    // "more": the server has not read all that is stored yet and goes on with the next look.
    const usual = live.dataset.more === "true" ? READING : live.dataset.state === "running" ? RUNNING : RESTING;
    timer = setTimeout(look, Math.min(usual * 2 ** failures, LONGEST));
  };

  const look = async () => {
    try {
      const address = new URL(live.dataset.from, location.href);
      address.searchParams.set("after", live.dataset.revision);
      const answer = await fetch(address, { credentials: "same-origin", cache: "no-store" });
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      const told = await answer.json();
      for (const [name, html] of Object.entries(told.sections || {})) put(name, html);
      live.dataset.revision = told.revision;
      live.dataset.state = told.state;
      live.dataset.more = String(told.more);
      failures = 0;
      fresh.textContent = `as of ${new Date().toLocaleTimeString()}`;
    } catch (error) {
      failures += 1;
      fresh.textContent = `not refreshed: ${error.message}`;
    }
    plan();
  };

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (paused) clearTimeout(timer);
    else look();
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : paused || look()));
  plan();
})();
