"use strict";
// What answers to the reader: which trial is open, where the threshold stands, and what follows from it.
// Index i of a threshold: bins i and up are dropped; one past the last bin drops nothing.
(() => {
  const live = JSON.parse(document.getElementById("live").textContent);
  const last = live.texts.length;
  const STEPS = live.steps, MOST_IMAGES = 15, REACH_PX = 28;
  const byId = (id) => document.getElementById(id);
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  const group = (n) => n.toLocaleString("en-US");
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  // Arithmetic on binned counts

  function atOrOver(counts) {
    const over = new Array(last + 1).fill(0);
    for (let i = last - 1; i >= 0; i--) over[i] = over[i + 1] + counts[i];
    return over;
  }

  function tally([counts, always]) {
    return { over: atOrOver(counts), always };
  }

  // Wilson, JASA 22:209 (1927)
  function wilson(successes, n) {
    const z = 1.959963984540054, share = successes / n;
    const centre = (share + z ** 2 / (2 * n)) / (1 + z ** 2 / n);
    const half = (z / (1 + z ** 2 / n)) * Math.sqrt((share * (1 - share)) / n + z ** 2 / (4 * n ** 2));
    return [Math.min(share, Math.max(0, centre - half)), Math.max(share, Math.min(1, centre + half))];
  }

  function flagged(over, i) {
    const n = over[0];
    if (!n) return "";
    const [low, high] = wilson(over[i], n);
    return ` · ${percent(over[i] / n)} flagged [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`;
  }

  // P(Bin(n, p) <= k)
  function binomialCdf(k, n, p) {
    if (p <= 0) return 1;
    if (p >= 1) return k >= n ? 1 : 0;
    let logTerm = n * Math.log1p(-p), sum = Math.exp(logTerm);
    for (let j = 1; j <= k; j++) {
      logTerm += Math.log((n - j + 1) / j) + Math.log(p) - Math.log1p(-p);
      sum += Math.exp(logTerm);
    }
    return Math.min(sum, 1);
  }

  // Clopper & Pearson, Biometrika 26:404 (1934): the lower bound of a recall with k misses among n.
  function recallBound(k, n) {
    let low = 0, high = 1;
    for (let step = 0; step < 50; step++) {
      const recall = (low + high) / 2;
      if (binomialCdf(k, n, 1 - recall) <= 1 - live.confidence) low = recall;
      else high = recall;
    }
    return low;
  }

  // Level q at which Benjamini-Hochberg on conformal p-values first drops bins i and up, and what it then drops.
  function fdrLevel(i, samples, control) {
    const n = samples[0];
    const level = (j) => (samples[j] ? (n * (1 + control[j])) / (control[0] + 1) / samples[j] : Infinity);
    let best = i;
    for (let j = i; j >= 0; j--) if (level(j) <= level(best)) best = j;
    return { q: level(best), at: best };
  }

  const down = (value, digits) => (Math.floor(value * 10 ** digits) / 10 ** digits).toFixed(digits);
  const up = (value, digits) => (Math.ceil(value * 10 ** digits - 1e-9) / 10 ** digits).toFixed(digits);

  // What each rule must be set to in order to stop at index i: [setting, note].
  const needs = {
    none: (i) => (i === last ? ["nothing to set", "drops no scored image"] : ["cannot", "has no threshold"]),
    fixed: (i) => (i === last ? ["over every score", ""] : [i ? live.texts[i] : "0", "the threshold itself"]),
    percentile(i) {
      const n = control[0], below = n - control[i];
      if (!n) return ["cannot", "no images of unseen patients"];
      if (below === n) return ["cannot", "over every score of unseen patients"];
      return [`percentile ${((100 * below) / n).toFixed(2)}`, `${group(below)} of ${group(n)} unseen below`];
    },
    recall(i) {
      const n = same[0], missed = n - same[i];
      if (!n) return ["cannot", "no images of known patients"];
      if (missed === n) return ["cannot", "catches no image of a known patient"];
      const bound = down(recallBound(missed, n), 4);
      return [`recall ${bound}`, `catches ${percent(same[i] / n)} of ${group(n)}; the rule wants to be ${100 * live.confidence}% sure`];
    },
    fdr(i) {
      const over = sets[samples].all.over;
      if (!control[0]) return ["cannot", "no images of unseen patients"];
      const { q, at } = fdrLevel(i, over, control);
      if (!over[i]) return [`q under ${down(q, 4)}`, "drops no image"];
      if (over[at] === over[i]) return [`q ${up(q, 4)}`, "largest share of needless drops"];
      return ["cannot", `q ${up(q, 4)} already drops from ${at ? live.texts[at] : "0"}`];
    },
  };

  const control = atOrOver(live.control), same = atOrOver(live.same);
  const sets = {};
  for (const [name, found] of Object.entries(live.samples)) {
    sets[name] = { all: tally(found.binned), classes: found.classes.map(tally) };
  }
  let samples = Object.keys(sets)[0], index = last, trial = null, pointed = null;

  // Threshold

  function counted({ over, always }, i) {
    const dropped = over[i] + always, n = over[0] + always;
    return { dropped, kept: n - dropped, n };
  }

  function stepOf(i) {
    if (i === 0 || i === last) return i ? STEPS : 0;
    return Math.min(Math.max(Math.round((live.places[i] * STEPS) / 100), 1), STEPS - 1);
  }

  function indexOf(step) {
    if (step === 0 || step === STEPS) return step ? last : 0;
    const place = (100 * step) / STEPS;
    let nearest = 1;
    for (let i = 1; i < last; i++) if (Math.abs(live.places[i] - place) < Math.abs(live.places[nearest] - place)) nearest = i;
    return nearest;
  }

  function showThreshold() {
    const text = index === last ? "over every score" : index ? live.texts[index] : "0";
    const all = counted(sets[samples].all, index);
    const slider = byId("slider");
    slider.setAttribute("aria-valuetext", `${text}: drops ${group(all.dropped)} of ${group(all.n)}, keeps ${group(all.kept)}`);
    byId("stand").value = text;
    byId("drops").textContent = group(all.dropped);
    byId("keeps").textContent = group(all.kept);
    byId("of").textContent = group(all.n);
    byId("control-says").textContent = flagged(control, index);
    byId("same-says").textContent = flagged(same, index);
    for (const says of every(".says")) says.textContent = ` · ${percent(all.n ? all.dropped / all.n : 0)} dropped`;
    every("tr.tally").forEach((row, place) => showTally(row, counted(sets[samples].classes[place], index)));
    for (const cell of every("[data-rule]")) cell.replaceChildren(...need(...needs[cell.dataset.rule](index)));
    const home = trial && live.trials[trial];
    byId("back").hidden = !home || (home.index === index && home.samples === samples);
    byId("back").textContent = `back to trial ${trial}`;
    const at = live.places[index];
    byId("over-box").setAttribute("x", at);
    for (const line of every("line.threshold.live")) for (const end of ["x1", "x2"]) line.setAttribute(end, `${at}%`);
    if (byId("dropped-images")) showImages();
  }

  function showTally(row, { dropped, kept, n }) {
    const share = n ? dropped / n : 0;
    row.cells[1].textContent = group(dropped);
    row.cells[2].textContent = group(kept);
    row.querySelector(".part").setAttribute("width", percent(share));
    row.querySelector(".interval").textContent = n ? percent(share) : "";
  }

  function need(setting, note) {
    const [strong, small] = ["span", "span"].map((name) => document.createElement(name));
    strong.className = setting === "cannot" ? "missing" : "value";
    small.className = "note";
    strong.textContent = setting;
    small.textContent = note;
    return [strong, small];
  }

  // Images come sorted by score.
  function showImages() {
    const found = live.images[samples] || [];
    const cut = found.findIndex((image) => image.bin >= index);
    const first = cut < 0 ? found.length : cut;
    byId("dropped-images").replaceChildren(...found.slice(first, first + MOST_IMAGES).map((image) => picture(image, "dropped")));
    byId("kept-images").replaceChildren(...found.slice(Math.max(first - MOST_IMAGES, 0), first).reverse().map((image) => picture(image, "kept")));
    byId("n-dropped").textContent = shown(found.length - first);
    byId("n-kept").textContent = shown(first);
  }

  const shown = (n) => `${Math.min(n, MOST_IMAGES)} of ${group(n)} images on this page`;

  function picture(image, fate) {
    const figure = document.createElement("figure"), img = document.createElement("img"), says = document.createElement("figcaption");
    Object.assign(img, { src: image.source, width: image.width, height: image.width, className: "pixels" });
    img.alt = `synthetic image with score ${image.score}, ${fate}`;
    says.textContent = image.score;
    figure.append(img, says);
    return figure;
  }

  function moveTo(i) {
    index = i;
    byId("slider").value = stepOf(i);
    showThreshold();
  }

  function takeSamples(name) {
    samples = name;
    if (byId("samples")) byId("samples").value = name;
    for (const part of every("[data-samples]")) part.hidden = part.dataset.samples !== name;
  }

  // Trials

  const pareto = byId("pareto"), plot = byId("plot");
  const marks = () => every(`.view[data-view="${pareto.dataset.view}"] .point`, plot);
  // In percent of the plot, from the left and from the top.
  const place = (mark) => ["x", "y"].map((axis) => parseFloat(mark.querySelector(".mark").getAttribute(axis)));

  function select(number) {
    trial = String(number);
    for (const article of every("#pane > article")) article.hidden = article.dataset.trial !== trial;
    for (const mark of every(".point", plot)) mark.setAttribute("aria-selected", mark.dataset.trial === trial);
    for (const row of every("#trials tr[data-trial]")) row.setAttribute("aria-current", row.dataset.trial === trial);
    takeSamples(live.trials[trial].samples);
    moveTo(live.trials[trial].index);
  }

  function point(mark) {
    pointed = mark;
    for (const other of every(".point", plot)) other.classList.toggle("pointed", other === mark);
    if (mark) plot.setAttribute("aria-activedescendant", mark.id);
    else plot.removeAttribute("aria-activedescendant");
    byId("readout").textContent = mark ? mark.getAttribute("aria-label") : "Click a mark to open it. On the keyboard: arrows, then Enter.";
  }

  function nearest(event) {
    const box = plot.getBoundingClientRect();
    const far = (mark) => {
      const [x, y] = place(mark);
      return Math.hypot(box.x + (x * box.width) / 100 - event.clientX, box.y + (y * box.height) / 100 - event.clientY);
    };
    const mark = marks().sort((a, b) => far(a) - far(b))[0];
    return mark && far(mark) <= REACH_PX ? mark : null;
  }

  function stepThrough(key) {
    const axis = key === "ArrowLeft" || key === "ArrowRight" ? 0 : 1;
    const line = marks().sort((a, b) => place(a)[axis] - place(b)[axis] || a.dataset.trial - b.dataset.trial);
    if (key === "Home" || key === "End") return line.at(key === "Home" ? 0 : -1);
    const by = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    return line[Math.min(Math.max(line.indexOf(pointed) + by, 0), line.length - 1)];
  }

  plot.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      if (pointed) select(pointed.dataset.trial);
    } else if (/^(Arrow|Home|End)/.test(event.key)) {
      point(stepThrough(event.key) || null);
    } else return;
    event.preventDefault();
  });
  plot.addEventListener("focus", () => point(marks().find((mark) => mark.dataset.trial === trial) || marks()[0] || null));
  plot.addEventListener("pointermove", (event) => point(nearest(event)));
  plot.addEventListener("pointerleave", () => point(null));
  plot.addEventListener("click", (event) => {
    const mark = nearest(event);
    if (mark) select(mark.dataset.trial);
  });
  for (const input of every("input[name=view]")) {
    input.addEventListener("change", () => {
      pareto.dataset.view = input.value;
      point(null);
    });
  }
  for (const link of every("#trials tbody a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      select(link.closest("tr").dataset.trial);
      byId(`trial-${trial}`).querySelector("h3").focus({ preventScroll: true });
      byId("tradeoff").scrollIntoView();
    });
  }
  for (const button of every("[data-index]")) button.addEventListener("click", () => moveTo(Number(button.dataset.index)));
  byId("back").addEventListener("click", () => {
    select(trial);
    byId("slider").focus();
  });
  byId("slider").addEventListener("input", (event) => {
    index = indexOf(Number(event.target.value));
    showThreshold();
  });
  byId("samples")?.addEventListener("change", (event) => {
    takeSamples(event.target.value);
    showThreshold();
  });

  takeSamples(samples);
  const named = location.hash.replace("#trial-", ""), chosen = [named, live.recommended].find((number) => number in live.trials);
  const first = chosen ?? document.querySelector("#pane > article")?.dataset.trial;
  if (first === undefined) moveTo(last);
  else select(first);
  point(null);
})();
