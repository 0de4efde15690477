// The board: one threat model shown, sorted, filtered; drawings; cards. What is shown stays in the address.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (q, root = document) => root.querySelector(q);
const $$ = (q, root = document) => [...root.querySelectorAll(q)];
const h = (tag, set, ...kids) => {
  const e = Object.assign(document.createElement(tag), set);
  e.append(...kids.flat(9).filter((kid) => kid != null && kid !== false));
  return e;
};
const s = (tag, set, ...kids) => {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const k in set) e.setAttribute(k, set[k]);
  e.append(...kids.flat(9));
  return e;
};
const uniq = (list) => [...new Set(list)].sort();
const show = (v, share) => {
  if (Array.isArray(v)) return show(v[0], share) + (v[1] == null ? "" : ` [${show(v[1], share)}, ${show(v[2], share)}]`);
  if (v == null || v === "") return "-";
  if (typeof v === "string") return v === "Infinity" ? "inf" : v;
  return share ? (100 * v).toFixed(1) : String(v >= 999.5 ? Math.round(v) : +v.toPrecision(3));
};
const linked = (text) => text.split(/(arXiv:\d{4}\.\d{4,5})/).map((part, i) =>
  i % 2 ? h("a", { href: "https://arxiv.org/abs/" + part.slice(6), rel: "noreferrer" }, part) : part);

// The address: #BOARD?q=...&sort=...&col=...&card=...
let state, board = data.boards[0];
for (const row of data.boards.flatMap((b) => b.rows)) {
  row.victim = data.victims[row.net.split(/[(@]/)[0]] || {};
  row.T ??= row.victim.T;
  row.flags ??= "";
}
const address = (set) => {
  const to = new URLSearchParams(state);
  for (const k in set) {
    to.delete(k);
    [set[k]].flat().forEach((v) => v && to.append(k, v));
  }
  return "#" + board.id + (to.size ? "?" + to : "");
};
const keep = (set) => {
  history.replaceState(null, "", address(set));
  render();
};
const opener = (kind, name) => h("a", { href: address({ card: kind + ":" + name }) }, name);

// What a row says
const column = (name) => board.columns.findIndex((c) => c[0] === name);
const value = (row, name) => {
  if (column(name) >= 0) return row.values[column(name)];
  return row.attacks.find((a) => board.labels[a[0]] === name)?.slice(1, 4);
};
const number = (row, name) => Number([value(row, name) ?? NaN].flat()[0]);
const share = (name) => (column(name) < 0 ? board.share : board.columns[column(name)][2]);
const better = (a, b) => (board.more ? a < b : a > b); // for an attack
const strongest = (row) => row.attacks.reduce((a, b) => (a && !better(+b[1], +a[1]) ? a : b), null);
const bare = (row) => {
  const same = board.rows.filter((r) => r.defense === "none" && r.net === row.net);
  return same.find((r) => r.weights === row.weights) || same[0];
};
const bar = (e, ends) => {
  const [l, v, r] = ends.map((end) => Math.min(98, end));
  e.style.background = `linear-gradient(90deg, transparent ${l}%, var(--bar) ${l}% ${v}%, var(--mark) ${v}% ${v + 2}%,
    var(--bar) ${v + 2}% ${r}%, transparent ${r}%), var(--raised)`;
  return e;
};
const table = (caption, heads, rows) => h("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: caption },
  h("table", {}, h("caption", { className: "quiet" }, caption),
    h("thead", {}, h("tr", {}, heads.map((t, i) => h("th", { scope: "col", className: /^([-\d]|inf)/.test(rows[0]?.[i]) ? "" : "t" }, t)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((c, i) => i
      ? h("td", { className: /^([-\d]|inf)/.test(c) ? "" : "t" }, c) : h("th", { scope: "row" }, c)))))));
const list = (pairs) => h("dl", {}, pairs.filter((p) => p[1] && p[1] !== "-").map(([k, v, title = ""]) =>
  [h("dt", { title }, k), h("dd", {}, v)]));

// A board gets its filters, its choice of columns and its links when it is first shown
const FILTERS = {
  family: (r) => [r.victim.family],
  defense: (r) => [r.defense],
  T: (r) => [r.T || "not said"],
  status: (r) => [r.status || "claimed"],
  flags: (r) => (r.flags || "no flag").split(/ (?!flag)/),
};
const setUp = (root) => {
  board.lines = $$(".main tbody tr", root);
  board.lines.forEach((tr, i) => {
    tr.row = board.rows[i];
    $("th", tr).replaceChildren(h("a", {}, ...$("th", tr).childNodes));
    $$(".bar", tr).forEach((e) => bar(e, e.dataset.b.split(" ")));
  });
  const field = (name, tag, set, ...kids) =>
    h("label", {}, name, h(tag, { name, oninput: (e) => keep({ [name]: e.target.value }), ...set }, ...kids));
  const filters = Object.entries(FILTERS).map(([name, of]) => [name, uniq(board.rows.flatMap(of).map(String))]);
  const names = [...board.columns, ...board.labels.map((label) => [label, "under this attack alone"])];
  $(".tools", root).append(
    field("search", "input", { type: "search" }),
    ...filters.filter(([, all]) => all.length > 1).map(([name, all]) =>
      field(name, "select", {}, new Option("all", ""), all.map((v) => new Option(v)))),
    h("button", { onclick: () => { state = ""; keep({}); } }, "Reset"),
    h("output", {}),
    h("details", {}, h("summary", {}, "More columns"), h("div", { className: "pick" }, names.map(([value, title]) =>
      h("label", { title }, h("input", { type: "checkbox", value,
        onchange: () => keep({ col: $$(":checked", $(".pick", root)).map((e) => e.value) }) }), value)))));
};
const key = (cell) => {
  const text = cell.textContent, m = /^>?(-?inf|[-+]?[\d.]+)/.exec(text);
  return cell.matches("th, .t") ? text : m ? Number(m[1].replace("inf", "Infinity")) : NaN;
};
const render = () => {
  const [id, rest] = location.hash.slice(1).split("?");
  state = new URLSearchParams(rest);
  board = data.boards.find((b) => b.id === id) || board;
  if (!board) return; // nothing here has ranks
  $$(".board").forEach((e) => (e.hidden = e.id !== board.id && (e.id !== id)));
  $$("nav a").forEach((a) => (a.ariaCurrent = a.hash === "#" + board.id ? "page" : null));
  const root = document.getElementById(board.id), head = $(".main thead tr", root);
  if (!board.lines) setUp(root);
  $$("select, [type=search]", $(".tools", root)).forEach((e) => (e.value = state.get(e.name) || ""));
  $$(".pick input", root).forEach((e) => (e.checked = state.getAll("col").includes(e.value)));
  const cols = state.getAll("col");
  if (cols.join() !== board.cols) {
    board.cols = cols.join();
    $$(".x", root).forEach((e) => e.remove());
    for (const name of cols) {
      head.append(h("th", { scope: "col", className: "x" }, name));
      board.lines.forEach((tr) => tr.append(h("td", { className: "x" }, show(value(tr.row, name), share(name)))));
    }
  }
  const [, by, way] = /(.*):(asc|desc)$/.exec(state.get("sort")) || [], heads = [...head.children];
  for (const th of heads) {
    const name = th.textContent;
    if (!$("button", th)) th.replaceChildren(h("button", { onclick: () =>
      keep({ sort: name + (th.ariaSort === "descending" ? ":asc" : ":desc") }) }, name));
    th.ariaSort = name === by ? way + "ending" : null;
  }
  const at = heads.findIndex((th) => th.ariaSort);
  const lines = [...board.lines], flip = way === "desc" ? -1 : 1;
  if (at >= 0) {
    const keys = new Map(lines.map((tr) => [tr, key(tr.children[at])]));
    lines.sort((p, q) => {
      const a = keys.get(p), b = keys.get(q);
      return (a !== a) - (b !== b) || flip * ((a > b) - (a < b));
    });
  }
  $(".main tbody", root).append(...lines);
  const words = (state.get("search") || "").toLowerCase().split(" ");
  const shown = lines.filter((tr) => {
    $("th a", tr).href = address({ card: "row:" + tr.row.id });
    tr.hidden = !words.every((w) => tr.textContent.toLowerCase().includes(w)) ||
      Object.entries(FILTERS).some(([k, of]) => state.get(k) && !of(tr.row).map(String).includes(state.get(k)));
    return !tr.hidden;
  });
  $("output", root).value = `${shown.length} of ${lines.length} rows`;
  $(".plots", root).replaceChildren(scatter(shown.map((tr) => tr.row)), overview());
  openCard();
};

// Drawings
const hue = (i) => `hsl(${(i * 137.5) % 360} 70% var(--lum))`;
const axis = (name, values, share, log) => {
  const all = values.filter((v) => isFinite(v) && (!log || v > 0)), most = Math.max(...all, 0) || 1, least = Math.min(...all, most);
  return { name, share, log, low: log ? least * 0.9 : share && values.length ? Math.floor(20 * least) / 20 : 0, high: share ? 1 : most * 1.1 };
};
const chart = (x, y, draw, names = []) => {
  const place = (a, from, to) => {
    const f = (v) => (a.log ? Math.log(Math.max(v, a.low)) : v);
    return (v) => from + (to - from) * Math.min(1, (f(v) - f(a.low)) / (f(a.high) - f(a.low)));
  };
  const px = place(x, 50, 505), py = place(y, 280, 10), ticks = (a) => a.log
    ? [...Array(36).keys()].map((i) => [1, 2, 5][i % 3] * 10 ** (Math.floor(i / 3) - 4)).filter((v) => v >= a.low && v <= a.high)
    : [0, 1, 2, 3, 4].map((i) => a.low + (i * (a.high - a.low)) / 4);
  const label = (v, a) => (show(a.share ? 100 * v : v)), text = (set, t) => s("text", { "text-anchor": "middle", ...set }, t);
  return [s("svg", { viewBox: "0 0 520 320", width: 520, role: "img", "aria-label": `${y.name} over ${x.name}` },
    ticks(y).map((v) => [s("path", { class: "grid", d: `M50 ${py(v)}H505` }), text({ x: 30, y: py(v) + 4 }, label(v, y))]),
    ticks(x).map((v) => [s("path", { class: "grid", d: `M${px(v)} 10V280` }), text({ x: px(v), y: 295 }, label(v, x))]).flat(),
    text({ x: 270, y: 314 }, x.name), text({ transform: "translate(10 150) rotate(-90)" }, y.name), draw(px, py)),
  h("ul", { className: "key" }, names.map((n, i) => h("li", {}, s("svg", { width: 12, height: 12 }, s("circle", { cx: 6, cy: 6, r: 5, fill: hue(i) })), " " + n)))];
};
const scatter = (rows) => {
  const names = ["clean", "srocc_clean", "energy_nj", "propagations"].filter((n) => column(n) >= 0);
  const name = names.includes(state.get("x")) ? state.get("x") : names[0], families = uniq(board.rows.map((r) => r.victim.family));
  const values = (n) => board.rows.map((r) => number(r, n)), seen = rows.filter((r) => number(r, name) >= 0 && number(r, board.figure) >= 0);
  const x = axis(name, values(name), share(name), /energy|prop/.test(name)), y = axis(board.figure, board.share ? [] : values(board.figure), board.share);
  return h("figure", { onclick: (e) => e.target.dataset.row && (location.hash = address({ card: "row:" + e.target.dataset.row })) },
    h("figcaption", {}, board.figure + " against ", h("select", { ariaLabel: "horizontal axis", onchange: (e) => keep({ x: e.target.value }) },
      names.map((n) => new Option(n, n, false, n === name))), "; lines join a net with and without a defense"),
    chart(x, y, (px, py) => seen.map((r) => {
      const at = (r) => `${px(number(r, name)).toFixed(1)} ${py(number(r, board.figure)).toFixed(1)}`, base = bare(r);
      const [cx, cy] = at(r).split(" "), fill = hue(families.indexOf(r.victim.family));
      return [seen.includes(base) ? s("path", { class: "tie", d: `M${at(base)}L${at(r)}` }) : "",
        s("circle", { cx, cy, r: base === r ? 6 : 4, fill, "data-row": r.id },
          s("title", {}, `${r.id}: ${show(value(r, board.figure), board.share)}`))];
    }), families));
};
const overview = () => h("figure", {}, table("Attacks of this board", ["attack", "rows", "strongest on", "mean passes"],
  board.labels.map((label, i) => {
    const own = board.rows.flatMap((r) => r.attacks.filter((a) => a[0] === i));
    const first = board.rows.filter((r) => r.attacks.some((a) => a[0] === i && a[1] === strongest(r)[1]));
    return [opener("attack", label), `${own.length}`, `${first.length}`, show(own.reduce((sum, a) => sum + a[4] + a[5], 0) / own.length)];
  })), h("p", {}, "Defenses: ", uniq(board.rows.map((r) => r.defense)).filter((d) => d !== "none").flatMap((d) => [opener("defense", d), " "])));

// Cards
const about = (found = {}) => found.about && h("p", {}, found.about.replaceAll("`", ""), " ", linked(found.source || ""));
const most = () => (board.share ? 1 : Math.max(...board.rows.flatMap((r) => r.attacks.map((a) => +a[3])).filter(isFinite)));
const cards = {
  row(id) {
    const row = board.rows.find((r) => r.id === id), limit = most();
    if (!row) return;
    const alike = data.boards.filter((b) => b.like === board.like && b.eps).map((b) => [b, b.rows.find((r) => r.id === id)]);
    const eps = alike.filter((p) => p[1]).map(([b, r]) => [b.eps, number(r, b.figure)]).sort((a, b) => a[0] - b[0]);
    const steps = (row.curves || []).map((c) => ({ ...c, name: c[0] < 0 ? "all attacks" : board.labels[c[0]] }));
    const flags = uniq([row.flags, ...row.attacks.map((a) => a[7])].join(" ").split(" ").filter(Boolean));
    const runs = row.attacks.map((a) => [opener("attack", board.labels[a[0]]), show(a.slice(1, 4), board.share),
      bar(h("i", { className: "bar" }), [a[2] ?? a[1], a[1], a[3] ?? a[1]].map((v) => 100 * v / limit)), show(a[4]), show(a[5]), a[8] || "0", a[7] || "-", h("code", {}, a[6])]);
    return [about(row.victim), about(data.defenses[row.defense]),
      list([["status", row.status], ["notes", row.notes], ["weights (sha256)", h("code", {}, row.weights + "…")], ["family", row.victim.family], ["time steps T", row.T], ["training seed", row.net.split("@")[1] || "0"],
        ["defense", row.defense !== "none" && opener("defense", row.defense)], 
        ...board.columns.map(([n, title, part], i) => [n, show(row.values[i], part), title])]),
      h("p", {}, "Run again: ", h("code", {}, `robustspike reproduce '${row.net}${row.defense === "none" ? "" : " + " + row.defense}' --records RECORDS --only 'dataset=${board.dataset}' --only 'threat=${board.threat}'`)),
      flags.map((f) => h("p", { className: "flag" }, h("code", {}, f), `: ${data.flags[f].meaning}. ${data.flags[f].advice}.`)),
      row.pictures && [h("h3", {}, "Attacked inputs"), ...row.pictures.map((src) => h("img", { src, alt: "an attacked input" }))],
      table("Every attack, with its 95 % interval", ["attack", board.figure, "interval", "forwards", "backwards", "seeds", "flags", "records"], runs),
      steps.length && chart(axis("budget: " + board.unit, steps.flatMap((c) => c[2].filter((v, i) => i % 2 < 1)), 0, 1), axis("success in %", [], 1),
        (px, py) => steps.map((c, i) => s("path", { fill: "none", stroke: hue(i), "stroke-width": i ? 1.5 : 3, d: `M50 ${py(0)}` +
          c[2].map((v, j) => (j % 2 ? "V" + py(v / c[1]).toFixed(1) : "H" + px(v).toFixed(1))).join("") + "H505" }, s("title", {}, c.name))), steps.map((c) => c.name)),
      eps.length > 1 && chart(axis("eps", eps.map((p) => p[0])), axis(board.figure, [], 1), (px, py) =>
        [s("path", { fill: "none", stroke: hue(0), "stroke-width": 2, d: "M" + [[0, number(row, "clean")], ...eps].map((p) => `${px(p[0])} ${py(p[1])}`).join("L") })]),
      h("p", {}, h("a", { download: row.id.replace(/\W+/g, "_") + ".json", href: "data:application/json," + encodeURIComponent(
        JSON.stringify({ board: board.title, columns: board.columns, labels: board.labels, row })) }, "Download this row"),
      "; its records are records/KEY... of RECORDS, the bundle or folder that the page was made from.")];
  },
  attack(label) {
    const i = board.labels.indexOf(label), found = data.attacks[label] || {};
    const own = board.rows.flatMap((r) => r.attacks.filter((a) => a[0] === i).map((a) => [r, a]));
    const rivals = board.labels.map((rival, j) => [rival, own.filter(([r, a]) => r.attacks.some((b) => b[0] === j && better(+b[1], +a[1]))).length]);
    return [about(found), list([["sees of the victim", found.access], ["parameters", found.set]]),
      table("What it leaves, and what it costs a sample", ["row", board.figure, "forwards", "backwards", "strongest attack there"],
        own.map(([r, a]) => [opener("row", r.id), show(a.slice(1, 4), board.share), show(a[4]), show(a[5]), board.labels[strongest(r)[0]]])),
      table("Who beats it", ["attack", `better on, of ${own.length} rows`],
        rivals.filter((p) => p[1]).sort((a, b) => b[1] - a[1]).map(([rival, k]) => [opener("attack", rival), `${k}`]))];
  },
  defense(name) {
    const gain = (r, n) => (bare(r) && share(n) ? (100 * (number(r, n) - number(bare(r), n))).toFixed(1) : "-");
    return [about(data.defenses[name]), table("What it buys and costs, in percentage points against the same net without it",
      ["row", board.figure, "gained", "clean gained", "training passes / plain", "nJ", "who beats it"],
      board.rows.filter((r) => r.defense === name).map((r) => [opener("row", r.id), show(value(r, board.figure), board.share), gain(r, board.figure),
        gain(r, "clean"), show(value(r, "training")), show(value(r, "energy_nj")), strongest(r) ? opener("attack", board.labels[strongest(r)[0]]) : "-"]))];
  },
};
const dialog = $("#card");
const openCard = () => {
  const [, kind, name] = /^(row|attack|defense):(.*)$/.exec(state.get("card")) || [], inside = kind && cards[kind](name);
  if (!inside) return dialog.close();
  dialog.replaceChildren(h("button", { className: "close", onclick: () => dialog.close() }, "Close"),
    h("h2", { id: "card-title" }, name), h("p", { className: "quiet" }, board.title), ...inside.flat(9).filter(Boolean));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
};
dialog.addEventListener("close", () => state.get("card") && keep({ card: null }));
addEventListener("hashchange", render);
render();
