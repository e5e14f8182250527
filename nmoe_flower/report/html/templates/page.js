// Sorting, filtering, reading values, choosing the axis. Without it the page shows everything.
"use strict";
(() => {
  const root = document.documentElement;
  const all = (query, inside = document) => [...inside.querySelectorAll(query)];
  root.classList.add("js");

  // Light or dark: what the system says, until the reader says otherwise.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.querySelector(".theme");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = dark() ? "Light theme" : "Dark theme"; };
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  name();

  // Tables. What is missing stays at the end, whichever way is sorted.
  const missing = new Set(["", "–", "-"]);
  const keyOf = (cell, words) => {
    const own = cell.dataset.v ?? (cell.querySelector("b") || cell).firstChild?.textContent ?? "";
    if (missing.has(own.trim())) return null;
    if (words) return own;
    const number = Number(own.replace(/,/g, "").replace("−", "-"));
    return Number.isNaN(number) ? null : number;
  };
  const letters = new Intl.Collator("en", { numeric: true });
  for (const table of all("table")) {
    const heads = all("thead tr:last-child th", table);
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const places = new Map(rows.map((row, place) => [row, place]));
    const said = document.getElementById(`${table.id}-said`);
    heads.forEach((head, place) => {
      const words = head.classList.contains("w");
      const button = head.querySelector("button");
      const called = button.getAttribute("aria-label") || head.textContent.trim();
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const up = before === "none" ? words : before === "descending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keys = new Map(rows.map((row) => [row, keyOf(row.cells[place], words)]));
        rows.sort((one, two) => {
          const [a, b] = [keys.get(one), keys.get(two)];
          if (a === null || b === null) return (a === null) - (b === null) || places.get(one) - places.get(two);
          const order = words ? letters.compare(a, b) : a - b;
          return (up ? order : -order) || places.get(one) - places.get(two);
        });
        body.append(...rows);
        said.textContent = `sorted by ${called}, ${up ? "ascending" : "descending"}`;
      });
    });
    const filter = document.getElementById(`${table.id}-filter`);
    if (filter) filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      said.textContent = `${shown} of ${rows.length} rows`;
    });
  }

  // The horizontal axis of a group of charts.
  for (const group of all(".axes")) {
    const buttons = all("button", group);
    const panels = all(".panel", group.parentElement);
    buttons.forEach((button, place) => button.addEventListener("click", () => {
      buttons.forEach((other, at) => other.setAttribute("aria-pressed", String(at === place)));
      panels.forEach((panel, at) => panel.classList.toggle("on", at === place));
    }));
  }

  // Where a pointer is, in the units of the drawing.
  const inside = (svg, event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [point.x, point.y];
  };
  const follow = (svg, show, clear) => {
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("blur", clear);
  };

  // Heat maps: the number under the pointer, or where the arrow keys are.
  for (const svg of all("svg.map")) {
    const { values, cols, rows, left, top, cell, say, share } = svg.dataset;
    const numbers = values.split(" ").map(Number);
    const [across, down] = [Number(cols), Number(rows)];
    const names = svg.dataset.names ? JSON.parse(svg.dataset.names) : null;
    const [x0, y0, size] = [Number(left), Number(top), Number(cell)];
    const read = svg.closest("figure").querySelector(".read");
    const whole = read.textContent;
    const here = svg.querySelector(".here");
    let [r, c] = [0, 0];
    const show = () => {
      const sum = numbers.slice(r * across, (r + 1) * across).reduce((a, b) => a + b, 0);
      const value = numbers[r * across + c];
      const words = {
        r: names ? names[0][r] : r, c: names ? names[1][c] : c, s: sum.toLocaleString("en"),
        v: share ? `${(value / 100).toFixed(value % 10 ? 2 : 1)} %` : value.toLocaleString("en"),
      };
      read.textContent = say.replace(/\{([rcsv])\}/g, (_, key) => words[key]);
      here.setAttribute("x", x0 + c * size);
      here.setAttribute("y", y0 + r * size);
      here.style.visibility = "visible";
    };
    const clear = () => { read.textContent = whole; here.style.visibility = "hidden"; };
    follow(svg, (event) => {
      const [x, y] = inside(svg, event);
      const [column, row] = [Math.floor((x - x0) / size), Math.floor((y - y0) / size)];
      if (row < 0 || row >= down || column < 0 || column >= across) return clear();
      [r, c] = [row, column];
      show();
    }, clear);
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(); });
    svg.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -across], End: [0, across] };
      const move = moves[event.key];
      if (event.key === "Escape") return clear();
      if (!move) return;
      event.preventDefault();
      r = Math.min(Math.max(r + move[0], 0), down - 1);
      c = Math.min(Math.max(c + move[1], 0), across - 1);
      show();
    });
  }

  // Line charts: every line's value at the place that is pointed at.
  for (const svg of all("svg.lines")) {
    const figure = svg.closest("figure");
    const read = figure.querySelector(".read");
    const shown = all(".key b", figure);
    const last = shown.map((element) => element.textContent);
    const whole = read.textContent;
    const lines = all("g[data-x]", svg).map((line) => ({
      xs: line.dataset.x.split(" ").map(Number), ys: line.dataset.y.split(" ").map(Number),
    }));
    const stops = [...new Set(lines.flatMap((line) => line.xs))].sort((a, b) => a - b);
    const [left, right, start, end] = ["left", "right", "start", "end"].map((key) => Number(svg.dataset[key]));
    const names = new Map(svg.dataset.stops ? JSON.parse(svg.dataset.stops) : []);
    const cross = svg.querySelector(".cross");
    const nearest = (values, x) => values.reduce((best, value, at) => Math.abs(value - x) < Math.abs(values[best] - x) ? at : best, 0);
    let at = stops.length - 1;
    const show = () => {
      const x = stops[at];
      lines.forEach((line, place) => {
        const beyond = names.size ? !line.xs.includes(x) : x < line.xs[0] || x > line.xs[line.xs.length - 1];
        if (shown[place]) shown[place].textContent = beyond ? "–" : line.ys[nearest(line.xs, x)].toFixed(3);
      });
      const across = left + (right - left) * (x - start) / (end - start);
      cross.setAttribute("x1", across);
      cross.setAttribute("x2", across);
      cross.style.visibility = "visible";
      const number = names.get(x) ?? x.toLocaleString("en", { maximumSignificantDigits: 4 });
      const { title, unit } = svg.dataset;
      read.textContent = unit ? `at ${number} ${unit} (${title})` : `at ${title} ${number}`;
    };
    const clear = () => {
      shown.forEach((element, place) => { element.textContent = last[place]; });
      read.textContent = whole;
      cross.style.visibility = "hidden";
    };
    follow(svg, (event) => {
      const x = start + (inside(svg, event)[0] - left) / (right - left) * (end - start);
      at = nearest(stops, x);
      show();
    }, clear);
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(); });
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -stops.length, End: stops.length }[event.key];
      if (event.key === "Escape") return clear();
      if (!move) return;
      event.preventDefault();
      at = Math.min(Math.max(at + move, 0), stops.length - 1);
      show();
    });
  }

  for (const button of all(".copy")) button.addEventListener("click", async () => {
    const text = button.closest(".command").querySelector("code");
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected: copy with the keyboard";
    }
  });

  // On paper there is nothing to open.
  addEventListener("beforeprint", () => all("details:not([open])").forEach((fold) => {
    fold.open = true;
    fold.dataset.shut = "";
  }));
  addEventListener("afterprint", () => all("details[data-shut]").forEach((fold) => {
    fold.open = false;
    delete fold.dataset.shut;
  }));
})();
