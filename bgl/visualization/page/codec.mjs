// Between the texts of the payload and what the page computes with.

/**
 * Decode an array from base64.
 * @template T
 * @param {string} text
 * @param {new (buffer: ArrayBuffer) => T} Kind for instance Uint16Array
 * @returns {T}
 */
export function decode(text, Kind) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Kind(bytes.buffer);
}

/**
 * Take the meaning away from the little markup that plotly reads in its texts.
 * @param {unknown} text
 */
export const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

/** @param {number} share */
export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

/**
 * Write rows as CSV (RFC 4180). A text that a spreadsheet would run as a formula gets an apostrophe.
 * @param {(string | number)[][]} rows
 */
export function csv(rows) {
  const cell = (/** @type {string | number} */ value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : `${value}`;
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}
