// What the page knows: the status and events of the stream, and the incidents that follow from the events. No DOM.

const MAX_EVENTS = 3000;
const MAX_INCIDENTS = 300;
const DEPTH = ['communicator', 'transient', 'numerical', 'unknown', 'unresponsive', 'device', 'worker-lost'];
const STOPS = new Set(['fault-reported', 'pause-ordered', 'engine-paused', 'engine-lost', 'recovery-failed']);

export function emptyModel() {
  return { status: null, engines: new Map(), events: [], incidents: [], open: new Map(), skew: 0, sequence: 0 };
}

/** Take a message of the stream; return the model to go on with. */
export function take(model, update) {
  const next = update.restarted ? emptyModel() : model;
  next.skew = Date.now() / 1000 - update.now;
  if (update.status) {
    next.status = update.status;
    for (const engine of update.status.engines) next.engines.set(engine.id, engine);
  }
  for (const event of update.events) {
    if (event.sequence <= next.sequence) continue;
    next.sequence = event.sequence;
    next.events.push(event);
    note(next, event);
  }
  if (next.events.length > MAX_EVENTS) next.events.splice(0, next.events.length - MAX_EVENTS);
  if (next.incidents.length > MAX_INCIDENTS) next.incidents.splice(0, next.incidents.length - MAX_INCIDENTS);
  return next;
}

/** Return the engines in lockstep with one, itself included. */
export function groupOf(model, engineId) {
  const engine = model.engines.get(engineId);
  return engine ? [engineId, ...engine.lockstep_with].sort((a, b) => a - b) : [engineId];
}

export function groupsOf(model) {
  const groups = new Map();
  for (const engine of [...model.engines.values()].sort((a, b) => a.id - b.id)) {
    const key = groupOf(model, engine.id)[0];
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(engine);
  }
  return [...groups.values()];
}

// ---- incidents

function note(model, event) {
  if (event.kind === 'instance-defeated') {
    const last = [...model.open.values()].pop() || begin(model, 'instance', event);
    last.defeat = event.reason;
    end(model, last, event, 'ended');
    return;
  }
  if (event.process) return noteProcess(model, event);
  if (event.engine_id === undefined) return;
  const key = `engine ${groupOf(model, event.engine_id)[0]}`;
  let incident = model.open.get(key);
  if (!incident) {
    if (!STOPS.has(event.kind)) return;
    incident = begin(model, key, event);
  }
  incident.events.push(event);
  collect(incident, event);
  if (event.kind === 'engine-lost' && event.state === 'left-out') end(model, incident, event, 'left out');
  else if (incident.waiting.size === 0) end(model, incident, event, 'recovered');
}

function noteProcess(model, event) {
  const key = event.process;
  if (event.kind === 'process-lost' && !model.open.has(key)) begin(model, key, event).process = event.process;
  const incident = model.open.get(key);
  if (!incident) return;
  incident.events.push(event);
  if (event.kind === 'process-restarted') {
    incident.interruption = event.interruption_s ?? null;
    incident.action = 'restart-process';
    end(model, incident, event, 'recovered');
  }
}

function begin(model, key, event) {
  const seen = event.fault?.at ?? 0; // 0 where unknown
  const at = event.at - seen < 600 ? Math.min(event.at, seen) : event.at;
  const incident = {
    key, id: `${event.sequence}`, at, events: [], faults: [], waiting: new Set(), engines: new Set(), command: null,
    pausedAt: null, decidedAt: null, startedAt: null, endedAt: null, decisions: [], reports: [], action: null,
    interruption: null, outcome: null, reason: event.reason ?? null, defeat: null, process: null, lost: false, failures: 0,
  };
  model.open.set(key, incident);
  model.incidents.push(incident);
  return incident;
}

function end(model, incident, event, outcome) {
  incident.endedAt = event.at;
  incident.outcome = outcome;
  model.open.delete(incident.key);
}

function collect(incident, event) {
  const id = event.engine_id;
  incident.engines.add(id);
  if (event.given_by && !incident.command) incident.command = event;
  if (event.fault && event.kind !== 'decision-made') incident.faults.push(event.fault);
  switch (event.kind) {
    case 'fault-reported':
    case 'pause-ordered':
      incident.waiting.add(id);
      break;
    case 'engine-lost':
      incident.waiting.add(id);
      incident.lost = true;
      incident.reason = event.reason;
      break;
    case 'engine-paused':
      incident.waiting.add(id);
      if (incident.decidedAt === null) incident.pausedAt = event.at;
      break;
    case 'decision-made':
      incident.decisions.push(event);
      incident.decidedAt ??= event.at;
      if (event.decision && event.decision.action !== 'await-instruction') incident.action = event.decision.action;
      break;
    case 'recovery-started':
      incident.startedAt ??= event.at;
      break;
    case 'recovery-failed':
      incident.failures += 1;
      break;
    case 'engine-recovered':
    case 'engine-restarted':
      if (event.report) incident.reports.push(event.report);
      incident.interruption = Math.max(incident.interruption ?? 0, event.interruption_s ?? 0);
      if (event.kind === 'engine-restarted') incident.action ??= 'restart-engine';
      if (event.state === 'healthy') incident.waiting.delete(id);
      break;
    default:
  }
}

/** Return the fault that decided: the deepest one, and of several of the same class the first. */
export function rootOf(incident) {
  let root = null;
  for (const fault of incident.faults) {
    if (!root || DEPTH.indexOf(fault.fault_class) > DEPTH.indexOf(root.fault_class)) root = fault;
  }
  return root;
}

export function isFault(incident) {
  return incident.faults.length > 0 || incident.lost || incident.process !== null || incident.defeat !== null;
}

export function latestFault(model) {
  const open = [...model.open.values()].filter(isFault);
  const waits = open.find((i) => i.decisions.at(-1)?.decision?.action === 'await-instruction');
  if (open.length) return waits ?? open[0];
  for (let i = model.incidents.length - 1; i >= 0; i--) if (isFault(model.incidents[i])) return model.incidents[i];
  return null;
}

export function totalOf(incident, field) {
  return incident.reports.reduce((sum, report) => sum + (report[field] ?? 0), 0);
}

/** Return the phases with their seconds, in order; the last one goes on while the incident is open. */
export function phasesOf(incident, now) {
  const end = incident.endedAt ?? now;
  const marks = [['contain', incident.pausedAt], ['decide', incident.decidedAt], ['repair', incident.startedAt]];
  const phases = [];
  let from = incident.at;
  if (incident.lost || incident.process) return [{ name: 'replace', seconds: Math.max(0, end - from) }];
  for (const [name, at] of marks.slice(0, 2)) {
    const to = at ?? end;
    phases.push({ name, seconds: Math.max(0, to - from) });
    from = Math.max(from, to);
    if (at === null) return phases;
  }
  phases.push({ name: 'repair', seconds: Math.max(0, end - from) });
  return phases;
}

// ---- budgets

export const BUDGETS = [
  { action: 'retry', name: 'Retries', limit: 'max_retries', window: 'retry_window' },
  { action: 'restart-workers', name: 'Worker restarts', limit: 'max_worker_restarts', window: 'worker_restart_window' },
  { action: 'restart-engine', name: 'Engine restarts', limit: 'max_engine_restarts', window: 'engine_restart_window' },
];

/** Return for each budget the engine that has least left of it, with what is left now. */
export function budgetsOf(model, now) {
  const settings = model.status.settings;
  return BUDGETS.map((budget) => {
    const windowS = settings[budget.window];
    let [worst, left] = [null, settings[budget.limit]];
    for (const engine of model.engines.values()) {
      const spent = engine.budgets.find((b) => b.rung === budget.action);
      if (!spent) continue;
      const remaining = spent.limit - spent.refills_at.filter((at) => at > now).length;
      if (remaining < left) [worst, left] = [engine.id, Math.max(0, remaining)];
    }
    return { ...budget, limit: settings[budget.limit], windowS, left, worst };
  });
}
