// What the pages need beyond htmx: registering an image, copying a command, saying when the server is gone.
// No page needs any of it for reading.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);

  // What somebody opened, chose or typed stays so when a live part is morphed.
  Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) =>
    !(
      (name === "open" && node.nodeName === "DETAILS") ||
      (name === "selected" && node.nodeName === "OPTION") ||
      (name === "value" && node.nodeName === "INPUT" && node.value !== node.defaultValue)
    );

  // htmx tells when the stream of events breaks and when it is there again.
  // A moment without it, as when one goes to another page, is not worth a word.
  let silence = 0;
  document.body.addEventListener("htmx:sseError", () => {
    silence ||= setTimeout(() => { byId("offline").hidden = false; }, 2000);
  });
  document.body.addEventListener("htmx:sseOpen", () => {
    clearTimeout(silence);
    silence = 0;
    byId("offline").hidden = true;
  });

  for (const time of document.querySelectorAll("time.absolute")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) time.textContent = at.toLocaleString();
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = byId(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        // Without the permission, select it: the keyboard does the rest.
        getSelection().selectAllChildren(text);
      }
    });
  }

  const size = (bytes) => {
    let [amount, unit] = [bytes, "B"];
    for (const next of ["KiB", "MiB", "GiB", "TiB"]) {
      if (amount < 1024) break;
      [amount, unit] = [amount / 1024, next];
    }
    const shown = unit === "B" || amount >= 100 ? Math.floor(amount) : Math.floor(amount * 10) / 10;
    return `${shown}\u00a0${unit}`;
  };
  const speed = (bytes) => `${bytes >= 1e8 ? Math.round(bytes / 1e6) : Math.round(bytes / 1e5) / 10}\u00a0MB/s`;
  const span = (seconds) => {
    const whole = Math.ceil(seconds);
    if (whole < 60) return `${whole}\u00a0s`;
    if (whole < 3600) return `${Math.floor(whole / 60)}\u00a0min ${whole % 60}\u00a0s`;
    return `${Math.floor(whole / 3600)}\u00a0h ${Math.floor(whole / 60) % 60}\u00a0min`;
  };

  const form = byId("register");
  if (form) register(form);

  function register(form) {
    const [file, name, format, drop] = ["file", "name", "format", "drop"].map(byId);
    const [problem, done, spoken] = ["register-problem", "register-done", "register-spoken"].map(byId);
    const [sending, bar, send, abort] = ["sending", "sent", "send", "abort"].map(byId);
    let suggested = "";
    let request = null;

    const say = (element, text) => { element.textContent = text; element.hidden = text === ""; };

    function choose() {
      const chosen = file.files[0];
      if (!chosen) return;
      say(problem, "");
      say(done, "");
      byId("chosen").textContent = `${chosen.name}, ${size(chosen.size)}`;
      const lower = chosen.name.toLowerCase();
      format.value = lower.endsWith(".qcow2") ? "qcow2" : lower.endsWith(".zst") ? "raw.zst" : "raw";
      if (name.value === "" || name.value === suggested) {
        suggested = lower
          .replace(/(\.(zst|raw|img|qcow2|dd|bin|disk))+$/, "")
          .replace(/[^a-z0-9._-]+/g, "-")
          .replace(/^[^a-z0-9]+|[^a-z0-9]+$/g, "")
          .slice(0, 63);
        name.value = suggested;
      }
    }

    file.addEventListener("change", choose);
    for (const kind of ["dragenter", "dragover"]) {
      drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
    }
    drop.addEventListener("dragleave", (event) => {
      if (!drop.contains(event.relatedTarget)) drop.classList.remove("over");
    });
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (request || event.dataTransfer.files.length === 0) return;
      file.files = event.dataTransfer.files;
      choose();
    });
    // A file that misses the field is not opened in place of the page.
    for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());

    form.addEventListener("submit", (event) => {
      event.preventDefault();
      say(problem, "");
      say(done, "");
      const chosen = file.files[0];
      if (!chosen) return fail("Choose a disk image first.", file);
      if (name.value.trim() === "") return fail("Give the image a name.", name);
      upload(chosen, name.value.trim(), format.value);
    });
    abort.addEventListener("click", () => request && request.abort());

    function fail(text, field) {
      say(problem, text);
      field.focus();
    }

    function upload(chosen, image, kind) {
      // Of a raw image the file's size is the disk's; the others say it themselves.
      const declared = kind === "raw" ? `&size=${chosen.size}` : "";
      const address = `/api/v1/images/${encodeURIComponent(image)}/versions?format=${kind}${declared}`;
      request = new XMLHttpRequest();
      request.open("POST", address);
      request.setRequestHeader("X-Cairn-Request", "1");
      request.setRequestHeader("Content-Type", "application/octet-stream");
      const began = performance.now();
      const seen = [[began, 0]];
      let tens = 0;

      request.upload.addEventListener("progress", (event) => {
        const now = performance.now();
        seen.push([now, event.loaded]);
        while (seen.length > 2 && now - seen[0][0] > 5000) seen.shift();
        const rate = ((event.loaded - seen[0][1]) * 1000) / Math.max(now - seen[0][0], 1);
        const share = event.total > 0 ? event.loaded / event.total : 1;
        bar.value = share * 100;
        byId("sent-text").textContent = `${size(event.loaded)} of ${size(event.total)} sent`;
        byId("sent-rate").textContent = speed(rate);
        byId("sent-left").textContent =
          event.loaded >= event.total ? "finishing" : rate > 0 ? `${span((event.total - event.loaded) / rate)} left` : "";
        if (Math.floor(share * 10) > tens) {
          tens = Math.floor(share * 10);
          spoken.textContent = `${tens * 10} percent sent`;
        }
      });
      request.addEventListener("load", () => finish(answered(request, image)));
      request.addEventListener("error", () => finish({
        problem: "The connection to the server broke. Nothing of this upload is kept; try again.",
      }));
      request.addEventListener("abort", () => finish({ problem: "Cancelled. Nothing of this upload is kept." }));
      busy(true);
      request.send(chosen);
    }

    function busy(is) {
      for (const field of [file, name, format, send]) field.disabled = is;
      abort.hidden = !is;
      sending.hidden = !is;
      bar.value = 0;
      for (const id of ["sent-text", "sent-rate", "sent-left"]) byId(id).textContent = "";
    }

    function finish(outcome) {
      request = null;
      busy(false);
      spoken.textContent = "";
      if (outcome.problem) return say(problem, outcome.problem);
      say(done, outcome.done);
      form.reset();
      suggested = "";
      byId("chosen").textContent = "";
    }

    addEventListener("beforeunload", (event) => { if (request) event.preventDefault(); });
  }

  // What an answer of the API says, for people.
  function answered(request, image) {
    let body = {};
    try { body = JSON.parse(request.responseText); } catch { /* not from us */ }
    if (request.status >= 200 && request.status < 300) {
      const version = body.number ? `, version ${body.number}` : "";
      return { done: body.identical
        ? `Nothing to add: this is the same as ${image}${version}.`
        : `Registered ${image}${version}.` };
    }
    if (request.status === 401) return { problem: "Your session is over: sign in again, then register the image." };
    return { problem: body.detail || `The server answered ${request.status}.` };
  }
})();
