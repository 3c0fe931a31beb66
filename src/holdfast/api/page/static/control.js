// Policy, budgets and the buttons of commands: each says what it will do before it does anything.

import { Component, createRef } from './preact.js';
import { Card, html } from './html.js';
import { budgetsOf } from './model.js';
import { COMMANDS, effectOf, plural, seconds } from './words.js';

const POLICIES = {
  auto: 'repairs by itself',
  external: 'pauses and waits for an instruction',
  'dry-run': 'says what it would do, and does nothing',
};

export function Policy({ model, now, onCommand, onSettings }) {
  const { policy, settings } = model.status;
  return html`<${Card} title="Control" id="control-title">
    <p><b>Policy ${policy}</b>: Holdfast ${POLICIES[policy] ?? ''}${settings.external_fallback === 'auto' ? '; without an answer it repairs by itself' : ''}.</p>
    <ul class="budgets">${budgetsOf(model, now).map((b) => html`<li key=${b.action}><span>${b.name}</span>
      <meter min="0" max=${Math.max(1, b.limit)} low=${b.limit / 3} optimum=${b.limit} value=${b.left} aria-label=${`${b.name} left`}>${b.left}</meter>
      <span><b>${b.left}</b> of ${b.limit} left <span class="quiet">in ${seconds(b.windowS)}${b.worst === null ? '' : `, engine ${b.worst}`}</span></span></li>`)}</ul>
    <div class="buttons">${Object.entries(COMMANDS).map(([name, c]) => html`<button key=${name} type="button" aria-haspopup="dialog" onClick=${() => onCommand(name)}>${c.title}…</button>`)}
      <button type="button" aria-haspopup="dialog" onClick=${onSettings}>Settings…</button></div>
    <p class="quiet">Every button first says what it will do.</p></${Card}>`;
}

/** A modal window; the browser keeps the focus inside and gives it back. */
export class Dialog extends Component {
  box = createRef();

  componentDidMount() {
    this.box.current.showModal();
  }

  componentWillUnmount() {
    this.leaves = true; // another window may be opening: the event of this one's end is not for that one
    if (this.box.current.open) this.box.current.close();
  }

  closed = () => this.leaves || this.props.onClose();

  render({ title, children }) {
    return html`<dialog ref=${this.box} aria-labelledby="dialog-title" onClose=${this.closed}>
      <form method="dialog" class="dialog-head"><h2 id="dialog-title">${title}</h2><button class="plain" aria-label="Close">✕</button></form>${children}</dialog>`;
  }
}

export class Command extends Component {
  state = { engine: this.props.engine ?? firstChoice(this.props), mode: 'hard', ranks: '', problem: '', busy: false };

  send = async (event) => {
    event.preventDefault();
    this.setState({ busy: true, problem: '' });
    const problem = await this.props.send(bodyOf(this.props.name, this.state));
    if (problem) this.setState({ problem, busy: false });
    else this.props.onClose();
  };

  render({ name, model, onClose }, { engine, mode, ranks, problem, busy }) {
    const command = COMMANDS[name];
    const effect = effectOf(name, { engine, mode, ranks }, model);
    const set = (field) => (event) => this.setState({ [field]: event.target.value, problem: '' });
    return html`<${Dialog} title=${command.title} onClose=${onClose}><form onSubmit=${this.send} class="command">
      <label>Engine <select value=${engine} onChange=${set('engine')}>
        ${command.ask === 'engines' ? html`<option value="all">all engines</option>` : null}
        ${[...model.engines.values()].map((e) => html`<option key=${e.id} value=${e.id}>engine ${e.id} · ${e.state}</option>`)}</select></label>
      ${name === 'pause' ? html`<fieldset><legend>When</legend>
        <label><input type="radio" name="mode" value="hard" checked=${mode === 'hard'} onChange=${set('mode')} /> at once</label>
        <label><input type="radio" name="mode" value="soft" checked=${mode === 'soft'} onChange=${set('mode')} /> at the next step boundary</label></fieldset>` : null}
      ${name === 'restart-worker' ? html`<label>Ranks <input value=${ranks} onInput=${set('ranks')} placeholder="every rank" inputMode="numeric" pattern="[0-9]+( *, *[0-9]+)*" title="numbers, with commas between" /></label>` : null}
      <div class="effect" aria-live="polite"><p><b>What it will do</b></p><ul>${effect.lines.map((line) => html`<li key=${line}>${line}</li>`)}</ul></div>
      ${effect.blocked ? html`<p class="note warn">Not possible now. ${effect.blocked}</p>` : null}
      ${problem ? html`<p class="note bad" role="alert">${problem}</p>` : null}
      <div class="buttons"><button type="submit" class="primary" disabled=${busy || !!effect.blocked}>${busy ? 'Sending…' : command.verb}</button>
        <button type="button" onClick=${onClose}>Cancel</button></div></form></${Dialog}>`;
  }
}

function firstChoice({ name, model }) {
  if (COMMANDS[name].ask === 'engines') return 'all';
  return `${[...model.engines.keys()][0]}`;
}

function bodyOf(name, { engine, mode, ranks }) {
  const params = engine === 'all' ? {} : { engine_ids: [Number(engine)] };
  if (name === 'pause') params.mode = mode;
  if (name === 'restart-worker' && ranks.trim()) params.ranks = ranks.split(',').map((rank) => Number(rank));
  return { instruction: name, params };
}

export class Settings extends Component {
  state = { changed: {}, problem: '', busy: false };

  send = async (event) => {
    event.preventDefault();
    this.setState({ busy: true, problem: '' });
    const problem = await this.props.send({ instruction: 'configure', params: this.state.changed });
    if (problem) this.setState({ problem, busy: false });
    else this.props.onClose();
  };

  change = (name, old) => (event) => {
    const { [name]: _, ...changed } = this.state.changed;
    const value = typedLike(old, event.target.type === 'checkbox' ? event.target.checked : event.target.value);
    this.setState({ changed: value === old ? changed : { ...changed, [name]: value }, problem: '' });
  };

  render({ model, onClose }, { changed, problem, busy }) {
    const settings = Object.entries(model.status.settings);
    const names = Object.keys(changed);
    return html`<${Dialog} title="Settings" onClose=${onClose}><form onSubmit=${this.send} class="command">
      <div class="settings">${settings.map(([name, value]) => html`<label key=${name}><span>${name}</span>${fieldOf(name, value, this.change(name, value))}</label>`)}</div>
      <div class="effect" aria-live="polite"><p><b>What it will do</b></p>${names.length
        ? html`<ul>${names.map((n) => html`<li key=${n}>${n}: ${`${model.status.settings[n]}`} → ${`${changed[n]}`}</li>`)}</ul><p>All of the ${plural(names.length, 'change')} are made, or none. They last until the server ends.</p>`
        : html`<p>Nothing is changed yet.</p>`}</div>
      ${problem ? html`<p class="note bad" role="alert">${problem}</p>` : null}
      <div class="buttons"><button type="submit" class="primary" disabled=${busy || !names.length}>Change</button><button type="button" onClick=${onClose}>Cancel</button></div>
    </form></${Dialog}>`;
  }
}

const CHOICES = { fault_policy: ['auto', 'external', 'dry-run'], external_fallback: ['none', 'auto'] };

function fieldOf(name, value, onChange) {
  if (CHOICES[name]) return html`<select onChange=${onChange}>${CHOICES[name].map((c) => html`<option selected=${c === value}>${c}</option>`)}</select>`;
  if (typeof value === 'boolean') return html`<input type="checkbox" defaultChecked=${value} onChange=${onChange} />`;
  return html`<input defaultValue=${value} onInput=${onChange} inputMode=${typeof value === 'number' ? 'decimal' : 'text'} />`;
}

function typedLike(old, text) {
  if (typeof old === 'boolean') return text;
  return /^-?\d+(\.\d+)?$/.test(`${text}`.trim()) ? Number(text) : text;
}

export function EngineDetails({ engine, onClose, onCommand }) {
  const rows = [
    ['State', engine.state + (engine.paused_by_operator ? ' by an operator' : '')],
    ['Fault', engine.fault_info],
    ['Reason of the last decision', engine.reason],
    ['Last error', engine.ft_error],
    ['Ranks', `${engine.ranks} in ${plural(engine.pipeline_stages, 'pipeline stage')}`],
    ['In lockstep with', engine.lockstep_with.join(', ')],
    ['Process', engine.pid],
    ['Epoch', engine.epoch],
    ['Faults, recoveries', `${engine.faults}, ${engine.recoveries}`],
    ['Worker restarts, engine restarts', `${engine.worker_restarts}, ${engine.restarts}`],
    ['Standby workers', engine.standbys && `${engine.standbys.ready} of ${engine.standbys.wanted} ready`],
    ['Poison requests', engine.suspects || engine.ended_requests ? `${engine.suspects} suspected, ${engine.ended_requests} ended` : null],
    ['Cannot be rebuilt', engine.unrebuildable.join('; ')],
    ['Set at run time and lost in a new process', engine.unrepeatable_state],
  ];
  return html`<${Dialog} title=${`Engine ${engine.id}`} onClose=${onClose}>
    <dl class="details">${rows.filter(([, v]) => v !== undefined && v !== null && v !== '').map(([k, v]) => html`<div key=${k}><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>
    <div class="buttons">${Object.entries(COMMANDS).map(([name, c]) => html`<button key=${name} type="button" onClick=${() => onCommand(name, `${engine.id}`)}>${c.title}…</button>`)}</div></${Dialog}>`;
}
