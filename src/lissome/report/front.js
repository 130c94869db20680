(() => {
  const { data, $, color, safe, quantity, percent, label, unit, fill, element, copyable, looks } = page;
  const { points, original, better } = data;
  const cost = (point) => point.figures[data.across];
  const front = points.filter((point) => point.front).sort((a, b) => cost(a) - cost(b));
  if (!front.length) return;
  let shown = points.find((point) => point.chosen) || front[Math.floor(front.length / 2)];
  const view = { x: data.across, y: data.up };
  const names = Object.keys(front[0].figures);
  const known = (point) => Number.isFinite(point.figures[view.x]) && Number.isFinite(point.figures[view.y]);
  const place = (point) => front.indexOf(point);

  function trace(list, more) {
    const some = list.filter(known);
    return {
      type: "scatter", mode: "markers", ...more, x: some.map((point) => point.figures[view.x]),
      y: some.map((point) => point.figures[view.y]),
      customdata: some.map((point) => [
        point.number, quantity(point.figures[view.x], unit(view.x)), quantity(point.figures[view.y], unit(view.y)),
      ]),
      hovertemplate: "<b>point %{customdata[0]}</b><br>" + safe(label(view.x)) + " %{customdata[1]}<br>" +
        safe(label(view.y)) + " %{customdata[2]}<extra></extra>",
    };
  }

  function traces() {
    const line = [...front].sort((a, b) => a.figures[view.x] - b.figures[view.x]);
    const asked = [view.x, view.y].every((name) => name in better);
    const whole = { number: "of the original", figures: original };
    return [
      trace(points.filter((point) => !point.front), {
        name: "evaluated", marker: { size: 6, color: color("soft"), opacity: 0.45 },
      }),
      trace(line, {
        name: "front", mode: asked ? "lines+markers" : "markers", line: { color: color("accent"), width: 1.5 },
        marker: { size: 9, color: color("accent") },
      }),
      trace([whole], { name: "original", marker: { symbol: "diamond-open", size: 12, color: color("ink"), line: { width: 2 } } }),
      trace(points.filter((point) => point.chosen), { name: "chosen", marker: { symbol: "star", size: 17, color: color("ink") } }),
      trace([shown], {
        name: "shown below", hoverinfo: "skip", marker: { symbol: "circle-open", size: 19, color: color("ink"), line: { width: 2 } },
      }),
    ];
  }

  function limits() {
    return data.limits.filter((limit) => limit.name === view.x || limit.name === view.y).map((limit) => {
      const upright = limit.name === view.x;
      const along = upright ? { x0: limit.value, x1: limit.value, y0: 0, y1: 1, yref: "paper" }
        : { y0: limit.value, y1: limit.value, x0: 0, x1: 1, xref: "paper" };
      return {
        type: "line", ...along, line: { color: color("bad"), width: 1.5, dash: "dash" },
        label: { text: safe(limit.term), textposition: "start", textangle: 0, font: { size: 11.5, color: color("bad") } },
      };
    });
  }

  function draw() {
    const axis = (name) => ({
      title: { text: safe(label(name)), font: { size: 13 } }, gridcolor: color("line"), zeroline: false, tickformat: "~s",
      linecolor: color("line"),
    });
    const layout = { ...looks(), xaxis: axis(view.x), yaxis: { ...axis(view.y), tickformat: "" }, shapes: limits() };
    Plotly.react("chart", traces(), layout, { displayModeBar: false, responsive: true });
  }

  function table(id, head, rows) {
    const made = $(id);
    made.replaceChildren();
    for (const [tag, cells] of [["th", head], ...rows.map((row) => ["td", row])]) {
      const line = element("tr");
      line.append(...cells.map((cell) => element(tag, cell)));
      made.append(line);
    }
  }

  function figures() {
    const rows = Object.entries(shown.figures).map(([name, value]) => {
      const before = original[name];
      const held = (split) => name in split ? quantity(split[name], unit(name)) : "–";
      const share = before ? percent(value / before) : "–";
      return [label(name), quantity(value, unit(name)), share, held(shown.selection), held(shown.test)];
    });
    table("figures", ["", "this point", "of the original", "to choose by", "test split"], rows);
  }

  function subnet() {
    const rows = Object.entries(shown.cut).map(([name, value]) => {
      const full = data.full[name];
      return [name, full === 1 && value === 0 ? "removed" : String(value), full === 1 ? "kept" : String(full)];
    });
    const same = Object.keys(data.full).length - rows.length;
    table("subnet", ["decision", "chosen", "largest"], rows.length ? rows : [["nothing is smaller", "", ""]]);
    $("same").textContent = rows.length && same ? "All others (" + same + ") are at their largest." : "";
  }

  function show(point) {
    shown = point;
    const where = point.chosen ? "chosen" : point.front ? "on the front" : "not on the front";
    $("title").textContent = "Point " + point.number + ", " + where;
    if (point.front) $("step").value = place(point);
    $("copy").hidden = !point.extractable;
    $("copy").textContent = "Copy";
    $("extract").textContent = point.extractable ? data.extract.join(point.number) : data.refused;
    figures();
    subnet();
    draw();
  }

  for (const [id, key] of [["across", "x"], ["up", "y"]]) {
    fill($(id), names, view[key]);
    $(id).addEventListener("change", (event) => { view[key] = event.target.value; draw(); });
  }
  $("step").max = front.length - 1;
  $("step").addEventListener("input", (event) => show(front[Number(event.target.value)]));
  copyable();
  show(shown);
  $("chart").on("plotly_click", (event) => {
    const number = event.points[0].customdata && event.points[0].customdata[0];
    const point = points.find((one) => one.number === number);
    if (point) show(point);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
