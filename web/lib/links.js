/** Find the nodes connected to a loader. Only within one graph: subgraphs are not entered. */

const LOADER = "SVDCheckpointLoader";

/**
 * Return the nodes that depend on a loader's outputs, and all nodes that these depend on.
 *
 * Other loaders, and nodes that depend only on them, are excluded.
 */
export function connectedNodes(loader) {
  const dependents = reach([loader], targets);
  return reach([...dependents], (node) => sources(node).filter((source) => source.comfyClass !== LOADER));
}

/** Return the loaders that `node` is connected to. */
export function loadersOf(node) {
  const loaders = (node.graph?.nodes ?? []).filter((other) => other.comfyClass === LOADER);
  return loaders.filter((loader) => connectedNodes(loader).has(node));
}

/** Return the node that an input of `node` is linked to, or undefined. */
export function sourceOf(node, name) {
  const input = node.inputs?.find((each) => each.name === name);
  return ends(node, [input?.link], "origin_id")[0];
}

/** Return the nodes `start` and all that are reachable from them by `next`. */
function reach(start, next) {
  const [reached, pending] = [new Set(start), [...start]];
  while (pending.length) {
    for (const other of next(pending.pop())) {
      if (reached.has(other)) continue;
      reached.add(other);
      pending.push(other);
    }
  }
  return reached;
}

/** Return the nodes that the outputs of `node` are linked to. */
export function targets(node) {
  const links = (node.outputs ?? []).flatMap((output) => output.links ?? []);
  return ends(node, links, "target_id");
}

function sources(node) {
  return ends(node, (node.inputs ?? []).map((input) => input.link), "origin_id");
}

function ends({ graph }, links, end) {
  if (!graph) return [];
  return links
    .map((id) => (id == null ? null : graph.getLink?.(id) ?? graph.links[id]))
    .map((link) => link && graph.getNodeById(link[end]))
    .filter(Boolean);
}
