// One fault in one look (cause, action, cost, next step), and all incidents with their phases and evidence.

import { Component } from './preact.js';
import { Card, html, Prose, Shape, Time } from './html.js';
import { isFault, phasesOf } from './model.js';
import { actionOf, causeOf, clock, costOf, enginesNamed, nextOf, seconds } from './words.js';

const SHOWN = 12;

export function Fault({ incident, model, now }) {
  if (!incident) {
    return html`<${Card} title="Latest fault" id="fault-title"><p class="empty">No fault since this server started.
      When one happens, cause, action, cost and next step are here.</p></${Card}>`;
  }
  const [cause, action, cost, next] = [causeOf(incident), actionOf(incident), costOf(incident, now), nextOf(incident, model)];
  const open = incident.outcome === null;
  const others = [...model.open.values()].filter((i) => i !== incident && isFault(i));
  return html`<${Card} title=${open ? 'Fault now' : 'Latest fault'} id="fault-title" kind=${open ? 'open' : ''}
    aside=${html`<${Outcome} incident=${incident} /> <${Time} at=${incident.at} now=${now} />`}>
    <dl class="answers">
      <div><dt>Cause</dt><dd><strong>${cause.head}</strong><span>${cause.where}</span><span class="quiet"><${Prose} text=${cause.more} /></span></dd></div>
      <div><dt>${open ? 'What Holdfast does' : 'What Holdfast did'}</dt><dd><strong>${action.head}</strong><span class="quiet">${action.more}</span></dd></div>
      <div><dt>Cost</dt><dd><strong>${cost.head}</strong><span class="quiet">${cost.more}</span></dd></div>
      <div class="next"><dt>What you do next <span class=${`urgency ${next.urgency === 'now' ? 'bad' : next.urgency === 'soon' ? 'warn' : ''}`}>${next.urgency}</span></dt><dd><strong>${next.head}</strong><span><${Prose} text=${next.more} /></span></dd></div>
    </dl>
    <${Phases} incident=${incident} now=${now} words />
    ${others.length ? html`<p class="note work">Open as well: ${others.map((i) => `${i.process ?? enginesNamed(i.engines)} (${causeOf(i).head})`).join('; ')}. See the incidents.</p>` : null}</${Card}>`;
}

function Outcome({ incident }) {
  const [tone, shape, word] = {
    recovered: ['good', 'dot', incident.command && !isFault(incident) ? 'done' : 'recovered'],
    'left out': ['bad', 'square', 'left out'],
    ended: ['bad', 'octagon', 'instance ended'],
  }[incident.outcome] ?? ['work', 'triangle', 'under way'];
  return html`<span class=${`outcome ${tone}`}><${Shape} shape=${shape} tone=${tone} />${word}</span>`;
}

const PHASES = {
  contain: 'contain: stop every rank of the group',
  decide: 'decide: choose the repair',
  repair: 'repair: rewind, rebuild, restore',
  replace: 'replace: start another process',
};

function Phases({ incident, now, words }) {
  const phases = phasesOf(incident, now);
  const total = phases.reduce((sum, p) => sum + p.seconds, 0);
  const label = phases.map((p) => `${p.name} ${seconds(p.seconds)}`).join(', ');
  return html`<div class="phases"><div class="bar" role="img" aria-label=${`Phases: ${label}`}>
      ${phases.map((p) => html`<span key=${p.name} class=${`phase ${p.name}`} title=${PHASES[p.name]} style=${{ flexGrow: Math.max(0.03, p.seconds / (total || 1)) }}></span>`)}</div>
    ${words && phases.length ? html`<ul><li title="From the report of the fault to the end of the repair. The interruption ends with the next token of an answer.">Recovery <b>${seconds(total)}</b></li>${phases.map((p) => html`<li key=${p.name}><i class=${`phase ${p.name}`}></i>${PHASES[p.name]} <b>${seconds(p.seconds)}</b></li>`)}</ul>` : null}</div>`;
}

export class Incidents extends Component {
  render({ model, now, kept }, { all }) {
    const list = [...model.incidents].reverse();
    const shown = all ? list : list.slice(0, SHOWN);
    return html`<${Card} title="Incidents" id="incidents-title" aside=${list.length ? `${list.length} since the page’s first event` : null}>
      ${list.length ? html`<ol class="incidents">${shown.map((i) => html`<li key=${i.id}><${Row} incident=${i} model=${model} now=${now} kept=${kept} /></li>`)}</ol>`
        : html`<p class="empty">None yet. Faults and commands that stop engines are listed here, the newest first.</p>`}
      ${list.length > shown.length ? html`<button type="button" class="plain" onClick=${() => this.setState({ all: true })}>Show ${list.length - shown.length} older</button>` : null}
    </${Card}>`;
  }
}

function Row({ incident, model, now, kept }) {
  const cause = causeOf(incident);
  const cost = costOf(incident, now);
  const folder = folderOf(kept, incident);
  return html`<details>
    <summary><span class="when"><${Time} at=${incident.at} now=${now} /></span>
      <span class="what"><b>${cause.head}</b> <span class="quiet">${cause.where || enginesNamed(incident.engines)}</span></span>
      <${Outcome} incident=${incident} /><span class="cost">${cost.head}</span>
      <${Phases} incident=${incident} now=${now} /></summary>
    <div class="evidence">
      <p><b>Action:</b> ${actionOf(incident).head}. <span class="quiet">${actionOf(incident).more}</span></p>
      <p><b>Cost:</b> ${cost.head}. ${cost.more}</p>
      <p><b>Next:</b> ${nextOf(incident, model).head}. <${Prose} text=${nextOf(incident, model).more} /></p>
      ${folder ? html`<p class="downloads"><a href=${`incidents/${encodeURIComponent(folder.incident_id)}.tar`} download>Download the evidence</a>
        <a href=${`incidents/${encodeURIComponent(folder.incident_id)}`} target="_blank" rel="noopener">Open incident.json</a></p>` : null}
      <div class="scroll" tabIndex="0" role="region" aria-label="Events of this incident"><table>
        <thead><tr><th scope="col">Time</th><th scope="col">Event</th><th scope="col">Engine</th><th scope="col">Says</th></tr></thead>
        <tbody>${incident.events.map((e) => html`<tr key=${e.sequence}><td>${clock(e.at)}.${`${Math.floor((e.at % 1) * 1000)}`.padStart(3, '0')}</td>
          <td>${e.kind}</td><td>${e.engine_id ?? '–'}</td><td>${sayOf(e)}</td></tr>`)}</tbody></table></div>
    </div></details>`;
}

/** Return the folder of an incident: that of the same engines which began nearest in time. */
function folderOf(kept, incident) {
  const near = (k) => Math.abs(k.opened_at - incident.at);
  const same = kept.filter((k) => near(k) < 5 && (incident.process ? k.process === incident.process : k.engines.some((id) => incident.engines.has(id))));
  return same.sort((a, b) => near(a) - near(b))[0];
}

function sayOf(event) {
  if (event.fault) return `${event.fault.error_type}: ${event.fault.message}`;
  if (event.interruption_s !== undefined) return `after ${seconds(event.interruption_s)}`;
  if (event.reason) return event.reason;
  return event.given_by ? `given by ${event.given_by.credential}` : '';
}
