// The page: logs in, follows the stream, and draws what the model knows.

import { Component, render } from './preact.js';
import { Card, html, Shape } from './html.js';
import { Chart } from './chart.js';
import { Command, EngineDetails, Policy, Settings } from './control.js';
import { Fault, Incidents } from './incidents.js';
import { emptyModel, latestFault, take } from './model.js';
import { isLarge, Topology } from './topology.js';
import { ago, clock, verdictOf } from './words.js';

const SILENT_MS = 25000; // the server says something every 10 s
const RETRY_MS = [500, 1000, 2000, 4000, 8000];

class App extends Component {
  state = { session: undefined, model: emptyModel(), connected: false, heardAt: 0, dialog: null, said: '', problem: '', kept: [] };
  source = null;
  tries = 0;

  componentDidMount() {
    this.begin();
    this.clock = setInterval(() => this.tick(), 1000);
  }

  tick() {
    if (this.source && Date.now() - this.heardAt > SILENT_MS) this.reconnect();
    this.setState({ now: Date.now() });
  }

  // ---- the session

  begin = async () => {
    try {
      const answer = await fetch('session');
      const session = answer.ok ? await answer.json() : null;
      if (session?.admitted_by) {
        this.setState({ session, problem: '' });
        this.follow();
      } else {
        const ended = this.state.model.status ? 'The session has ended. Log in again.' : '';
        this.setState({ session: null, model: emptyModel(), problem: session ? ended : await problemOf(answer) });
      }
    } catch {
      this.reconnect();
    }
  };

  login = async (token) => {
    try {
      const answer = await fetch('login', post({ token }));
      if (!answer.ok) return this.setState({ problem: await problemOf(answer) });
      this.setState({ session: await answer.json(), problem: '' });
      this.follow();
    } catch {
      this.setState({ problem: 'The server does not answer.' });
    }
  };

  logout = async () => {
    await fetch('logout', { method: 'POST', headers: this.csrf() }).catch(() => null);
    this.source?.close();
    this.source = null;
    this.setState({ session: null, model: emptyModel(), connected: false });
  };

  csrf() {
    return { 'X-Holdfast-CSRF': this.state.session?.csrf ?? '' };
  }

  // ---- the stream

  follow() {
    this.source?.close();
    const { model } = this.state;
    const place = model.status ? `?instance_id=${model.status.instance_id}&after=${model.sequence}` : '';
    this.source = new EventSource(`stream${place}`);
    this.heard();
    this.source.onmessage = (event) => this.heard(JSON.parse(event.data));
    this.source.addEventListener('alive', () => this.heard());
    this.source.addEventListener('expired', () => this.begin());
    this.source.onerror = () => this.reconnect();
  }

  heard(update) {
    this.heardAt = Date.now();
    if (!update) return;
    this.tries = 0;
    const before = this.state.model.incidents.length;
    const model = take(this.state.model, update);
    this.setState({ model, connected: true, restarted: update.restarted || this.state.restarted });
    if (model.incidents.length !== before || update.events.some((e) => e.kind === 'engine-recovered')) this.fetchKept();
  }

  reconnect() {
    this.source?.close();
    this.source = null;
    this.setState({ connected: false });
    clearTimeout(this.waiting);
    this.waiting = setTimeout(this.begin, RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)]);
  }

  fetchKept() {
    if (this.noKept || this.fetching) return;
    this.fetching = setTimeout(async () => {
      this.fetching = null;
      const answer = await fetch('incidents').catch(() => null);
      if (answer?.ok) this.setState({ kept: (await answer.json()).incidents ?? [] });
      else if (answer?.status === 404) this.noKept = true;
    }, 1500);
  }

  // ---- commands

  send = async (body) => {
    const key = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, '0')).join('');
    try {
      const answer = await fetch('apply', post(body, { ...this.csrf(), 'Idempotency-Key': key }));
      if (!answer.ok) return await problemOf(answer);
      this.setState({ said: `${body.instruction}: accepted at ${clock(Date.now() / 1000)}` });
      return '';
    } catch {
      return 'The server does not answer. The command may have arrived: look at the incidents before you repeat it.';
    }
  };

  open = (dialog) => this.setState({ dialog });
  close = () => this.setState({ dialog: null });

  render(_, { session, model, connected, dialog, said, problem, kept }) {
    if (session === undefined) return html`<main class="login"><p>Connecting…</p></main>`;
    if (session === null) return html`<${Login} onLogin=${this.login} problem=${problem} />`;
    if (!model.status) return html`<main class="login"><p>Loading…</p></main>`;
    const now = Date.now() / 1000 - model.skew;
    document.title = `${verdictOf(model).head} – Holdfast`;
    return html`<${Head} model=${model} connected=${connected} session=${session} heardAt=${this.heardAt} onLogout=${this.logout} />
      <main>
        <${Verdict} model=${model} connected=${connected} heardAt=${this.heardAt} />
        <${Fault} incident=${latestFault(model)} model=${model} now=${now} />
        <div class=${`column ${isLarge(model) ? 'full' : ''}`}><${Card} title="Topology" id="topology-title"><${Topology} model=${model} now=${now} onEngine=${(id) => this.open({ engine: id })} /></${Card}>
          ${isLarge(model) ? null : html`<${Chart} model=${model} now=${now} />`}</div>
        ${isLarge(model) ? html`<div class="column"><${Chart} model=${model} now=${now} /></div>` : null}
        <div class="column"><${Policy} model=${model} now=${now} onCommand=${(name) => this.open({ command: name })} onSettings=${() => this.open({ settings: true })} /></div>
        <${Incidents} model=${model} now=${now} kept=${kept} />
      </main>
      <div class="said" role="status">${said}</div>
      ${dialog ? this.drawDialog(dialog, model) : null}`;
  }

  drawDialog(dialog, model) {
    if (dialog.command) return html`<${Command} key=${dialog.command} name=${dialog.command} engine=${dialog.engine} model=${model} send=${this.send} onClose=${this.close} />`;
    if (dialog.settings) return html`<${Settings} model=${model} send=${this.send} onClose=${this.close} />`;
    const engine = model.engines.get(dialog.engine);
    return engine ? html`<${EngineDetails} engine=${engine} onClose=${this.close} onCommand=${(command, id) => this.open({ command, engine: id })} />` : null;
  }
}

function Head({ model, connected, session, heardAt, onLogout }) {
  const live = connected ? 'live' : `no connection since ${clock(heardAt / 1000)}; trying again`;
  return html`<header class="top"><h1>Holdfast <span class="where">${location.host}</span></h1>
    <p class="live"><${Shape} shape=${connected ? 'dot' : 'cross'} tone=${connected ? 'good' : 'bad'} /><span>${live}</span></p>
    <p class="quiet instance">instance ${model.status.instance_id.slice(0, 8)} · event ${model.sequence}</p>
    ${session.expires_at ? html`<button type="button" class="plain" onClick=${onLogout}>Log out</button>` : null}</header>`;
}

function Verdict({ model, connected, heardAt }) {
  const verdict = verdictOf(model);
  return html`<section class=${`verdict ${verdict.tone}`} aria-live="polite" aria-atomic="true" aria-label="State of the instance">
    <${Shape} shape=${verdict.shape} tone=${verdict.tone} /><div><p class="head">${verdict.head}</p>
    ${verdict.more ? html`<p>${verdict.more}</p>` : null}
    ${connected ? null : html`<p class="note bad">No connection: this is what was known ${ago(heardAt / 1000, Date.now() / 1000)}.</p>`}</div></section>`;
}

class Login extends Component {
  submit = async (event) => {
    event.preventDefault();
    await this.props.onLogin(event.target.elements.token.value);
  };

  render({ problem }) {
    return html`<main class="login"><form onSubmit=${this.submit}><h1>Holdfast</h1>
      <p>Enter the control token of <b>${location.host}</b>.</p>
      <input type="text" name="username" autocomplete="username" value="holdfast" hidden readonly />
      <label for="token">Control token</label>
      <input id="token" name="token" type="password" autocomplete="current-password" required spellcheck="false" />
      ${problem ? html`<p class="note bad" role="alert">${problem}</p>` : null}
      <button type="submit" class="primary">Log in</button>
      <p class="quiet">On the server, <code>holdfast token</code> prints it. The session lasts an hour.</p></form></main>`;
  }
}

function post(body, headers = {}) {
  return { method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: JSON.stringify(body) };
}

async function problemOf(answer) {
  try {
    const { error } = await answer.json();
    return `${error.message}${error.detail ? `: ${error.detail}` : ''}${error.hint ? `. ${error.hint}` : ''}`;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

render(html`<${App} />`, document.getElementById('app'));
