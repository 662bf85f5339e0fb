"""The page of `theworld ui`: one file with its style and script inside, which asks nobody but its own server."""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>theworld: ask {{ run }}</title>
<style nonce="{{ nonce }}">
:root { color-scheme: light dark; --ink: #222; --soft: #666; --line: #ccc; --paper: #fff; --accent: #0065a3;
  --bad: #a84300 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a3a3a3; --line: #444; --paper: #161618;
  --accent: #6cbcf5; --bad: #ff9d5c } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 0 0 .4rem } .soft { color: var(--soft) }
#drop { display: block; border: 2px dashed var(--line); border-radius: 8px; padding: 1rem; text-align: center;
  cursor: pointer }
#drop.over, #drop:focus-within { border-color: var(--accent) }
label.field { display: block; margin-top: .8rem } input[type=text] { width: 100%; font: inherit; padding: .45rem .6rem;
  border: 1px solid var(--line); border-radius: 6px; color: inherit; background: transparent }
button { font: inherit; margin-top: .8rem; padding: .45rem 1.2rem; border: 0; border-radius: 6px;
  background: var(--accent); color: var(--paper); cursor: pointer } button:disabled { opacity: .5; cursor: default }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem;
  margin-top: 1.2rem }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .8rem } .card img { width: 100%; max-width: 22rem;
  image-rendering: auto; border-radius: 4px } .answer { font-size: 1.3rem; font-weight: 600 }
table { width: 100%; border-collapse: collapse } td { padding: .1rem .4rem .1rem 0 }
meter { width: 100%; min-width: 6rem } td:first-child { width: 30% }
td:last-child { width: 4.5rem; text-align: right; padding-right: 0 }
#notes { color: var(--bad) } #notes li { margin: .3rem 0 } [hidden] { display: none }
</style></head><body>
<h1>Ask {{ run }}</h1>
<p class="soft">The world model {{ world }} predicts the future of your image, {{ horizon }}. The run answers twice:
from the image alone, and with its predicted future. Nothing leaves this computer.</p>
<form id="form">
<label id="drop">Drop an image here, or click to choose one <input id="file" type="file" accept="image/*" class="soft">
</label>
<label class="field">Question <input id="question" type="text" dir="auto" maxlength="{{ question_letters }}" required
placeholder="where will the ball land?"></label>
<label class="field">Answers to choose from, separated by commas <span class="soft">(optional)</span>
<input id="choices" type="text" dir="auto" placeholder="left, middle, right"></label>
<button id="go">Ask</button> <span id="status" role="status" class="soft"></span>
</form>
<ul id="notes" aria-live="polite"></ul>
<div class="row" id="result" hidden>
<section class="card"><h2>Image</h2><img id="picture" alt="The image that was asked about"></section>
<section class="card"><h2>Predicted future <span id="time" class="soft"></span></h2>
<img id="future" alt="The predicted future, playing" hidden><p id="waiting" class="soft">predicting …</p></section>
<section class="card"><h2>Answer without the future</h2><div id="without"></div></section>
<section class="card"><h2>Answer with the future</h2><div id="with"></div></section>
</div>
<script nonce="{{ nonce }}">
"use strict";
const el = id => document.getElementById(id), token = new URLSearchParams(location.search).get("token");
let chosen = null, frames = [], playing = 0, timer = null;
const choose = file => { chosen = file || null; if (!file) return;
  const reader = new FileReader();
  reader.onload = () => { el("picture").src = reader.result; el("result").hidden = false; clear(); };
  reader.readAsDataURL(file); };
const clear = () => { clearInterval(timer); frames = []; playing = 0; el("future").hidden = true;
  el("waiting").hidden = true; el("time").textContent = "";
  for (const id of ["without", "with", "notes"]) el(id).replaceChildren(); };
const note = text => { const item = document.createElement("li"); item.textContent = text; el("notes").append(item); };
const show = () => { if (!frames.length) return; playing %= frames.length; const frame = frames[playing++];
  el("future").src = frame.picture; el("future").hidden = false; el("time").textContent = frame.label; };
const answer = (place, found) => { const text = document.createElement("p"); text.className = "answer";
  text.dir = "auto";
  text.textContent = found.text; place.replaceChildren(text);
  const table = document.createElement("table"); for (const one of found.ranked) { const row = table.insertRow();
    const name = row.insertCell(); name.textContent = one.choice; name.dir = "auto";
    const bar = document.createElement("meter");
    bar.value = one.probability; bar.setAttribute("aria-label", one.choice); row.insertCell().append(bar);
    row.insertCell().textContent = (100 * one.probability).toFixed(1) + " %"; } place.append(table); };
const took = event => { if (event.note) note(event.note); if (event.error) note(event.error);
  if (event.status) el("status").textContent = event.status;
  if (event.frame) { frames.push({ picture: "data:image/jpeg;base64," + event.frame, label: event.label });
    el("waiting").hidden = true; playing = frames.length - 1; show(); }
  if (event.without) answer(el("without"), event.without); if (event.with) answer(el("with"), event.with); };
const ask = async () => { clear(); el("go").disabled = true; el("waiting").hidden = false; try {
  const image = el("picture").src.split(",", 2)[1];
  const response = await fetch("/answer?token=" + encodeURIComponent(token), { method: "POST",
    headers: { "Content-Type": "application/json" }, body: JSON.stringify({ image, name: chosen.name,
      question: el("question").value, choices: el("choices").value.split(",").map(t => t.trim()).filter(t => t) }) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); let rest = "";
  for (;;) { const { value, done } = await reader.read(); rest += value || "";
    const lines = rest.split("\\n"); rest = lines.pop(); lines.filter(l => l).forEach(l => took(JSON.parse(l)));
    if (done) break; }
  } catch (problem) { note("the server does not answer: " + problem.message); }
  el("waiting").hidden = true; el("go").disabled = false; el("status").textContent = "";
  if (frames.length > 1) timer = setInterval(show, 1000 / {{ fps }}); };
el("file").onchange = () => choose(el("file").files[0]);
for (const name of ["dragenter", "dragover"]) el("drop").addEventListener(name, e => { e.preventDefault();
  el("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) el("drop").addEventListener(name, e => { e.preventDefault();
  el("drop").classList.remove("over"); });
el("drop").addEventListener("drop", e => choose(e.dataTransfer.files[0]));
el("form").onsubmit = e => { e.preventDefault(); if (chosen) ask(); else note("choose an image first"); };
</script></body></html>
"""

_TEMPLATE = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)


def page(**facts: object) -> str:
    """The page.

    Args:
        facts: run, world, horizon (texts), fps (frames a second), question_letters (most letters of a question) and
            nonce, which the policy lets run.
    """
    return _TEMPLATE.render(facts)
