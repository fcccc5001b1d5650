"use strict";
const $ = (id) => document.getElementById(id);
const SIGNED = ["red-blue", "orange-purple"], UNSIGNED = ["viridis", "cividis"];
const KEYS = [
  ["j  k", "next, previous slide"], ["/", "search"], ["+  −  0", "zoom in, out, whole slide"], ["arrows", "move"],
  ["h", "heat map on, off"], ["[  ]", "opacity"], [",  .", "threshold"], ["1 … 9", "tab: fold or system"],
  ["t  b", "next highest, lowest patch"], ["a  d", "agree, disagree"], ["c", "comment"], ["?", "these keys"],
];
const FILTERS = [
  ["label", (i) => [i.label]], ["prediction", (i) => [i.predicted]], ["fold", (i) => i.folds], ["site", (i) => [i.site]],
  ["split", (i) => [i.split]], ["result", (i) => [i.wrong === null ? "" : i.wrong ? "wrong" : "right"]],
  ["problem", (i) => [i.problem ? "with a problem" : ""]], ["note", (i) => [i.verdict || (i.comment ? "comment" : "")]],
];
const SORTS = {
  "worst error first": (a, b) => (b.wrong || 0) / (b.judged || 1) - (a.wrong || 0) / (a.judged || 1) || b.error - a.error,
  "name": (a, b) => a.id.localeCompare(b.id, undefined, { numeric: true }),
  "risk or probability": (a, b) => (b.value ?? -Infinity) - (a.value ?? -Infinity),
};
const CHUNK = 120;
let items = [], shown = [], info = null, current = -1, tab = 0, heat = null, heatItem = null, heatOn = true;
let viewer, drawn = 0, opening = 0, heatTurn = 0, hasReview = false, mark = null, preview = null;
const ranks = { top: -1, bottom: -1 };

function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
async function json(path, options) {
  const reply = await fetch(path, options);
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(body.error || `the viewer answered ${reply.status}`);
  return body;
}
const number = (value, digits = 3) => (Math.abs(value) >= 1000 || (value && Math.abs(value) < 0.01) ? value.toExponential(1) : value.toFixed(digits));
const thumbnails = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting && target.dataset.src) { target.src = target.dataset.src; delete target.dataset.src; thumbnails.unobserve(target); }
  }
}, { rootMargin: "200px" });
function lazyImage(n) {
  const image = element("img", { alt: "", width: 60, height: 48 });
  image.dataset.src = `thumbnail/${n}.jpg`;
  thumbnails.observe(image);
  return image;
}

// The list
function buildFilters() {
  for (const [name, values] of FILTERS) {
    const found = [...new Set(items.flatMap(values))].filter(Boolean).sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    if (found.length > Math.max(8, items.length / 2)) continue; // each slide its own value, as months in survival
    const isUseful = found.length > 1 || (found.length === 1 && items.some((item) => !values(item)[0]));
    if (name === "note" ? !hasReview : !isUseful) continue;
    const select = element("select", { id: `filter-${name}` }, [new Option("all", "")]);
    for (const value of name === "note" ? ["agree", "disagree", "comment"] : found) select.add(new Option(value, value));
    select.onchange = refreshList;
    $("filters").append(element("label", { className: "row", textContent: `${name} ` }, [select]));
  }
  for (const name of Object.keys(SORTS)) {
    if (name === "worst error first" && !items.some((i) => i.error >= 0)) continue;
    if (name === "risk or probability" && !items.some((i) => i.value !== null)) continue;
    $("sort").add(new Option(name, name));
  }
  $("sort-label").hidden = $("sort").options.length < 2;
}
function refreshList() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = items.filter((item) =>
    words.every((word) => `${item.id} ${item.case} ${item.comment}`.toLowerCase().includes(word)) &&
    FILTERS.every(([name, values]) => { const s = $(`filter-${name}`); return !s || !s.value || values(item).includes(s.value); }));
  shown.sort(SORTS[$("sort").value] || (() => 0));
  const all = `${items.length.toLocaleString("en")} slide${items.length === 1 ? "" : "s"}`;
  $("count").textContent = shown.length === items.length ? all : `${shown.length.toLocaleString("en")} of ${all}`;
  $("rows").replaceChildren();
  drawn = 0;
  drawRows();
}
function rowText(item) {
  if (item.problem) return [item.problem, "bad"];
  const parts = [];
  if (item.is_risk) parts.push(`risk ${number(item.value, 2)}`);
  if (item.label) parts.push(item.label);
  if (item.is_risk) return [parts.join(", "), ""];
  if (item.predicted) parts.push(`→ ${item.predicted}${item.value === null ? "" : ` ${item.value.toFixed(2)}`}`);
  return [parts.join("  ") || item.case, item.wrong ? "bad" : ""];
}
function drawRows() {
  const rows = shown.slice(drawn, drawn + CHUNK).map((item) => {
    const [text, kind] = rowText(item);
    const mark = item.verdict === "agree" ? " ✓" : item.verdict === "disagree" ? " ✗" : item.comment ? " ✎" : "";
    const several = item.judged > 1 && item.wrong ? `wrong in ${item.wrong} of ${item.judged}` : "";
    const more = [several, item.case && item.case !== item.id ? item.case : "", item.folds.length ? `fold ${item.folds.join(", ")}` : "", item.split].filter(Boolean).join(" · ");
    const button = element("button", { onclick: () => { open(item.number); closeList(); }, title: item.note || item.problem || item.id }, [
      lazyImage(item.number), element("span", {}, [element("b", { textContent: item.id + mark }), element("small", { textContent: text, className: kind }), element("small", { textContent: more })]),
    ]);
    button.dataset.number = item.number;
    if (item.number === current) button.setAttribute("aria-current", "true");
    return element("li", {}, [button]);
  });
  $("rows").append(...rows);
  drawn += rows.length;
}
function markRow() {
  for (const button of $("rows").querySelectorAll("button")) {
    if (Number(button.dataset.number) === current) { button.setAttribute("aria-current", "true"); button.scrollIntoView({ block: "nearest" }); }
    else button.removeAttribute("aria-current");
  }
}
function step(by) {
  const place = shown.findIndex((item) => item.number === current);
  const next = shown[place < 0 ? 0 : place + by];
  if (!next) return;
  while (drawn < shown.length && shown.indexOf(next) >= drawn) drawRows();
  open(next.number);
}
function closeList() { $("list").classList.remove("open"); $("open-list").setAttribute("aria-expanded", "false"); }

// A slide
async function open(n) {
  const turn = ++opening;
  current = n;
  history.replaceState(null, "", `#${n}`);
  markRow();
  const item = items[n];
  $("slide-id").textContent = item.id;
  $("thumbnail").src = `thumbnail/${n}.jpg`;
  $("thumbnail").alt = `Thumbnail of ${item.id}`;
  $("labels").textContent = [item.label && (item.is_risk ? item.label : `label ${item.label}`), item.case && item.case !== item.id && `patient ${item.case}`, item.site && `site ${item.site}`].filter(Boolean).join(" · ");
  showNote(item);
  $("busy").textContent = "opening …";
  $("busy").hidden = false;
  let loaded;
  try { loaded = await json(`slide/${n}`); } catch (error) { loaded = { problem: error.message, predictions: [], neighbours: [] }; }
  if (turn !== opening) return;
  info = loaded;
  tab = 0;
  removeHeat();
  viewer.close();
  clearMark();
  $("reason").hidden = !info.problem;
  $("reason").textContent = info.problem || "";
  $("busy").hidden = true;
  $("scale").hidden = true;
  if (!info.problem) {
    preview = info.has_preview ? element("img", { className: "preview", alt: "", src: `preview/${n}/${info.digest}.jpg` }) : null;
    if (info.overview_level >= 0) { $("busy").textContent = `reading the overview: this file has no small levels${preview ? "; blurred until then" : ""} …`; $("busy").hidden = false; }
    viewer.open(source((l, x, y) => `tile/${n}/${info.digest}/${l}/${x}_${y}.jpg`));
  }
  showMetadata();
  showTabs();
  showNeighbours();
  showTab();
}
function source(getTileUrl) {
  return { width: info.width, height: info.height, tileSize: info.tile_px, tileOverlap: 0, minLevel: 0, maxLevel: info.max_level, getTileUrl };
}
function showMetadata() {
  const rows = [];
  const add = (name, value, kind = "") => value && rows.push(element("dt", { textContent: name }), element("dd", { textContent: value, className: kind }));
  if (!info.problem) {
    const mpp = info.mpp;
    add("file", info.file + (info.is_canvas ? " (the run's canvas; the slide file is not known)" : ""), info.is_canvas ? "bad" : "");
    add("size", `${info.size_px[0].toLocaleString("en")} × ${info.size_px[1].toLocaleString("en")} px` + (mpp ? `, ${(info.size_px[0] * mpp[0] / 1000).toFixed(2)} × ${(info.size_px[1] * mpp[1] / 1000).toFixed(2)} mm` : ""));
    if (info.corner[0] || info.corner[1] || info.width !== info.size_px[0] || info.height !== info.size_px[1]) add("scanned part", `${info.width} × ${info.height} px at (${info.corner.join(", ")})`);
    add("µm per px", mpp ? `${+mpp[0].toPrecision(4)}${mpp[0] === mpp[1] ? "" : ` × ${+mpp[1].toPrecision(4)}`}, from ${info.mpp_source}` : "not in the file; no scale bar", mpp ? "" : "bad");
    add("format", info.vendor);
    add("levels", info.levels.map((l) => l.join(" × ")).join(", "));
    add("reader", info.reader);
    const recorded = info.recorded_bad_tiles && info.recorded_bad_tiles !== "0" ? `${info.recorded_bad_tiles} in the run` : "";
    const here = info.bad_tile_count ? `${info.bad_tile_count} seen here: ${info.bad_tiles.join("; ")}` : "";
    add("bad tiles", [recorded, here].filter(Boolean).join("; ") || "none seen", recorded || here ? "bad" : "");
  }
  add("problem", items[current].problem, "bad");
  $("metadata").replaceChildren(...rows);
  $("notes").replaceChildren(...[...(info.notes || []), ...runNotes].map((textContent) => element("li", { textContent })));
}
// Tiles that could not be decoded are known after they were read.
async function refreshBadTiles() {
  const turn = opening;
  if (!info || info.problem) return;
  const now = await json(`slide/${current}`).catch(() => null);
  if (turn !== opening || !now || now.problem || now.bad_tile_count === info.bad_tile_count) return;
  info = { ...info, bad_tiles: now.bad_tiles, bad_tile_count: now.bad_tile_count };
  showMetadata();
}
function showNeighbours() {
  $("neighbours").hidden = !info.neighbours.length;
  $("neighbours").querySelector("ol").replaceChildren(...info.neighbours.map(([n, similarity]) => element("li", {}, [
    element("button", { onclick: () => open(n) }, [lazyImage(n), element("span", { textContent: `${items[n].id}${items[n].label ? `, ${items[n].label}` : ""}: ${similarity.toFixed(3)}` })]),
  ])));
}
function showTabs() {
  const named = info.predictions.filter((p) => p.tab);
  $("tabs").replaceChildren(...(named.length ? info.predictions.map((prediction, i) => {
    const button = element("button", { textContent: prediction.tab, onclick: () => { tab = i; showTab(); } });
    button.setAttribute("role", "tab");
    return button;
  }) : []));
}
function showTab() {
  [...$("tabs").children].forEach((button, i) => button.setAttribute("aria-selected", String(i === tab)));
  const prediction = info.predictions[tab];
  const parts = [];
  if (prediction) {
    const verdict = prediction.wrong === null ? "" : prediction.wrong ? "wrong" : "right";
    if (prediction.predicted) parts.push(element("p", {}, [element("span", { textContent: `predicted ${prediction.predicted} ` }), element("b", { textContent: verdict, className: prediction.wrong ? "bad" : "good" })]));
    for (const [name, p] of prediction.probabilities) {
      const fill = element("b");
      fill.style.width = `${100 * p}%`;
      parts.push(element("div", { className: `bar${name === prediction.predicted ? " highest" : ""}`, title: name }, [element("span", { textContent: name }), element("i", {}, [fill]), element("em", { textContent: p.toFixed(3) })]));
    }
    if (prediction.risk !== null) parts.push(element("p", { textContent: `risk ${number(prediction.risk)} (higher: earlier)` }));
    if (prediction.curve.length) parts.push(curve(prediction.curve));
    if (prediction.note) parts.push(element("p", { textContent: prediction.note, className: "bad" }));
    const more = [prediction.fold && `model of fold ${prediction.fold}`, prediction.split && `split ${prediction.split}`].filter(Boolean).join(", ");
    if (more) parts.push(element("p", { textContent: more }));
  }
  $("prediction").replaceChildren(...parts);
  removeHeat();
  heat = null;
  $("heat").hidden = !prediction || !prediction.has_heat || Boolean(info.problem);
  if (!$("heat").hidden) pollHeat(false, opening);
}
function curve(points) {
  const svg = (name, attributes, text) => { const made = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value); if (text) made.textContent = text; return made; };
  const last = points[points.length - 1][0] * 1.25, x = (m) => 34 + 250 * m / last, y = (s) => 10 + 90 * (1 - s);
  let path = `M${x(0)} ${y(1)}`, before = 1;
  for (const [months, survival] of points) { path += `L${x(months)} ${y(before)}L${x(months)} ${y(survival)}`; before = survival; }
  path += `L${x(last)} ${y(before)}`;
  const drawing = svg("svg", { viewBox: "0 0 296 132", role: "img", "aria-label": `predicted survival: ${points.map(([m, s]) => `${s.toFixed(2)} at ${+m.toFixed(1)} months`).join(", ")}` });
  drawing.append(svg("path", { d: `M34 10V100H290`, stroke: "#55606e", fill: "none" }), svg("path", { d: path, stroke: "#0b5cad", "stroke-width": 2.5, fill: "none" }));
  for (const s of [0, 0.5, 1]) drawing.append(svg("text", { x: 28, y: y(s) + 4, "text-anchor": "end", "font-size": 11, fill: "#55606e" }, String(s)));
  for (const [months] of points) drawing.append(svg("text", { x: x(months), y: 114, "text-anchor": "middle", "font-size": 11, fill: "#55606e" }, String(+months.toFixed(1))));
  drawing.append(svg("text", { x: 162, y: 129, "text-anchor": "middle", "font-size": 11, fill: "#55606e" }, "months; probability of no event up to then"));
  return drawing;
}

// The heat map
async function pollHeat(start, turn) {
  const asked = [current, tab];
  let state;
  try { state = await json(`heat/${current}/${tab}/${start ? "start" : "state"}`); } catch (error) { state = { state: "failed", reason: error.message }; }
  if (turn !== opening || asked[0] !== current || asked[1] !== tab) return;
  const words = { waiting: "computing …", failed: `no heat map: ${state.reason}`, on_request: "A canvas this large takes minutes.", none: "none", ready: "" };
  $("heat-state").textContent = words[state.state];
  $("heat-state").hidden = state.state === "ready";
  $("heat-state").className = state.state === "failed" ? "bad" : "";
  $("heat-start").hidden = state.state !== "on_request";
  $("heat-controls").hidden = state.state !== "ready";
  if (state.state === "waiting") setTimeout(() => pollHeat(start, turn), 400);
  if (state.state !== "ready") return;
  heat = state;
  const prediction = info.predictions[tab];
  $("layer").replaceChildren(...heat.layers.map((layer, i) => new Option(layer.name, i)));
  const highest = heat.layers.findIndex((layer) => layer.name === prediction.predicted);
  $("layer").value = Math.max(0, highest);
  $("layer-row").hidden = heat.layers.length < 2;
  showLayer();
}
function showLayer() {
  const layer = heat.layers[$("layer").value], names = layer.is_signed ? SIGNED : UNSIGNED;
  if (!names.includes($("colours").value)) $("colours").replaceChildren(...names.map((name) => new Option(name, name)));
  for (const id of ["threshold-row", "colours-row", "legend"]) $(id).hidden = layer.is_colours;
  $("meaning").textContent = layer.meaning + (layer.is_signed ? ". Blue or purple: against it. Colours end at the 99th percentile." : "");
  const [low, bar, high] = $("legend").children;
  low.textContent = layer.is_signed ? number(-layer.limit, 4) : "0";
  high.textContent = number(layer.limit, 4);
  bar.className = $("colours").value;
  for (const end of ["top", "bottom"]) {
    ranks[end] = -1;
    $(end).hidden = $(`${end}-title`).hidden = !layer[end].length;
    $(end).replaceChildren(...layer[end].map((patch, rank) => {
      const image = element("img", { alt: `patch ${rank + 1}`, loading: "lazy", src: `patch/${current}/${tab}/${heat.key}/${$("layer").value}/${end}/${rank}.jpg` });
      return element("button", { onclick: () => jump(end, rank), title: `level-0 px (${patch[0]}, ${patch[1]})` }, [image, number(patch[4], 4)]);
    }));
  }
  drawHeat();
}
function drawHeat() {
  for (const id of ["opacity", "threshold"]) $(id).nextElementSibling.textContent = `${$(id).value} %`;
  if (!heat || !viewer.world.getItemCount()) return;
  const [n, t, layer, colours, threshold] = [current, tab, $("layer").value, $("colours").value, $("threshold").value];
  const key = heat.key;
  removeHeat();
  const turn = heatTurn;
  viewer.addTiledImage({
    tileSource: source((l, x, y) => `heat/${n}/${t}/${key}/${layer}/${colours}/${threshold}/${l}/${x}_${y}.png`),
    opacity: heatOn ? $("opacity").value / 100 : 0,
    success: ({ item }) => { if (turn === heatTurn) heatItem = item; else viewer.world.removeItem(item); },
  });
}
function removeHeat() {
  if (heatItem) viewer.world.removeItem(heatItem);
  heatItem = null;
  heatTurn += 1;
}
function setOpacity() {
  $("opacity").nextElementSibling.textContent = `${$("opacity").value} %`;
  if (heatItem) heatItem.setOpacity(heatOn ? $("opacity").value / 100 : 0);
}
// A blurred image over the slide until its first tile is there.
function showPreview() { if (preview) viewer.addOverlay({ element: preview, location: viewer.world.getItemAt(0).getBounds() }); }
function removePreview() { if (preview) viewer.removeOverlay(preview); preview = null; }
function clearMark() { if (mark) viewer.removeOverlay(mark); mark = null; }
function jump(end, rank) {
  const patch = heat && heat.layers[$("layer").value][end][rank];
  if (!patch) return;
  ranks[end] = rank;
  const image = viewer.world.getItemAt(0);
  const [x, y, width, height] = [patch[0] - info.corner[0], patch[1] - info.corner[1], patch[2], patch[3]];
  const place = image.imageToViewportRectangle(x, y, width, height);
  clearMark();
  mark = element("div", { className: "mark" });
  viewer.addOverlay({ element: mark, location: place });
  viewer.viewport.fitBounds(image.imageToViewportRectangle(x - 2.5 * width, y - 2.5 * height, 6 * width, 6 * height));
}

// Notes
function showNote(item) {
  $("review").hidden = !hasReview;
  $("agree").setAttribute("aria-pressed", String(item.verdict === "agree"));
  $("disagree").setAttribute("aria-pressed", String(item.verdict === "disagree"));
  $("comment").value = item.comment;
  $("saved").textContent = "";
}
async function saveNote(verdict, comment) {
  const item = items[current];
  if (!hasReview || !item) return;
  try {
    const note = await json(`review/${current}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ verdict, comment }) });
    Object.assign(item, note);
    if (items[current] === item) { showNote(item); $("saved").textContent = "saved"; $("saved").className = "good"; }
    const row = $("rows").querySelector(`button[data-number="${item.number}"] b`);
    if (row) row.textContent = item.id + (item.verdict === "agree" ? " ✓" : item.verdict === "disagree" ? " ✗" : item.comment ? " ✎" : "");
  } catch (error) { $("saved").textContent = `not saved: ${error.message}`; $("saved").className = "bad"; }
}
const toggleVerdict = (verdict) => saveNote(items[current].verdict === verdict ? "" : verdict, $("comment").value);

// Scale bar
function drawScale() {
  const image = viewer.world.getItemAt(0);
  if (!image || !info || !info.mpp) { $("scale").hidden = true; return; }
  const umPerPixel = info.mpp[0] / image.viewportToImageZoom(viewer.viewport.getZoom(true));
  const most = 130 * umPerPixel, power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].find((s) => s * power <= most) * power;
  const bar = $("scale").firstElementChild;
  bar.style.width = `${length / umPerPixel}px`;
  bar.textContent = length >= 1000 ? `${length / 1000} mm` : `${+length.toPrecision(1)} µm`;
  $("scale").dataset.um = length;
  $("scale").hidden = false;
}

const press = (id, by) => { const input = $(id); input.value = Number(input.value) + by; input.dispatchEvent(new Event("input")); input.dispatchEvent(new Event("change")); };
const pan = (x, y) => { viewer.viewport.panBy(new OpenSeadragon.Point(x, y).divide(viewer.viewport.getZoom() * 5)); };
const zoom = (by) => { viewer.viewport.zoomBy(by); viewer.viewport.applyConstraints(); };
const ACTIONS = {
  j: () => step(1), k: () => step(-1), "/": () => { $("list").classList.add("open"); $("search").focus(); },
  "+": () => zoom(1.6), "=": () => zoom(1.6), "-": () => zoom(1 / 1.6), 0: () => viewer.viewport.goHome(),
  ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0), ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1),
  h: () => { heatOn = !heatOn; setOpacity(); }, "[": () => { press("opacity", -10); }, "]": () => { press("opacity", 10); },
  ",": () => press("threshold", -5), ".": () => press("threshold", 5),
  t: () => jump("top", (ranks.top + 1) % ($("top").childElementCount || 1)), b: () => jump("bottom", (ranks.bottom + 1) % ($("bottom").childElementCount || 1)),
  a: () => toggleVerdict("agree"), d: () => toggleVerdict("disagree"), c: () => $("comment").focus(), "?": () => $("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.key === "Escape") { document.activeElement.blur(); closeList(); return; }
  const typing = event.target.matches("textarea, select, input:not([type=range])");
  if (typing || (event.target.matches("input[type=range]") && event.key.startsWith("Arrow"))) return;
  const action = /^[1-9]$/.test(event.key) ? () => { if (info && info.predictions[event.key - 1]) { tab = event.key - 1; showTab(); } } : ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

let runNotes = [];
async function start() {
  viewer = OpenSeadragon({
    element: $("osd"), drawer: "canvas", showNavigationControl: false, imageSmoothingEnabled: true, maxZoomPixelRatio: 8, animationTime: 0.4,
    crossOriginPolicy: false, timeout: 180000, visibilityRatio: 0.3, gestureSettingsMouse: { clickToZoom: false }, keyboardNavEnabled: false,
  });
  viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
  viewer.addHandler("open", () => { showPreview(); drawHeat(); drawScale(); });
  for (const event of ["tile-loaded", "tile-load-failed"]) viewer.addHandler(event, ({ tiledImage }) => { $("busy").hidden = true; if (tiledImage !== heatItem) removePreview(); });
  // Patches of a heat map keep their edges, the slide is smoothed.
  viewer.addHandler("tile-drawing", ({ tiledImage, context }) => { if (context) context.imageSmoothingEnabled = tiledImage !== heatItem; });
  viewer.addHandler("animation-finish", refreshBadTiles);
  for (const event of ["animation", "resize", "update-viewport"]) viewer.addHandler(event, drawScale);
  const clicks = { "zoom-in": "+", "zoom-out": "-", "zoom-home": "0", agree: "a", disagree: "d", "open-help": "?" };
  for (const [id, key] of Object.entries(clicks)) $(id).onclick = ACTIONS[key];
  $("open-list").onclick = () => $("open-list").setAttribute("aria-expanded", String($("list").classList.toggle("open")));
  $("heat-start").onclick = () => pollHeat(true, opening);
  $("opacity").oninput = setOpacity;
  $("threshold").oninput = () => { $("threshold").nextElementSibling.textContent = `${$("threshold").value} %`; };
  $("threshold").onchange = drawHeat;
  $("layer").onchange = $("colours").onchange = () => showLayer();
  $("comment").onchange = () => saveNote(items[current].verdict, $("comment").value);
  $("search").oninput = refreshList;
  $("sort").onchange = refreshList;
  $("list").onscroll = () => { if ($("list").scrollTop + $("list").clientHeight > $("list").scrollHeight - 400 && drawn < shown.length) drawRows(); };
  $("keys").replaceChildren(...KEYS.flatMap(([keys, meaning]) => [element("dt", {}, [element("kbd", { textContent: keys })]), element("dd", { textContent: meaning })]));
  const list = await json("list");
  items = list.items.map((item, n) => ({ ...item, number: n }));
  hasReview = list.has_review;
  runNotes = list.notes;
  $("title").textContent = list.title;
  document.title = `${list.title} – longvit view`;
  $("kind").textContent = list.kind;
  buildFilters();
  refreshList();
  const wanted = Number(location.hash.slice(1));
  const first = location.hash && items[wanted] ? items[wanted] : shown[0];
  if (first) await open(first.number);
}
// For tests: true when the slide, its heat map and all tiles of the view are drawn.
function isSettled() {
  if (!info || !viewer || (!$("heat").hidden && !$("heat-state").hidden && $("heat-state").className !== "bad" && $("heat-start").hidden)) return false;
  if (info.problem) return true;
  const count = viewer.world.getItemCount();
  return count === (heat ? 2 : 1) && [...Array(count).keys()].every((i) => viewer.world.getItemAt(i).getFullyLoaded());
}
window.longvit = { isSettled, viewer: () => viewer, open, jump };
start().catch((error) => { $("reason").textContent = error.message; $("reason").hidden = false; });
