// The interruption of each recovery over time, drawn by uPlot on a scale that shows milliseconds and minutes.

import { Component, createRef } from './preact.js';
import { Card, html } from './html.js';
import { clock, plural, seconds } from './words.js';

const HEIGHT = 170;

export class Chart extends Component {
  box = createRef();
  shown = '';

  componentDidMount() {
    this.draw();
    this.onSize = new ResizeObserver(() => this.resize());
    if (this.box.current) this.onSize.observe(this.box.current);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw(true));
  }

  componentDidUpdate() {
    if (this.box.current) this.onSize?.observe(this.box.current);
    this.draw();
  }

  resize() {
    const width = this.box.current?.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  draw(anew = false) {
    const box = this.box.current;
    if (!box) return;
    const points = pointsOf(this.props.model);
    const shown = `${points.length}/${points.at(-1)?.endedAt}`;
    if (shown === this.shown && !anew) return;
    this.shown = shown;
    const data = [points.map((p) => p.endedAt), points.map((p) => Math.max(0.001, p.interruption))];
    if (this.plot && !anew) return this.plot.setData(data);
    this.plot?.destroy();
    this.plot = new uPlot(optionsOf(box), data, box);
  }

  render({ model }) {
    const points = pointsOf(model);
    const sorted = points.map((p) => p.interruption).sort((a, b) => a - b);
    const label = points.length ? `${plural(points.length, 'recovery').replace('recoverys', 'recoveries')}: median ${seconds(sorted[Math.floor(sorted.length / 2)])}, longest ${seconds(sorted.at(-1))}` : '';
    return html`<${Card} title="Interruption per recovery" id="chart-title" aside=${label || null}>
      ${points.length ? html`<div class="chart" ref=${this.box} role="img" aria-label=${`Interruptions over time. ${label}. The list of incidents has each one.`}></div>`
        : html`<p class="empty">No recovery yet. How long each one interrupts answers is drawn here.</p>`}</${Card}>`;
  }
}

function pointsOf(model) {
  return model.incidents.filter((i) => i.interruption !== null && i.endedAt !== null);
}

function optionsOf(box) {
  const style = getComputedStyle(box);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour('--quiet'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '12px system-ui' };
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: true, range: padded }, y: { distr: 3, range: (_, low, high) => [10 ** Math.floor(Math.log10(low ?? 0.01) - 0.01), 10 ** Math.ceil(Math.log10(high ?? 1) + 0.01)] } },
    axes: [{ ...axis, values: (_, at) => at.map(clock), space: 90, size: 32 }, { ...axis, size: 60, values: (_, s) => s.map((v) => (v === null ? '' : seconds(v))) }],
    series: [{}, { label: 'interruption', stroke: colour('--accent'), paths: () => null, points: { show: true, size: 9, fill: colour('--accent') } }],
  };
}

/** Pad the range of the points themselves: uPlot makes a range of a day around a single one. */
export function padded(plot) {
  const [from, to] = [plot.data[0][0], plot.data[0].at(-1)];
  const margin = Math.max(5, (to - from) * 0.05);
  return [from - margin, to + margin];
}
