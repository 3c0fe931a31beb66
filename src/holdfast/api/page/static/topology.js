// The topology: lockstep groups, their engines, and in each engine the ranks, one row for each pipeline stage.

import { html, Shape } from './html.js';
import { groupsOf, rootOf } from './model.js';
import { ago, enginesNamed, plural, seconds, STATES } from './words.js';

const FRESH_S = 20; // a recovery is marked for that long: most take less than a blink

/** Whether the engines are so many that their grid takes the whole width. */
export function isLarge(model) {
  return model.engines.size > 24;
}

export function Topology({ model, now, onEngine }) {
  const groups = groupsOf(model);
  const total = model.engines.size;
  const size = isLarge(model) ? 'small' : total > 8 ? 'middle' : 'large';
  const roots = new Map([...model.open.values()].map(rootOf).filter(Boolean).map((root) => [root.engine_id, root.rank ?? -1]));
  const singles = groups.filter((g) => g.length === 1).flat();
  const lockstep = groups.filter((g) => g.length > 1);
  const draw = (engine) => drawEngine(engine, model, now, roots, onEngine);
  return html`<${Legend} model=${model} />
    <div class=${`topology ${size}`}>
      ${lockstep.map((group) => html`<div class="group" key=${group[0].id} role="group" aria-label=${`Lockstep group: ${enginesNamed(group.map((e) => e.id))}`}>
        <p class="group-name">In lockstep: ${enginesNamed(group.map((e) => e.id))} <span class="quiet">pause and resume together</span></p>
        <div class="engines">${group.map(draw)}</div></div>`)}
      ${singles.length ? html`<div class="engines">${singles.map(draw)}</div>` : null}
    </div>
    <${Beside} model=${model} />`;
}

function Legend({ model }) {
  const counts = new Map();
  let ranks = 0;
  for (const engine of model.engines.values()) {
    counts.set(engine.state, (counts.get(engine.state) ?? 0) + 1);
    ranks += engine.ranks;
  }
  const stages = Math.max(1, ...[...model.engines.values()].map((e) => e.pipeline_stages));
  const widest = Math.max(0, ...[...model.engines.values()].map((e) => e.ranks / e.pipeline_stages));
  const grid = `${model.engines.size} DP × ${stages} PP × ${widest} TP`;
  return html`<div class="legend">
    <ul>${Object.keys(STATES).filter((s) => counts.has(s)).map((s) => html`<li key=${s}><${Shape} ...${STATES[s]} />
      <b>${counts.get(s)}</b> ${STATES[s].word}</li>`)}</ul>
    <p class="quiet">${plural(model.engines.size, 'engine')}, ${plural(ranks, 'rank')} · ${grid}${stages > 1 ? ' · a row is a pipeline stage' : ''}</p></div>`;
}

const drawn = new WeakMap(); // an engine that has not changed is drawn once

function drawEngine(engine, model, now, roots, onEngine) {
  const at = recoveredAt(model, engine.id);
  const fresh = engine.state === 'healthy' && at !== null && now - at.at < FRESH_S;
  const cause = roots.get(engine.id) ?? null;
  const key = `${fresh ? ago(at.at, now) : ''}/${cause}/${engine.ranks}`;
  const before = drawn.get(engine);
  if (before?.key === key) return before.view;
  const view = html`<${EngineCard} key=${engine.id} engine=${engine} fresh=${fresh ? at : null} now=${now} cause=${cause} onEngine=${onEngine} />`;
  drawn.set(engine, { key, view });
  return view;
}

function recoveredAt(model, engineId) {
  for (let i = model.events.length - 1; i >= 0 && i > model.events.length - 400; i--) {
    const event = model.events[i];
    if (event.engine_id === engineId && (event.kind === 'engine-recovered' || event.kind === 'engine-restarted')) return event;
  }
  return null;
}

function EngineCard({ engine, fresh, now, cause, onEngine }) {
  const state = STATES[engine.state] ?? STATES.starting;
  const stages = Math.max(1, engine.pipeline_stages);
  const wide = Math.max(1, Math.round(engine.ranks / stages));
  const byOperator = engine.paused_by_operator && engine.state === 'paused' ? ' by an operator' : '';
  const note = fresh ? `recovered in ${seconds(fresh.interruption_s)}` : '';
  return html`<article class=${`engine ${state.tone} ${fresh ? 'fresh' : ''}`}>
    <button type="button" class="engine-name" onClick=${() => onEngine(engine.id)} aria-haspopup="dialog">
      <${Shape} shape=${state.shape} tone=${state.tone} />
      <span><span class="long">Engine </span>${engine.id}</span>
      <span class="state">${state.word}${byOperator}</span></button>
    ${engine.ranks ? html`<div class="ranks" data-wide=${Math.min(wide, 16)} aria-hidden="true">
      ${Array.from({ length: engine.ranks }, (_, rank) => html`<${Rank} key=${rank} engine=${engine} rank=${rank} wide=${wide} cause=${cause} />`)}
    </div>` : html`<p class="quiet gone">no process</p>`}
    ${cause !== null && cause >= 0 ? html`<p class="note bad">rank ${cause}<span class="long"> at fault</span></p>` : null}
    ${note ? html`<p class="note good"><span class="long">${note}, ${ago(fresh.at, now)}</span><span class="short" title=${note}>${seconds(fresh.interruption_s)}</span></p>` : null}
    ${engine.standbys ? html`<p class="note quiet">standby ${engine.standbys.ready}/${engine.standbys.wanted}</p>` : null}
  </article>`;
}

function Rank({ engine, rank, wide, cause }) {
  const isCause = cause === rank || engine.sick_ranks.includes(rank);
  const other = engine.state === 'faulted' && cause !== null && cause >= 0 ? 'pausing' : engine.state; // its peers only stop
  const state = isCause ? STATES.faulted : STATES[other] ?? STATES.starting;
  const place = `rank ${rank}: stage ${Math.floor(rank / wide)}, place ${rank % wide}`;
  return html`<span class="rank" title=${`${place}, ${state.word}`}><${Shape} shape=${state.shape} tone=${state.tone} /></span>`;
}

function Beside({ model }) {
  const { processes } = model.status;
  const standbys = [...model.engines.values()].filter((e) => e.standbys);
  if (!processes.length && !standbys.length) return null;
  const ready = standbys.reduce((sum, e) => sum + e.standbys.ready, 0);
  const wanted = standbys.reduce((sum, e) => sum + e.standbys.wanted, 0);
  return html`<ul class="beside">
    ${standbys.length ? html`<li><${Shape} shape=${ready < wanted ? 'ring' : 'dot'} tone=${ready < wanted ? 'warn' : 'good'} /> ${ready} of ${wanted} standby workers ready</li>` : null}
    ${processes.map((p) => html`<li key=${p.name}><${Shape} shape=${p.pid === null ? 'diamond' : 'dot'} tone=${p.pid === null ? 'work' : 'good'} />
      ${p.name} ${p.pid === null ? 'is being replaced' : ''}${p.restarts ? html` <span class="quiet">replaced ${p.restarts}×</span>` : null}</li>`)}</ul>`;
}
