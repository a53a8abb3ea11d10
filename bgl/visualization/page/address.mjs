// What is chosen on the page, in the address after "#".

/**
 * Write what differs from the page as it opens.
 * @param {Record<string, string>} chosen
 * @param {Record<string, string>} defaults
 */
export function toHash(chosen, defaults) {
  const changed = Object.entries(chosen).filter(([name, value]) => value !== defaults[name]);
  return changed.length ? `#${new URLSearchParams(changed)}` : "";
}

/**
 * @param {string} hash
 * @returns {Record<string, string>}
 */
export function fromHash(hash) {
  return Object.fromEntries(new URLSearchParams(hash.slice(1)));
}

/**
 * Which of several runs an address is about.
 * @param {string} hash
 * @param {number} count
 */
export function chosenRun(hash, count) {
  const number = Number(fromHash(hash).run);
  return Number.isInteger(number) && number >= 0 && number < count ? number : 0;
}
