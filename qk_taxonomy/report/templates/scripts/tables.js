// Tables of many rows: sorted, searched and cut into pages; only the rows of a page are elements.

const PAGE_ROWS = 20;

/**
 * A table of `n` rows in an element of the page.
 *
 * columns: {title, text(row), number: values by row | words: {data, values}, kind: a class of the
 * style sheet}; those with
 * numbers are sorted by them, those with words alphabetically, those with neither not at all.
 */
class PagedTable {
  constructor(host, n, columns) {
    this.host = host;
    this.columns = columns;
    this.all = Uint32Array.from({ length: n }, (_, row) => row);
    this.rows = this.all;
    this.page = 0;
    this.sorted = null;
    this.build();
  }

  build() {
    const name = this.host.dataset.caption;
    this.caption = element("caption");
    this.body = element("tbody");
    this.heads = this.columns.map((column, i) => {
      const content =
        column.number || column.words
          ? element("button", { type: "button", click: () => this.sort(i) }, column.title)
          : column.title;
      return element("th", { scope: "col", class: column.number ? "number" : null }, content);
    });
    const table = element(
      "table",
      {},
      this.caption,
      element("thead", {}, element("tr", {}, ...this.heads)),
      this.body,
    );
    this.status = element("span", { role: "status" });
    const turn = (label, text, to) =>
      element(
        "button",
        { type: "button", "aria-label": label, click: () => this.turn(to()) },
        text,
      );
    this.buttons = [
      turn("First page", "«", () => 0),
      turn("Page before", "‹", () => this.page - 1),
      turn("Next page", "›", () => this.page + 1),
      turn("Last page", "»", () => this.lastPage),
    ];
    const pages = element(
      "nav",
      { class: "pages", "aria-label": `Pages: ${name}` },
      ...this.buttons.slice(0, 2),
      this.status,
      ...this.buttons.slice(2),
    );
    const scrolled = element(
      "div",
      { class: "scrolled", role: "region", tabindex: "0", "aria-label": `Table: ${name}` },
      table,
    );
    this.host.replaceChildren(scrolled, pages);
    this.show();
  }

  get lastPage() {
    return Math.max(0, Math.ceil(this.rows.length / PAGE_ROWS) - 1);
  }

  turn(page) {
    this.page = Math.min(Math.max(page, 0), this.lastPage);
    this.show();
  }

  /** Only the rows that pass; they keep the order in which the table is sorted. */
  filter(passes) {
    this.passes = passes;
    this.arrange();
  }

  /** Upwards, at the second call downwards, at the third in the order of the file. */
  sort(index) {
    const before = this.sorted?.index === index ? this.sorted.direction : 0;
    this.sorted = before === -1 ? null : { index, direction: before === 0 ? 1 : -1 };
    this.heads.forEach((head, i) => {
      if (this.sorted?.index !== i) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.sorted.direction === 1 ? "ascending" : "descending");
    });
    this.arrange();
  }

  arrange() {
    const rows = this.passes ? this.all.filter(this.passes) : this.all.slice();
    if (this.sorted) {
      const keys = sortKeys(this.columns[this.sorted.index]);
      const { direction } = this.sorted;
      // What has no value comes last in either direction; ties keep the order of the file.
      rows.sort((a, b) => {
        const [x, y] = [keys[a], keys[b]];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
        return direction * (x - y) || a - b;
      });
    }
    this.rows = rows;
    this.page = 0;
    this.show();
  }

  show() {
    const from = this.page * PAGE_ROWS;
    const rows = this.rows.subarray(from, from + PAGE_ROWS);
    this.body.replaceChildren(...Array.from(rows, (row) => this.rowElement(row)));
    const range = rows.length ? `${from + 1}–${from + rows.length} of ` : "";
    const total =
      this.all.length === this.rows.length
        ? ""
        : `, of ${this.all.length.toLocaleString("en")} in all`;
    const found = this.rows.length.toLocaleString("en");
    this.caption.textContent = `${this.host.dataset.caption}: rows ${range}${found}${total}`;
    this.status.textContent = `page ${this.page + 1} of ${this.lastPage + 1}`;
    this.buttons.forEach((button, i) => {
      button.disabled = i < 2 ? this.page === 0 : this.page === this.lastPage;
    });
  }

  rowElement(row) {
    return element(
      "tr",
      {},
      ...this.columns.map((column) => {
        const kinds = [column.number ? "number" : "", column.kind ?? ""].filter(Boolean);
        return element("td", { class: kinds.join(" ") || null }, column.text(row));
      }),
    );
  }
}

function sortKeys({ number, words }) {
  if (number) return number;
  const order = words.values.map((_, code) => code);
  order.sort((a, b) => words.values[a].localeCompare(words.values[b], "en", { numeric: true }));
  const ranks = new Float64Array(order.length);
  order.forEach((code, rank) => {
    ranks[code] = words.values[code] === "" ? NaN : rank;
  });
  return Float64Array.from(words.data, (code) => ranks[code]);
}

/** Whether a row has every word of a search in one of its columns of texts. */
function searcher(search, columns) {
  const terms = search.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = terms.map((term) =>
    columns.map(({ data, values }) => ({
      data,
      hit: Uint8Array.from(values, (value) => Number(value.toLowerCase().includes(term))),
    })),
  );
  return (row) => hits.every((columnsHit) => columnsHit.some(({ data, hit }) => hit[data[row]]));
}

function wordsColumn(title, words, more = {}) {
  return { title, words, text: (row) => words.values[words.data[row]], ...more };
}

function numberColumn(title, number, n = 4) {
  return { title, number, text: (row) => digits(number[row], n) };
}

function pText(p) {
  return p < 1e-300 ? "< 1e−300" : digits(p, 2);
}

function intervalText(low, high) {
  if (Number.isNaN(low) && Number.isNaN(high)) return "–";
  return `[${digits(low, 3)}, ${digits(high, 3)}]`;
}

/** What was counted, and how many of it. */
function countText(n, unit, row) {
  return Number.isNaN(n) ? "–" : `${digits(n, 9)} ${unit.values[unit.data[row]]}`.trim();
}

/** The table of tests, with its search and filters. */
async function openTests() {
  const host = document.getElementById("test-table");
  if (!host) return;
  const { meta, columns: c } = await unpacked("packed-tests");
  const words = [
    "hypothesis",
    "family",
    "model",
    "against",
    "stack",
    "statistic",
    "measure",
    "method",
    "note",
  ].map((name) => c[name]);
  const labels = { ...c.statistic, values: c.statistic.values.map(statisticLabel) };
  const columns = [
    wordsColumn("hypothesis", c.hypothesis),
    wordsColumn("model", namesOf(c.family, c.model), { kind: "names" }),
    wordsColumn("against", c.against),
    wordsColumn("stack", c.stack),
    numberColumn("layer", c.layer.data),
    numberColumn("head", c.head.data),
    wordsColumn("statistic", labels, { kind: "label" }),
    numberColumn("effect", c.effect.data),
    wordsColumn("measure", c.measure, { kind: "measure" }),
    { title: "95 % interval", text: (row) => intervalText(c.low.data[row], c.high.data[row]) },
    { title: "p", number: c.p_value.data, text: (row) => pText(c.p_value.data[row]) },
    { title: "q", number: c.q_value.data, text: (row) => pText(c.q_value.data[row]) },
    {
      title: "n",
      number: c.n.data,
      text: (row) => countText(c.n.data[row], c.unit, row),
      kind: "counts",
    },
    wordsColumn("method", c.method, { kind: "long" }),
    wordsColumn("note", c.note, { kind: "long" }),
  ].filter(({ words: some }) => !some || some.values.some(Boolean));
  const table = new PagedTable(host, meta.n, columns);
  const search = document.getElementById("test-search");
  const hypothesis = document.getElementById("test-hypothesis");
  const withP = document.getElementById("test-with-p");
  const rejected = document.getElementById("test-rejected");
  const filter = () => {
    const found = searcher(search.value, [...words, labels]);
    const code = c.hypothesis.values.indexOf(hypothesis.value);
    table.filter(
      (row) =>
        (code < 0 || c.hypothesis.data[row] === code) &&
        (!withP.checked || !Number.isNaN(c.p_value.data[row])) &&
        (!rejected.checked || c.q_value.data[row] <= heads.meta.level) &&
        found(row),
    );
  };
  const refilter = () => {
    filter();
    say(`${counted(table.rows.length, "row")} found`);
  };
  filter();
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(refilter, 150);
  });
  for (const control of [hypothesis, withP, rejected])
    control.addEventListener("change", refilter);
  document
    .getElementById("test-form")
    .addEventListener("submit", (event) => event.preventDefault());
}

/** Family and model as one column of words. */
function namesOf(family, model) {
  const places = new Map();
  const data = Uint32Array.from(family.data, (code, row) => {
    const name = [family.values[code], model.values[model.data[row]]].filter(Boolean).join(" / ");
    if (!places.has(name)) places.set(name, places.size);
    return places.get(name);
  });
  return { data, values: [...places.keys()] };
}

/** A statistic's label; what is tested may also be no statistic of heads. */
function statisticLabel(name) {
  return statisticOf(name)?.label ?? name.replaceAll("_", " ");
}
