"use strict";
(() => {
  const script = document.currentScript;
  const from = script.dataset.from;
  const note = document.getElementById("link");
  let every = script.dataset.every;
  let failures = 0;
  let timer = null;

  // What the server sent last, by part: a part is exchanged only when that changes, so that
  // pictures do not flicker and a selection in the output survives.
  const sent = new Map();
  const parts = (root) => root.querySelectorAll("[data-part]");

  function localise(root) {
    for (const time of root.querySelectorAll("time")) {
      const date = new Date(time.dateTime);
      if (!Number.isNaN(date.getTime())) {
        time.textContent = date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
        time.title = time.dateTime;
      }
    }
  }

  function exchange(old, fresh) {
    const log = old.querySelector("pre.log");
    const top = log ? log.scrollTop : 0;
    const follows = !log || log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    old.replaceChildren(...fresh.childNodes);
    localise(old);
    const now = old.querySelector("pre.log");
    if (now) now.scrollTop = follows ? now.scrollHeight : top;
  }

  function show(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const live = page.getElementById("live");
    if (!live) return;
    document.title = live.dataset.title;
    for (const fresh of parts(live)) {
      const name = fresh.dataset.part;
      const html = fresh.innerHTML;
      if (sent.get(name) === html) continue;
      sent.set(name, html);
      const old = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
      if (old) exchange(old, fresh);
    }
  }

  async function refresh() {
    timer = null;
    if (document.hidden) return;
    try {
      const answer = await fetch(from, { cache: "no-store" });
      if (answer.status === 404 || answer.status === 401) {
        location.reload();
        return;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      show(await answer.text());
      every = answer.headers.get("qctl-refresh") || "never";
      failures = 0;
      note.textContent = "";
    } catch {
      failures += 1;
      note.textContent = note.dataset.lost;
    }
    plan();
  }

  function plan() {
    if (every === "never" || timer !== null) return;
    const wait = Math.min(30, Number(every) * 2 ** Math.min(failures, 4));
    timer = setTimeout(refresh, wait * 1000);
  }

  for (const part of parts(document)) sent.set(part.dataset.part, part.innerHTML);
  localise(document);
  const log = document.querySelector("pre.log");
  if (log) log.scrollTop = log.scrollHeight;
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && every !== "never" && timer === null) refresh();
  });
  plan();
})();
