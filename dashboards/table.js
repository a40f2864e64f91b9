// Table of all trials. Only visible rows are in the document, so 10,000 rows cost no more than 50.
"use strict";

const ROW_PX = 33, SPARE = 12;

/* columns: [{key, title, number, descending, class, value(i), cell(i)}]; options: n; keep(i): filter; active(i); marked(i): class; open(i). */
class Table {
  constructor(root, columns, options) {
    Object.assign(this, options, { root, columns, order: [], by: null, descending: false });
    this.head = make("tr", { "aria-rowindex": 1 });
    columns.forEach((column, k) => {
      const button = make("button", { type: "button" }, column.title);
      button.addEventListener("click", () => this.sort(k));
      this.head.append(make("th", { scope: "col", class: column.number ? "number" : null }, button));
    });
    this.body = make("tbody");
    this.table = make("table", { "aria-label": "All trials" }, make("thead", {}, this.head), this.body);
    root.append(this.table);
    this.redraw = frame(() => this.draw());
    root.addEventListener("scroll", this.redraw);
    new ResizeObserver(this.redraw).observe(root);
  }

  sort(k, descending = this.by === k ? !this.descending : Boolean(this.columns[k].descending)) {
    Object.assign(this, { by: k, descending });
    [...this.head.children].forEach((th, j) => (j === k ? th.setAttribute("aria-sort", descending ? "descending" : "ascending") : th.removeAttribute("aria-sort")));
    this.update();
  }

  update() {
    const { value } = this.columns[this.by];
    const keys = new Array(this.n);
    this.order = [];
    for (let i = 0; i < this.n; i++) {
      if (!this.keep(i)) continue;
      keys[i] = value(i);
      this.order.push(i);
    }
    const sign = this.descending ? -1 : 1;
    this.order.sort((a, b) => { // rows without a value come last in both directions
      const [x, y] = [keys[a], keys[b]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0) || a - b;
    });
    this.table.setAttribute("aria-rowcount", this.order.length + 1);
    this.redraw();
  }

  draw() {
    const from = Math.max(0, Math.floor(this.root.scrollTop / ROW_PX) - SPARE);
    const to = Math.min(this.order.length, from + Math.ceil(this.root.clientHeight / ROW_PX) + 2 * SPARE);
    const seen = [from, this.order.length, ...this.order.slice(from, to)].join();
    if (seen === this.seen) return this.rows.forEach((row, k) => (row.className = this.looks(this.order[from + k]))); // cells do not change
    this.seen = seen;
    const focused = this.body.contains(document.activeElement) ? document.activeElement.dataset.trial : undefined;
    const gap = (rows) => {
      const cell = make("td", { colspan: this.columns.length });
      cell.style.height = `${rows * ROW_PX}px`;
      return make("tr", { class: "gap", "aria-hidden": "true" }, cell);
    };
    this.rows = this.order.slice(from, to).map((i, k) => this.row(i, from + k));
    this.body.replaceChildren(...(from ? [gap(from)] : []), ...this.rows, ...(to < this.order.length ? [gap(this.order.length - to)] : []));
    if (focused !== undefined) this.body.querySelector(`[data-trial="${focused}"]`)?.focus({ preventScroll: true });
  }

  looks(i) {
    return `${this.active(i) ? "" : "dim "}${this.marked(i)}`;
  }

  row(i, place) {
    const row = make("tr", { "aria-rowindex": place + 2, class: this.looks(i) });
    for (const column of this.columns) {
      const shown = column.cell(i);
      row.append(make("td", { class: [column.number && "number", column.class].filter(Boolean).join(" ") || null, title: column.class === "config" ? shown : null }, shown));
    }
    row.addEventListener("click", () => this.open(i));
    return row;
  }
}

/* CSV by RFC 4180. */
function csv(header, rows) {
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    if (/^[=+@\t\r-]/.test(text) && Number.isNaN(Number(text))) text = "'" + text; // a spreadsheet would evaluate it
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/* Copy to the clipboard if the page may use it, else by execCommand; if both fail, select the text for Ctrl+C. */
async function copy(field, said) {
  field.focus();
  field.select();
  let done = false;
  try {
    await navigator.clipboard.writeText(field.value);
    done = true;
  } catch {
    try {
      done = document.execCommand("copy");
    } catch {}
  }
  said.textContent = done ? "copied" : "selected: press Ctrl+C";
}
