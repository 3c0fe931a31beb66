// What the page says: states, causes, actions, costs, next steps, and what each command will do. No DOM.

import { groupOf, isFault, latestFault, rootOf, totalOf } from './model.js';

export const STATES = {
  healthy: { word: 'healthy', tone: 'good', shape: 'dot' },
  starting: { word: 'starting', tone: 'quiet', shape: 'ring' },
  faulted: { word: 'faulted', tone: 'bad', shape: 'cross' },
  pausing: { word: 'pausing', tone: 'warn', shape: 'bars' },
  paused: { word: 'paused', tone: 'warn', shape: 'bars' },
  recovering: { word: 'recovering', tone: 'work', shape: 'triangle' },
  restarting: { word: 'being replaced', tone: 'work', shape: 'diamond' },
  'left-out': { word: 'left out', tone: 'bad', shape: 'square' },
  dead: { word: 'ended', tone: 'bad', shape: 'octagon' },
};

const ACTIONS = {
  retry: 'Rewound the requests and went on in the same processes',
  'restart-workers': 'Gave the sick rank a new process, then rewound the requests',
  'restart-engine': 'Replaced the engine core and its workers; requests moved or waited',
  'leave-out': 'Left the engine core out; the others serve on',
  'await-instruction': 'Paused, and waits for an instruction',
  'end-instance': 'Ended the instance: no repair was left',
  'restart-process': 'Replaced the process',
};

const ACTIONS_NOW = {
  retry: 'Rewinds the requests, then goes on in the same processes',
  'restart-workers': 'Gives the sick rank a new process, then rewinds the requests',
  'restart-engine': 'Replaces the engine core and its workers; requests move or wait',
  'restart-process': 'Replaces the process',
};

const CLASSES = {
  communicator: 'a collective broke under it',
  transient: 'an exception; the process is intact',
  numerical: 'logits that are no numbers',
  unknown: 'an error that no rule names',
  device: 'the device of the process works no more',
  'worker-lost': 'the process is gone',
  unresponsive: 'no progress within its deadline',
};

export function plural(count, word) {
  return `${count.toLocaleString('en')} ${word}${count === 1 ? '' : 's'}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return '–';
  if (value < 1) return `${Math.max(1, Math.round(value * 1000))} ms`;
  if (value < 100) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  return value < 6000 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

export function ago(at, now) {
  const s = Math.max(0, now - at);
  if (s < 5) return 'just now';
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  return s < 86400 ? `${Math.floor(s / 3600)} h ago` : `${Math.floor(s / 86400)} d ago`;
}

const CLOCK = { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false };

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString('en-GB', CLOCK);
}

export function dateOf(at) {
  return new Date(at * 1000).toISOString();
}

export function range(ids) {
  const sorted = [...ids].sort((a, b) => a - b);
  const parts = [];
  for (let i = 0; i < sorted.length; i++) {
    const from = sorted[i];
    while (sorted[i + 1] === sorted[i] + 1) i++;
    parts.push(sorted[i] - from > 1 ? `${from}–${sorted[i]}` : sorted[i] > from ? `${from}, ${sorted[i]}` : `${from}`);
  }
  return parts.length > 6 ? `${parts.slice(0, 5).join(', ')} and ${parts.length - 5} more` : parts.join(', ');
}

export function enginesNamed(ids) {
  const list = [...ids];
  return list.length === 1 ? `engine ${list[0]}` : `engines ${range(list)}`;
}

// ---- one incident

/** Return the cause: a headline, where it was, and what kind of fault that is. */
export function causeOf(incident) {
  const fault = rootOf(incident);
  if (incident.process) return { head: `${incident.process} was lost`, where: '', more: incident.events[0]?.reason ?? '' };
  if (!fault && incident.lost) {
    return { head: 'The engine core was lost', where: enginesNamed(incident.engines), more: incident.reason ?? '' };
  }
  if (!fault && incident.defeat) return { head: 'The instance has ended', where: '', more: incident.defeat };
  if (!fault) return { head: commandTitle(incident), where: enginesNamed(incident.engines), more: '' };
  const rank = fault.rank === null || fault.rank === undefined ? '' : `, rank ${fault.rank}`;
  const phase = fault.phase ? ` at ${fault.phase}` : '';
  const withheld = fault.message.includes('<text withheld>');
  return {
    head: withheld ? `${fault.error_type}: ${CLASSES[fault.fault_class] ?? fault.fault_class}` : `${fault.error_type}: ${fault.message}`,
    where: `engine ${fault.engine_id}${rank}${phase}`,
    more: [fault.error_type.startsWith('Injected') ? 'injected on purpose' : '', `class ${fault.fault_class}${withheld ? '' : `: ${CLASSES[fault.fault_class] ?? ''}`}`, fault.place, withheld ? '`holdfast status --full-texts` shows the text' : '']
      .filter(Boolean).join(' · '),
  };
}

/** Return the policy's reason without what the cause says already. */
function reasonOf(incident) {
  const reason = incident.decisions.at(-1)?.reason ?? '';
  const message = rootOf(incident)?.message ?? '';
  return reason.split('; ').filter((part) => !message || !part.includes(message)).join('; ');
}

function commandTitle(incident) {
  const ordered = incident.events.find((e) => e.kind === 'pause-ordered');
  return ordered?.given_by || ordered?.command_id ? 'An operator’s command' : 'Paused';
}

/** Return the action in words, with the policy's reason. */
export function actionOf(incident) {
  const decision = incident.decisions.at(-1);
  const action = incident.action ?? decision?.decision?.action ?? (incident.lost ? 'restart-engine' : null);
  const replaced = incident.reports.flatMap((r) => r.replaced_ranks ?? []);
  let head = ACTIONS[action] ?? (incident.outcome ? 'Resumed' : 'Stops the engines to contain the fault');
  if (action === 'restart-workers' && replaced.length) {
    head = `Gave rank ${range(replaced)} a new process, then rewound the requests`;
  }
  if (!incident.outcome && ACTIONS_NOW[action]) head = ACTIONS_NOW[action];
  return { head, more: reasonOf(incident) };
}

/** Return the cost: the interruption, and what happened to requests. */
export function costOf(incident, now) {
  const open = incident.outcome === null;
  const head = open
    ? `${seconds(now - incident.at)} so far`
    : incident.interruption === null
      ? 'No interruption known'
      : `${seconds(incident.interruption)} interruption`;
  const failed = totalOf(incident, 'failed_requests');
  const ended = incident.events.filter((e) => e.kind === 'request-ended').length;
  const parts = [];
  if (incident.reports.length) {
    parts.push(failed + ended ? `${plural(failed + ended, 'request')} failed` : 'No request failed');
    parts.push(`${plural(totalOf(incident, 'requests'), 'request')} went on`);
    const tokens = totalOf(incident, 'tokens_to_recompute');
    if (tokens) parts.push(`${plural(tokens, 'token')} computed again`);
  } else if (incident.process) parts.push('Requests of this process had to be sent again');
  else if (incident.lost) parts.push(open ? 'Its requests go on in other engines, or wait' : 'Its requests went on in other engines, or waited');
  else if (open) parts.push('Open requests wait; nothing is lost so far');
  return { head, more: parts.join(' · ') };
}

const NEXT = {
  communicator: ['Look at the peer', 'A rank saw its peers go. If no other fault is listed beside it, check the network of these ranks.'],
  transient: ['Nothing to do', 'If it comes back, report the error with its evidence.'],
  numerical: ['Look at the named requests', 'If it comes back without them, check weights and kernels of this rank.'],
  unknown: ['Read the error', 'It has no rule yet: `holdfast classify` shows how to give it one.'],
  device: ['Check the device of this rank', '`nvidia-smi -q` and `dmesg -T | grep -i xid`. Take the machine out if it comes back.'],
  'worker-lost': ['Find out what ended the process', '`dmesg -T | grep -i -e oom -e xid`; then who else runs on the machine.'],
  unresponsive: ['Look at the stacks of the incident', 'They show what the rank waited for, on the server under `--incident-dir`.'],
};

/** Return the next step of the person who reads this: how urgent, what, and how. */
export function nextOf(incident, model) {
  const fault = rootOf(incident);
  if (model.status?.defeat) return { urgency: 'now', head: 'Start the server again', more: 'No repair was left. Keep its log and the evidence of the incident.' };
  if (incident.outcome === null) return nextWhileOpen(incident, model);
  if (incident.outcome === 'left out') {
    return { urgency: 'soon', head: 'Look at the machine of this engine core', more: 'Holdfast tries it again by itself; the button Restart engine tries at once.' };
  }
  const again = timesBefore(incident, model);
  const [head, more] = NEXT[fault?.fault_class] ?? ['Nothing to do', 'The replacement serves. If it happens again, `dmesg -T` may say what ended the process.'];
  if (again > 2) return { urgency: 'soon', head: `Look into it: ${again} times here within an hour`, more };
  return { urgency: 'not urgent', head, more };
}

function nextWhileOpen(incident, model) {
  const engines = [...incident.engines].map((id) => model.engines.get(id)).filter(Boolean);
  if (engines.some((e) => e.paused_by_operator)) return { urgency: 'when you are done', head: 'Press Resume', more: 'A pause by an operator has no time limit.' };
  if (incident.decisions.at(-1)?.decision?.action === 'await-instruction') {
    return { urgency: 'now', head: 'Press Retry: it waits for you', more: 'Or Restart worker, when the process cannot be trusted. Without an answer in time the instance ends.' };
  }
  return { urgency: 'not now', head: 'Wait', more: 'Holdfast repairs it by itself. This line says so if it needs you.' };
}

function timesBefore(incident, model) {
  const same = (other) => {
    const [a, b] = [rootOf(incident), rootOf(other)];
    return a && b && a.error_type === b.error_type && a.place === b.place && a.engine_id === b.engine_id && a.rank === b.rank;
  };
  return model.incidents.filter((other) => incident.at - other.at < 3600 && isFault(other) && same(other)).length;
}

// ---- the whole instance

/** Return the verdict: a tone, a shape and one sentence. */
export function verdictOf(model) {
  const engines = [...model.engines.values()];
  const inState = (...states) => engines.filter((e) => states.includes(e.state)).map((e) => e.id);
  const all = engines.length;
  if (model.status.defeat) return { tone: 'bad', shape: 'octagon', head: 'The instance has ended', more: model.status.defeat };
  const byOperator = engines.filter((e) => e.paused_by_operator && e.state !== 'healthy').map((e) => e.id);
  const fault = latestFault(model);
  const waits = fault && fault.outcome === null && fault.decisions.at(-1)?.decision?.action === 'await-instruction';
  if (waits) return { tone: 'warn', shape: 'bars', head: `Waits for you: ${enginesNamed(fault.engines)} paused after a fault`, more: '' };
  const stopped = inState('faulted', 'pausing', 'paused', 'recovering').filter((id) => !byOperator.includes(id));
  const restarting = inState('restarting');
  if (stopped.length + restarting.length) {
    const parts = [stopped.length && `recovers ${enginesNamed(stopped)}`, restarting.length && `replaces ${enginesNamed(restarting)}`].filter(Boolean);
    const head = parts.join(', ');
    return { tone: 'work', shape: stopped.length ? 'triangle' : 'diamond', head: head[0].toUpperCase() + head.slice(1), more: rest(all, [...stopped, ...restarting]) };
  }
  if (byOperator.length) return { tone: 'warn', shape: 'bars', head: `Paused by an operator: ${enginesNamed(byOperator)}`, more: rest(all, byOperator) };
  const out = inState('left-out', 'dead');
  if (out.length) return { tone: 'bad', shape: 'square', head: `Serves without ${enginesNamed(out)}`, more: rest(all, out) };
  const starting = inState('starting');
  if (starting.length) return { tone: 'quiet', shape: 'ring', head: `Starting: ${all - starting.length} of ${plural(all, 'engine')} ready`, more: '' };
  const suspects = engines.filter((e) => e.suspects > 0).map((e) => e.id);
  if (suspects.length) return { tone: 'work', shape: 'triangle', head: `Searches for a poison request in ${enginesNamed(suspects)}`, more: 'The other requests go on.' };
  return { tone: 'good', shape: 'dot', head: 'Serves normally', more: recentOf(model) };
}

function recentOf(model) {
  const now = Date.now() / 1000 - model.skew;
  const recent = model.incidents.filter((i) => isFault(i) && now - i.at < 3600);
  if (!recent.length) return 'No fault within the last hour.';
  const longest = Math.max(...recent.map((i) => i.interruption ?? 0));
  return `${plural(recent.length, 'fault')} within the last hour, all repaired; the longest interruption was ${seconds(longest)}.`;
}

function rest(all, without) {
  const others = all - without.length;
  return others ? `${plural(others, 'other engine')} serve${others === 1 ? 's' : ''} on.` : 'New requests wait.';
}

// ---- commands

export const COMMANDS = {
  pause: { title: 'Pause', ask: 'engines', verb: 'Pause' },
  resume: { title: 'Resume', ask: 'engines', verb: 'Resume' },
  retry: { title: 'Retry', ask: 'engines', verb: 'Retry' },
  'restart-worker': { title: 'Restart worker', ask: 'one', verb: 'Restart' },
  'restart-engine': { title: 'Restart engine', ask: 'one', verb: 'Restart' },
};

/** Return what a command will do now: the engines, the consequences, and why it is not possible, if so. */
export function effectOf(name, choice, model) {
  const ids = new Set();
  const chosen = choice.engine === 'all' ? [...model.engines.keys()] : [Number(choice.engine)];
  for (const id of chosen) for (const other of groupOf(model, id)) ids.add(other);
  const inState = (test) => [...ids].filter((id) => test(model.engines.get(id)));
  const healthy = inState((e) => e.state === 'healthy');
  const byOperator = inState((e) => e.paused_by_operator && e.state === 'paused');
  const paused = inState((e) => e.state === 'paused');
  const inGroup = choice.engine !== 'all' && ids.size > 1 ? ' They share collectives, so they go together.' : '';
  switch (name) {
    case 'pause':
      return {
        blocked: healthy.length ? '' : 'No engine of these is healthy.',
        lines: [`Pauses ${enginesNamed(ids)} ${choice.mode === 'soft' ? 'at the next step boundary' : 'at once, and breaks their collectives'}.${inGroup}`,
          'Open requests keep their tokens and wait. New requests go to other engines, or wait.', 'It lasts until somebody presses Resume.'],
      };
    case 'resume':
      return {
        blocked: byOperator.length ? '' : 'No engine of these is paused by an operator.',
        lines: [`Resumes ${enginesNamed(byOperator.length ? byOperator : ids)}.`, 'Waiting requests go on where they stopped; no answer changes.'],
      };
    case 'retry':
      return {
        blocked: paused.length ? '' : 'No engine of these is paused.',
        lines: [`Rewinds the requests of ${enginesNamed(paused.length ? paused : ids)} to their last good token, lets the ranks back in, and resumes.`,
          'If a rank’s process is gone, it gets a new one first.'],
      };
    case 'restart-worker':
      return {
        blocked: healthy.length === ids.size ? '' : 'The lockstep group is not healthy.',
        lines: [`Ends and replaces ${choice.ranks ? `rank ${choice.ranks}` : 'every rank'} of engine ${choice.engine}.${inGroup}`,
          `${enginesNamed(ids)} pause${ids.size === 1 ? 's' : ''} until the new process has loaded the model: seconds with a standby, else minutes.`,
          'Open requests go on afterwards.'],
      };
    default:
      return {
        blocked: '',
        lines: [`Ends and replaces the engine core ${choice.engine} and all its workers.`,
          'The model is loaded anew, which takes minutes. Its requests go on in other engines, or wait.',
          ids.size > 1 ? `The engines in lockstep (${range(ids)}) pause meanwhile.` : 'Other engines serve on.'],
      };
  }
}
