/** Which nodes a loader serves. Inside one graph: a subgraph's inside is not looked into. */

const LOADER = "SVDCheckpointLoader";

/**
 * The nodes that a loader's model, CLIP tower or VAE reaches, and those that feed them.
 *
 * Another loader, and what it alone feeds, are not among them.
 */
export function servedBy(loader) {
  const served = reach([loader], targets);
  return reach([...served], (node) => sources(node).filter((source) => source.comfyClass !== LOADER));
}

/** The loaders that serve `node`. */
export function loadersOf(node) {
  const loaders = (node.graph?.nodes ?? []).filter((other) => other.comfyClass === LOADER);
  return loaders.filter((loader) => servedBy(loader).has(node));
}

/** `start` and all that `next` leads to, over any number of wires. */
function reach(start, next) {
  const [met, waiting] = [new Set(start), [...start]];
  while (waiting.length) {
    for (const other of next(waiting.pop())) {
      if (met.has(other)) continue;
      met.add(other);
      waiting.push(other);
    }
  }
  return met;
}

function targets(node) {
  const wires = (node.outputs ?? []).flatMap((output) => output.links ?? []);
  return ends(node, wires, "target_id");
}

function sources(node) {
  return ends(node, (node.inputs ?? []).map((input) => input.link), "origin_id");
}

function ends({ graph }, wires, end) {
  if (!graph) return [];
  return wires
    .map((id) => (id == null ? null : graph.getLink?.(id) ?? graph.links[id]))
    .map((link) => link && graph.getNodeById(link[end]))
    .filter(Boolean);
}
