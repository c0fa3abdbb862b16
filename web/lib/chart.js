/** A small line chart as SVG, sharp at any zoom. */

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [260, 110, 38, 8, 8, 18];

/** Create an empty chart that fills the available width. `label` is its text for screen readers. */
export function newChart(label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  svg.style.cssText = "width:100%;height:100%;display:block;font:9px sans-serif";
  return svg;
}

/**
 * Draw `values` from left to right as dots on a line.
 *
 * scale  "linear" or "log"
 * ticks  values on the vertical axis, each with a horizontal line
 * across name of the horizontal axis: frame, step
 */
export function drawChart(svg, values, { scale, ticks, across }) {
  const levels = [...values, ...ticks].map((value) => height(value, scale));
  const [low, high] = [Math.min(...levels), Math.max(...levels)];
  const x = (index) => LEFT + (values.length > 1 ? index / (values.length - 1) : 0.5) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (high > low ? (high - height(value, scale)) / (high - low) : 0.5) * (HEIGHT - TOP - BOTTOM);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  const radius = values.length > 60 ? 0 : 1.8;
  svg.replaceChildren(
    ...ticks.flatMap((tick) => [line(LEFT, WIDTH - RIGHT, y(tick)), text(LEFT - 4, y(tick) + 3, short(tick), "end")]),
    text(LEFT, HEIGHT - 5, `${across} 1`, "start"),
    text(WIDTH - RIGHT, HEIGHT - 5, `${values.length}`, "end"),
    shape("polyline", { points: points.join(" "), fill: "none", stroke: "currentColor", "stroke-width": 1.5 }),
    ...(radius ? values.map((value, index) => dot(x(index), y(value), radius, `${across} ${index + 1}: ${short(value)}`)) : []),
  );
}

/** Show a text instead of a chart. */
export function drawText(svg, message) {
  svg.replaceChildren(text(WIDTH / 2, HEIGHT / 2, message, "middle"));
}

function height(value, scale) {
  return scale === "log" ? Math.log10(value) : value;
}

/** Format a number with three significant digits. */
export function short(value) {
  return String(Number(value.toPrecision(3)));
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function line(from, to, y) {
  return shape("line", { x1: from, x2: to, y1: y, y2: y, stroke: "currentColor", "stroke-opacity": 0.2 });
}

function text(x, y, content, anchor) {
  const element = shape("text", { x, y, "text-anchor": anchor, fill: "currentColor", "fill-opacity": 0.7 });
  element.textContent = content;
  return element;
}

function dot(x, y, radius, title) {
  const element = shape("circle", { cx: x, cy: y, r: radius, fill: "currentColor" });
  const tooltip = document.createElementNS(SVG, "title");
  tooltip.textContent = title;
  element.append(tooltip);
  return element;
}
