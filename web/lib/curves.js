/**
 * The guidance weights of SVDGuidance and the noise levels of SVDSigmas, for the charts.
 *
 * Same formulas as svd_core/diffusion/guidance.py and svd_core/diffusion/schedules.py. A test compares the values.
 */

/** Return one guidance weight per frame; `shape` is linear, triangle or constant. */
export function guidanceWeights(shape, low, high, frames) {
  if (shape === "constant") return Array(frames).fill(high);
  return Array.from({ length: frames }, (_, frame) => {
    const place = frames > 1 ? frame / (frames - 1) : 0;
    const share = shape === "triangle" ? 1 - Math.abs(2 * place - 1) : place;
    return low + share * (high - low);
  });
}

const ALIGN_YOUR_STEPS = [700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002];
const ANIMATE_LCM_LEVELS = 40;

/** Return `steps` falling noise levels without the final 0; `schedule` is one of SVDSigmas. animate_lcm has at most 40. */
export function noiseLevels(schedule, steps, sigmaMin, sigmaMax, rho) {
  if (schedule === "animate_lcm") {
    const stride = Math.floor(ANIMATE_LCM_LEVELS / steps);
    const levels = noiseLevels("karras", ANIMATE_LCM_LEVELS, sigmaMin, sigmaMax, rho);
    return levels.filter((_, index) => index % stride === 0).slice(0, steps);
  }
  const ramp = Array.from({ length: steps }, (_, step) => (steps > 1 ? step / (steps - 1) : 0));
  if (schedule === "karras") {
    const [high, low] = [sigmaMax ** (1 / rho), sigmaMin ** (1 / rho)];
    return ramp.map((place) => (high + place * (low - high)) ** rho);
  }
  const [top, bottom] = [Math.log(sigmaMax), Math.log(sigmaMin)];
  if (schedule === "exponential") return ramp.map((place) => Math.exp(top + place * (bottom - top)));
  const knots = ALIGN_YOUR_STEPS.map(Math.log);
  const [first, last] = [knots[0], knots[knots.length - 1]];
  return Array.from({ length: steps }, (_, step) => {
    const place = (step * (knots.length - 1)) / steps;
    const left = Math.min(Math.floor(place), knots.length - 2);
    const level = knots[left] + (place - left) * (knots[left + 1] - knots[left]);
    return Math.exp(bottom + ((level - last) / (first - last)) * (top - bottom));
  });
}
