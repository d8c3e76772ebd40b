"use strict";

// Everything from the run is set as `textContent`, so the browser reads no text as markup.
const PAGE_SIZE = 50;
const CELL_CHARACTERS = 220;
const TEXTS_IN_CELL = 3;
const SEARCH_DELAY = 150;
const CELL_CLASSES = { number: "n", choice: "choice", text: "text", texts: "text" };

function create(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function shorten(text, limit) {
  return text.length > limit ? text.slice(0, limit) + " …" : text;
}

function formatNumber(value, isWhole) {
  if (value === null) return "–";
  if (isWhole) return String(value);
  return Math.abs(value) >= 0.1 || value === 0 ? value.toFixed(3) : value.toPrecision(3);
}

function collectText(cell) {
  if (Array.isArray(cell)) return cell.map(collectText).join("\n");
  return typeof cell === "string" ? cell : "";
}

function fillCell(element, cell, { kind, isWhole }) {
  if (kind === "number") {
    element.textContent = formatNumber(cell, isWhole);
  } else if (kind === "texts") {
    for (const [text, label] of (cell || []).slice(0, TEXTS_IN_CELL)) {
      const line = element.appendChild(create("div", "value short"));
      line.dir = "auto";
      line.append(create("span", "", shorten(text, CELL_CHARACTERS / 2)), create("span", "label", label));
    }
    const more = (cell || []).length - TEXTS_IN_CELL;
    if (more > 0) element.appendChild(create("div", "label", `and ${more} more`));
  } else {
    const value = element.appendChild(create("div", "value short", shorten(cell === null ? "–" : cell, CELL_CHARACTERS)));
    value.dir = "auto";
  }
}

function fillDetail(element, cell, { kind, isWhole }) {
  if (kind !== "texts") {
    const text = kind === "number" ? formatNumber(cell, isWhole) : cell === null ? "–" : cell;
    element.appendChild(create("div", "value full", text)).dir = "auto";
    return;
  }
  for (const [text, label] of cell || []) {
    if (label) element.appendChild(create("div", "label", label));
    element.appendChild(create("div", "value full", text === "" ? "(empty)" : text)).dir = "auto";
  }
}

class RowTable {
  constructor(element, data) {
    this.element = element;
    this.columns = data.columns.map(([name, kind, place], index) => ({ name, kind, place, index }));
    this.rows = data.rows;
    for (const column of this.columns) {
      column.isWhole = this.rows.every((row) => row[column.index] === null || Number.isInteger(row[column.index]));
    }
    this.found = this.rows;
    this.texts = null;
    this.page = 0;
    this.sorted = null;
    this.choices = new Map();
    const options = this.columns.filter((column) => column.place === "option");
    this.selected = options.length > 2 ? [options[0], options[options.length - 1]] : options;
    this.buildControls(options);
    this.table = element.appendChild(create("div", "wide")).appendChild(create("table", "rows"));
    this.pager = element.appendChild(create("div", "pager"));
    this.show();
  }

  buildControls(options) {
    const controls = this.element.appendChild(create("div", "controls"));
    const search = controls.appendChild(create("input"));
    search.type = "search";
    search.placeholder = "Search in all texts";
    search.setAttribute("aria-label", "Search in all texts");
    let timer;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        this.query = search.value.toLowerCase();
        this.find();
      }, SEARCH_DELAY);
    });
    for (const column of this.columns.filter((column) => column.kind === "choice")) {
      this.addSelect(controls, column.name, this.countChoices(column), (value) => {
        if (value === "") this.choices.delete(column.index);
        else this.choices.set(column.index, value);
        this.find();
      });
    }
    if (options.length > 2) {
      const names = options.map((column) => [column.name, column.name]);
      this.selected.forEach((column, side) => {
        const select = this.addSelect(controls, side === 0 ? "left" : "right", names, (value) => {
          this.selected[side] = options.find((option) => option.name === value);
          this.show();
        });
        select.value = column.name;
      });
    }
  }

  addSelect(controls, name, choices, change) {
    const label = controls.appendChild(create("label", "", `${name} `));
    const select = label.appendChild(create("select"));
    for (const [value, text] of choices) select.appendChild(create("option", "", text)).value = value;
    select.addEventListener("change", () => change(select.value));
    return select;
  }

  countChoices(column) {
    const counts = new Map();
    for (const row of this.rows) counts.set(row[column.index], (counts.get(row[column.index]) || 0) + 1);
    const sorted = [...counts].filter(([value]) => value !== null).sort((a, b) => b[1] - a[1]);
    return [["", "all"], ...sorted.map(([value, count]) => [value, `${value} (${count})`])];
  }

  find() {
    const query = this.query || "";
    if (query && this.texts === null) this.texts = new Map(this.rows.map((row) => [row, collectText(row).toLowerCase()]));
    this.found = this.rows.filter((row) => {
      for (const [index, value] of this.choices) if (row[index] !== value) return false;
      return !query || this.texts.get(row).includes(query);
    });
    this.sort();
  }

  sort() {
    if (this.sorted !== null) {
      const { index, kind, isDescending } = this.sorted;
      const key = kind === "texts" ? collectText : (cell) => cell;
      const compare = (a, b) => {
        const [first, second] = [key(a[index]), key(b[index])];
        if (first === second) return 0;
        if (first === null) return 1;
        if (second === null) return -1;
        return (first < second ? -1 : 1) * (isDescending ? -1 : 1);
      };
      this.found = [...this.found].sort(compare);
    }
    this.page = 0;
    this.show();
  }

  listVisible() {
    return [...this.columns.filter((column) => column.place === "cell"), ...this.selected];
  }

  show() {
    const columns = this.listVisible();
    const head = create("tr");
    head.appendChild(create("th", "opener"));
    for (const column of columns) head.appendChild(this.buildHeader(column));
    const body = create("tbody");
    const start = this.page * PAGE_SIZE;
    for (const row of this.found.slice(start, start + PAGE_SIZE)) this.addRow(body, row, columns);
    const top = create("thead");
    top.appendChild(head);
    this.table.replaceChildren(top, body);
    this.showPager(start);
  }

  buildHeader(column) {
    const header = create("th", CELL_CLASSES[column.kind]);
    const isSorted = this.sorted !== null && this.sorted.index === column.index;
    const arrow = isSorted ? (this.sorted.isDescending ? " ↓" : " ↑") : "";
    const button = header.appendChild(create("button", "sort", column.name + arrow));
    button.title = "Sort";
    button.addEventListener("click", () => {
      const isDescending = isSorted ? !this.sorted.isDescending : column.kind === "number";
      this.sorted = { index: column.index, kind: column.kind, isDescending };
      this.sort();
    });
    return header;
  }

  addRow(body, row, columns) {
    const line = body.appendChild(create("tr"));
    const opener = line.appendChild(create("td", "opener")).appendChild(create("button", "open", "▸"));
    opener.setAttribute("aria-expanded", "false");
    opener.setAttribute("aria-label", "Show the whole row");
    for (const column of columns) {
      fillCell(line.appendChild(create("td", CELL_CLASSES[column.kind])), row[column.index], column);
    }
    let detail = null;
    opener.addEventListener("click", () => {
      if (detail !== null) {
        detail.remove();
        detail = null;
      } else {
        detail = this.buildDetail(row, columns.length + 1);
        line.after(detail);
      }
      opener.textContent = detail === null ? "▸" : "▾";
      opener.setAttribute("aria-expanded", String(detail !== null));
    });
  }

  buildDetail(row, width) {
    const line = create("tr", "detail");
    const cell = line.appendChild(create("td"));
    cell.colSpan = width;
    const list = cell.appendChild(create("dl"));
    for (const column of this.columns) {
      list.appendChild(create("dt", "", column.name));
      fillDetail(list.appendChild(create("dd")), row[column.index], column);
    }
    return line;
  }

  showPager(start) {
    const end = Math.min(start + PAGE_SIZE, this.found.length);
    const total = this.rows.length.toLocaleString("en");
    const found = this.found.length.toLocaleString("en");
    const range = this.found.length ? `rows ${(start + 1).toLocaleString("en")}–${end.toLocaleString("en")} of ${found}` : "no row";
    const text = this.found.length < this.rows.length ? `${range} found in ${total}` : range;
    const buttons = [["first", 0], ["previous", this.page - 1], ["next", this.page + 1], ["last", Math.ceil(this.found.length / PAGE_SIZE) - 1]];
    this.pager.replaceChildren(create("span", "count", text));
    for (const [name, page] of buttons) {
      const button = this.pager.appendChild(create("button", name, name));
      button.disabled = page === this.page || page < 0 || page * PAGE_SIZE >= this.found.length;
      button.addEventListener("click", () => {
        this.page = page;
        this.show();
      });
    }
  }
}

for (const element of document.querySelectorAll("[data-rows]")) {
  const source = document.getElementById(element.dataset.rows);
  new RowTable(element, JSON.parse(source.textContent));
}
