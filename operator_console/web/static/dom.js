// Makes elements and brings a page up to date in place, so that focus, scrolling and what was typed survive.
// Text is only ever set as text: what strangers wrote can be no markup.

const SVG = "http://www.w3.org/2000/svg";

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

export const h = (tag, attributes, ...children) => made(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => made(document.createElementNS(SVG, tag), attributes, children);
export const icon = (name) => s("svg", { class: "icon", "aria-hidden": "true" }, s("use", { href: `#icon-${name}` }));

/** The children of `old` become those of `fresh`. An element with data-keep is left as it is; data-key names a row. */
export function update(old, fresh) {
  updateChildren(old, fresh);
}

function updateNode(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.hasAttribute("data-keep")) return;
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    const chosenByReader = name === "open" && old.nodeName === "DETAILS";
    if (!fresh.hasAttribute(name) && !chosenByReader) old.removeAttribute(name);
  }
  updateChildren(old, fresh);
}

const keyOf = (node) => node.dataset?.key;
const alike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && keyOf(one) === keyOf(other);

function updateChildren(old, fresh) {
  const wanted = [...fresh.childNodes];
  const keys = new Set(wanted.map(keyOf));
  for (const child of [...old.children]) if (keyOf(child) && !keys.has(keyOf(child))) child.remove();
  const keyed = new Map([...old.children].filter(keyOf).map((child) => [keyOf(child), child]));
  let here = old.firstChild;
  for (const next of wanted) {
    const match = keyOf(next) ? keyed.get(keyOf(next)) : here;
    if (!match || !alike(match, next)) {
      old.insertBefore(next, here);
      continue;
    }
    if (match === here) here = here.nextSibling;
    else old.insertBefore(match, here);
    updateNode(match, next);
  }
  while (here) {
    const after = here.nextSibling;
    here.remove();
    here = after;
  }
}
