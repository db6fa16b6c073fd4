"use strict";
// Zoom, search, details and keys for the drawings of page.py. Text from the model only ever becomes textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const details = $("details");
  const views = data.map((view, number) => {
    const above = view.items.map(() => []), below = view.items.map(() => []);
    for (const [from, to] of view.edges) { below[from].push(to); above[to].push(from); }
    return { ...view, above, below, svg: $("g" + number), section: $("v" + number), zoom: 1, chosen: -1 };
  });
  let current = 0, matches = [], match = -1;

  const box = (number) => $(`n${current}-${number}`);
  const scroller = () => views[current].svg && views[current].svg.parentElement;

  function zoomTo(zoom, keep) {
    const view = views[current], pane = scroller();
    if (!view.svg) return;
    zoom = Math.min(4, Math.max(0.02, zoom));
    const size = view.svg.viewBox.baseVal, at = keep || { x: pane.clientWidth / 2, y: pane.clientHeight / 2 };
    const x = (pane.scrollLeft + at.x) / view.zoom, y = (pane.scrollTop + at.y) / view.zoom;
    view.zoom = zoom;
    view.svg.setAttribute("width", size.width * zoom);
    view.svg.setAttribute("height", size.height * zoom);
    pane.scrollLeft = x * zoom - at.x;
    pane.scrollTop = y * zoom - at.y;
  }

  function fit() {
    const view = views[current], pane = scroller();
    if (!view.svg) return;
    const size = view.svg.viewBox.baseVal;
    zoomTo(Math.min(1, pane.clientWidth / size.width, pane.clientHeight / size.height));
  }

  function center(number) {
    const pane = scroller(), at = box(number).querySelector(".box"), zoom = views[current].zoom;
    pane.scrollLeft = (at.x.baseVal.value + at.width.baseVal.value / 2) * zoom - pane.clientWidth / 2;
    pane.scrollTop = (at.y.baseVal.value + at.height.baseVal.value / 2) * zoom - pane.clientHeight / 2;
  }

  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  function neighbors(number) {
    const view = views[current];
    return [...view.above[number], ...view.below[number]];
  }

  function unchoose() {
    const view = views[current];
    if (view.chosen >= 0) {
      box(view.chosen).classList.remove("chosen");
      box(view.chosen).setAttribute("aria-selected", "false");
      for (const other of neighbors(view.chosen)) box(other).classList.remove("near");
    }
    view.chosen = -1;
    details.hidden = true;
  }

  function choose(number, move) {
    unchoose();
    const view = views[current], item = view.items[number], chosen = box(number);
    view.chosen = number;
    chosen.classList.add("chosen");
    chosen.setAttribute("aria-selected", "true");
    view.svg.setAttribute("aria-activedescendant", chosen.id);
    for (const other of neighbors(number)) box(other).classList.add("near");
    const close = element("button", "×", "close");
    close.setAttribute("aria-label", "Close");
    close.onclick = unchoose;
    const table = element("table");
    for (const [label, text] of item.rows) {
      const row = element("tr"), head = element("th", label);
      head.scope = "row";
      row.append(head, element("td", text));
      table.append(row);
    }
    details.replaceChildren(close, element("h2", item.op || item.name), table);
    for (const [title, other] of item.bodies || []) {
      const open = element("button", "Show " + title);
      open.onclick = () => show(other);
      details.append(open);
    }
    details.hidden = false;
    if (move) center(number);
  }

  function show(number) {
    unchoose();
    current = number;
    $("which").value = String(number);
    views.forEach((view, i) => { view.section.hidden = i !== number; });
    paint();
    find();
  }

  function paint() {
    const by = $("color").value;
    if (!views[current].svg) return;
    for (const heat of views[current].svg.querySelectorAll(".heat")) {
      heat.setAttribute("fill-opacity", by ? heat.dataset[by] : "0");
    }
  }

  function find() {
    const view = views[current], text = $("find").value.trim().toLowerCase();
    for (const old of matches) { const found = box(old); if (found) found.classList.remove("match"); }
    matches = [];
    match = -1;
    if (text && view.svg) {
      view.items.forEach((item, i) => {
        const all = [item.op, item.name, ...item.rows.map((row) => row[1])];
        if (all.some((part) => part.toLowerCase().includes(text))) matches.push(i);
      });
      for (const found of matches) box(found).classList.add("match");
    }
    $("found").textContent = text ? `${matches.length} found` : "";
  }

  function next(step) {
    if (!matches.length) return;
    match = (match + step + matches.length) % matches.length;
    if (views[current].zoom < 0.4) zoomTo(0.8);
    choose(matches[match], true);
    $("found").textContent = `${match + 1} of ${matches.length}`;
  }

  function step(key) {
    const view = views[current], at = view.chosen;
    if (at < 0) return choose(0, true);
    if (key === "ArrowDown" && view.below[at].length) return choose(view.below[at][0], true);
    if (key === "ArrowUp" && view.above[at].length) return choose(view.above[at][0], true);
    if (key === "ArrowRight" || key === "ArrowLeft") {
      const parent = view.above[at][0], row = parent === undefined ? [at] : view.below[parent];
      const to = row[(row.indexOf(at) + (key === "ArrowRight" ? 1 : row.length - 1)) % row.length];
      choose(to, true);
    }
  }

  function follow() {
    const found = /^#n(\d+)-(\d+)$/.exec(location.hash);
    if (!found || !views[found[1]] || !views[found[1]].items[found[2]] || !views[found[1]].svg) return;
    if (Number(found[1]) !== current) show(Number(found[1]));
    if (views[current].zoom < 0.4) zoomTo(0.8);
    choose(Number(found[2]), true);
    scroller().scrollIntoView({ block: "nearest" });
  }

  for (const view of views) {
    if (!view.svg) continue;
    const pane = view.svg.parentElement;
    let from = null, moved = false;
    pane.addEventListener("pointerdown", (event) => {
      if (event.button || event.pointerType !== "mouse") return;
      from = { x: event.clientX + pane.scrollLeft, y: event.clientY + pane.scrollTop };
      moved = false;
    });
    pane.addEventListener("pointermove", (event) => {
      if (!from) return;
      if (!(event.buttons & 1)) { from = null; pane.classList.remove("drag"); return; }
      const left = from.x - event.clientX, top = from.y - event.clientY;
      moved = moved || Math.abs(left - pane.scrollLeft) + Math.abs(top - pane.scrollTop) > 4;
      if (moved) { pane.classList.add("drag"); pane.scrollLeft = left; pane.scrollTop = top; }
    });
    pane.addEventListener("pointerup", () => { from = null; pane.classList.remove("drag"); });
    pane.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const edge = pane.getBoundingClientRect();
      zoomTo(view.zoom * Math.exp(-event.deltaY / 300), { x: event.clientX - edge.left, y: event.clientY - edge.top });
    }, { passive: false });
    view.svg.addEventListener("click", (event) => {
      const hit = event.target.closest(".op,.end");
      if (moved) return;
      if (hit) choose(Number(hit.id.split("-")[1]), false); else unchoose();
    });
    view.svg.addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) { event.preventDefault(); step(event.key); }
      if (event.key === "Escape") unchoose();
      if (event.key === "+") zoomTo(view.zoom * 1.25);
      if (event.key === "-") zoomTo(view.zoom / 1.25);
    });
  }
  $("which").onchange = (event) => show(Number(event.target.value));
  $("color").onchange = paint;
  $("find").oninput = find;
  $("find").onkeydown = (event) => { if (event.key === "Enter") next(event.shiftKey ? -1 : 1); };
  $("next").onclick = () => next(1);
  $("in").onclick = () => zoomTo(views[current].zoom * 1.25);
  $("out").onclick = () => zoomTo(views[current].zoom / 1.25);
  $("one").onclick = () => zoomTo(1);
  $("fit").onclick = fit;
  addEventListener("hashchange", follow);
  document.querySelector(".controls").hidden = false;
  const pane = scroller();
  if (pane) pane.scrollLeft = (pane.scrollWidth - pane.clientWidth) / 2;
  follow();
})();
