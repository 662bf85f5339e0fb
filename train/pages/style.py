"""The style sheet and the script of results pages: light and dark, a phone and a wide screen, no network."""

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #5f5f64; --line: #d9d9dd; --paper: #fff; --card: #f6f6f8;
  --win: #00619c; --loss: #a03c00; --bar: #e9e9ed }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a9a9b0; --line: #44444a; --paper: #161618;
  --card: #202024; --win: #6cbcf5; --loss: #ff9d5c; --bar: #34343a } }
.c0 { --c: #0072b2 } .c1 { --c: #d55e00 } .c2 { --c: #009e73 } .c3 { --c: #b4588c } .c4 { --c: #b07a00 }
.c5 { --c: #2b8cc4 } .c6 { --c: #7b52ab } .c7 { --c: #6b6b70 } .c8 { --c: #8a6d3b } .c9 { --c: #e2654a }
.c10 { --c: #332288 } .c11 { --c: #117733 } .c12 { --c: #aa4499 } .c13 { --c: #2f8f80 } .c14 { --c: #882255 }
.c15 { --c: #4f78b0 }
@media (prefers-color-scheme: dark) { .c0 { --c: #6cbcf5 } .c1 { --c: #ff9d5c } .c2 { --c: #3fcf9f }
  .c3 { --c: #e79cc7 } .c4 { --c: #f0b83a } .c5 { --c: #9fd3f7 } .c6 { --c: #bd9ae6 } .c7 { --c: #a9a9b0 }
  .c8 { --c: #cdb184 } .c9 { --c: #ff8f78 } .c10 { --c: #9a8cff } .c11 { --c: #63c174 } .c12 { --c: #e58ad6 }
  .c13 { --c: #7fd8c9 } .c14 { --c: #e07a9f } .c15 { --c: #a3bfee } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.2 } h2 { font-size: 1.3rem; margin: 2.4rem 0 .8rem }
h3 { font-size: 1rem; margin: 0 } p, ul.lead { max-width: 46rem }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td { overflow-wrap: normal } th { border-bottom: 1px solid var(--soft); font-weight: 600 }
.small { color: var(--soft); font-size: .85rem } td .small { white-space: nowrap }
.wide { overflow-x: auto; max-width: 100% }
code { font-size: .9em; overflow-wrap: anywhere }
.wide img { max-width: none } img { max-width: 100%; height: auto; border-radius: 3px } figure { margin: 0 }
figcaption { font-size: .9rem; color: var(--soft) }
.supported, .gain { color: var(--win); font-weight: 600 }
.not-supported, .loss, .alarm { color: var(--loss); font-weight: 600 }
.pair { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; padding: 0; list-style: none }
.pair li { flex: 1 1 9rem; max-width: 20rem; background: var(--card); border-top: 4px solid var(--c);
  padding: .7rem 1rem; border-radius: 4px }
.pair b { display: block; font-size: 2.2rem; line-height: 1.2; white-space: nowrap; font-variant-numeric: tabular-nums }
.pair span { display: block }
details { border-top: 1px solid var(--line); padding: .6rem 0 } summary { cursor: pointer }
summary h3 { display: inline }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.6rem 2.4rem }
.figures figure { max-width: 30rem }
svg { display: block; width: 100%; height: auto; margin: .4rem 0 } svg text { font-size: 13px; fill: var(--ink) }
svg .axis { stroke: var(--soft); stroke-width: 1 } svg .grid { stroke: var(--line); stroke-width: 1 }
svg .track { fill: var(--bar) } svg .fill { fill: var(--c) } svg .soft { fill: var(--soft) }
svg .curve { fill: none; stroke: var(--c); stroke-width: 2 } svg .range { stroke: var(--ink); stroke-width: 1.5 }
svg .span { stroke: var(--c); stroke-width: 2 } svg .bold { font-weight: 600 }
svg .dashed { stroke-dasharray: 4 4 } svg .end { text-anchor: end } svg .mid { text-anchor: middle }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; margin: .2rem 0;
  font-size: .9rem }
.legend .key { display: inline-block; width: 1.8em; height: .9em; margin: 0 .4em 0 0; vertical-align: -.1em }
.controls { position: sticky; top: 0; background: var(--paper); padding: .5rem 0; display: flex; flex-wrap: wrap;
  gap: .4rem; align-items: center; z-index: 1 }
[hidden] { display: none !important }
button { font: inherit; font-size: .9rem; color: var(--ink); background: var(--card); border: 1px solid var(--soft);
  border-radius: 1rem; padding: .2rem .8rem; cursor: pointer }
button[aria-pressed=true] { background: var(--ink); color: var(--paper) }
:focus-visible { outline: 3px solid var(--win); outline-offset: 2px }
.time { display: flex; gap: .5rem; align-items: center; font-size: .9rem } .time input { width: 8rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem }
.card { background: var(--card); border-radius: 6px; padding: .9rem }
.films { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; margin: .6rem 0 }
.film { overflow-x: auto } .film img { max-width: none; height: 7rem; display: block }
.live .film { overflow: hidden } .live .film img { height: auto; border-radius: 0; will-change: transform }
.coarse { image-rendering: pixelated }
.answers { list-style: none; padding: 0; margin: 0; font-size: .95rem } .answers li { margin-top: .15rem }
"""

SCRIPT = """
(() => {
  const stage = document.querySelector("[data-stage]");
  if (!stage) return;
  stage.classList.add("live");
  const find = (what) => [...stage.querySelectorAll(what)];
  const films = find("img[data-frames]").map((image) => {
    const frames = Number(image.dataset.frames);
    image.style.width = 100 * frames + "%";
    return { image, frames, rate: Number(image.dataset.rate), shown: -1 };
  });
  const controls = stage.querySelector(".controls");
  const play = stage.querySelector("[data-play]"), slider = stage.querySelector("input[type=range]");
  const length = Math.max(0.1, ...films.map((film) => film.frames / film.rate));
  let at = 0, last = null;
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const draw = () => films.forEach((film) => {
    const frame = Math.min(film.frames - 1, Math.floor(at * film.rate + 1e-6));
    if (frame === film.shown) return;
    film.shown = frame;
    film.image.style.transform = `translateX(${-100 * frame / film.frames}%)`;
  });
  const say = () => { if (play) play.textContent = playing ? "Pause" : "Play"; };
  const tick = (now) => {
    if (!playing) { last = null; return; }
    at += last === null ? 0 : (now - last) / 1000;
    last = now;
    if (at > length + 1.2) at = 0;  // the last frame stays for a while
    if (slider) slider.value = Math.min(1000, 1000 * at / length);
    draw();
    requestAnimationFrame(tick);
  };
  const start = () => { say(); if (playing) requestAnimationFrame(tick); };
  if (play) play.addEventListener("click", () => { playing = !playing; start(); });
  if (slider) slider.addEventListener("input", () => {
    playing = false; at = length * Number(slider.value) / 1000; say(); draw();
  });
  const buttons = find("button[data-show]"), cards = find("[data-kinds]"), count = stage.querySelector("[data-count]");
  const show = (kind) => {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.show === kind)));
    cards.forEach((card) => { card.hidden = kind !== "all" && !card.dataset.kinds.split(" ").includes(kind); });
    count.textContent = cards.filter((card) => !card.hidden).length + " of " + cards.length + " shown";
  };
  buttons.forEach((button) => button.addEventListener("click", () => show(button.dataset.show)));
  if (buttons.length) show("all");
  controls.hidden = false;
  if (!playing) { at = length; if (slider) slider.value = 1000; }  // without motion, the end is what one wants to see
  draw();
  start();
})();
"""
