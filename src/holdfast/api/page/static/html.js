// The binding of htm to Preact, and small parts that every view uses.

import { h } from './preact.js';
import htm from './htm.js';
import { ago, clock, dateOf } from './words.js';

export const html = htm.bind(h);

const SHAPES = {
  dot: 'M8 3a5 5 0 1 0 0 10A5 5 0 1 0 8 3z',
  ring: 'M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 1 0 0-11zm0 2.2a3.3 3.3 0 1 1 0 6.6 3.3 3.3 0 1 1 0-6.6z',
  cross: 'M3.8 1.8 8 6l4.2-4.2 2 2L10 8l4.2 4.2-2 2L8 10l-4.2 4.2-2-2L6 8 1.8 3.8z',
  bars: 'M3 2h4v12H3zM9 2h4v12H9z',
  triangle: 'M8 1.5 15 14H1z',
  diamond: 'M8 .8 15.2 8 8 15.2.8 8z',
  square: 'M2 2h12v12H2zm2.4 2.4v7.2h7.2V4.4z',
  octagon: 'M5 1h6l4 4v6l-4 4H5l-4-4V5z',
};

/** A shape in the colour of its tone; the word beside it says the same. */
export function Shape({ shape, tone }) {
  return html`<svg class=${`shape ${tone}`} viewBox="0 0 16 16" aria-hidden="true" focusable="false">
    <path d=${SHAPES[shape]} fill-rule="evenodd" /></svg>`;
}

export function Time({ at, now }) {
  return html`<time dateTime=${dateOf(at)} title=${dateOf(at)}>${ago(at, now)} <span class="clock">${clock(at)}</span></time>`;
}

/** Text in which backticks mark code. */
export function Prose({ text }) {
  return text.split('`').map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));
}

export function Card({ title, id, aside, children, kind = '' }) {
  return html`<section class=${`card ${kind}`} aria-labelledby=${id}>
    <header><h2 id=${id}>${title}</h2>${aside ? html`<div class="aside">${aside}</div>` : null}</header>${children}</section>`;
}
