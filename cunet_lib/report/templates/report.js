"use strict";

// Tables: ascending, descending, and back to the order that the study gave.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });

  const compare = (column, numeric) => (left, right) => {
    const [a, b] = [left.cells[column], right.cells[column]];
    return numeric
      ? Number(a.dataset.key) - Number(b.dataset.key) || 0 // infinity minus itself is no number
      : collator.compare(a.textContent, b.textContent);
  };
  const sort = (column, direction) => {
    const numeric = headings[column].hasAttribute("data-number");
    // Cells without a number come last either way.
    const known = given.filter((row) => !numeric || row.cells[column].dataset.key);
    const unknown = given.filter((row) => !known.includes(row));
    const sign = direction === "descending" ? -1 : 1;
    const order = compare(column, numeric);
    if (direction !== "none") known.sort((left, right) => sign * order(left, right));
    body.append(...(direction === "none" ? given : [...known, ...unknown]));
    headings.forEach((heading, place) =>
      heading.setAttribute("aria-sort", place === column ? direction : "none"));
  };
  const after = { none: "ascending", ascending: "descending", descending: "none" };
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => sort(column, after[heading.getAttribute("aria-sort")]));
  });
}

// Players: one at a time; within a song the next goes on where the last one was.
const players = [...document.querySelectorAll("audio")];
document.addEventListener("play", ({ target }) => {
  for (const other of players) {
    if (other === target || other.paused) continue;
    other.pause();
    if (other.closest(".song") !== target.closest(".song")) continue;
    const place = other.currentTime;
    const seek = () => { target.currentTime = place; };
    // Chromium breaks a player, now and then, that is to seek before it has decoded anything.
    if (target.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA) seek();
    else target.addEventListener("canplay", seek, { once: true });
  }
}, true);

// Paper has no way to open what is folded.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});

// A link to something folded away opens it.
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let part = target && target.closest("details"); part; part = part.parentElement.closest("details")) {
    part.open = true;
  }
};
addEventListener("hashchange", reveal);
reveal();
