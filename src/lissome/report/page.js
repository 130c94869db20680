(() => {
  const { data, $, color, safe, quantity, percent, label, unit, fill, element, copyable, looks } = page;
  const points = data.points;
  if (!points.length) return;

  const KINDS = [
    ["attention", "attention removed"], ["mlp", "MLP removed"], ["width", "MLP channels"],
    ["groups", "KV groups"], ["queries", "query heads"], ["other", "other change"],
  ];
  const original = points[0];
  let chosen = Math.max(points.findIndex((point) => point.step === data.result), 0);

  /* Where a metric of a point is found: predicted and counted figures, then qualities. */
  const read = (point, name) => (name in point.figures ? point.figures[name] : point.quality[name]);
  const has = (name) => points.every((point) => Number.isFinite(read(point, name)));

  const sizes = Object.keys(original.figures).filter(has);
  const qualities = Object.keys(original.quality).filter(has);
  const views = [
    { x: sizes.includes("block_params") ? "block_params" : sizes[0] },
    { x: sizes.includes("latency") ? "latency" : sizes[sizes.length - 1] },
  ];
  let quality = qualities[0];

  const ratio = (point, name) => read(point, name) / read(original, name);

  function traces(view, axis) {
    const x = (list) => list.map((point) => ratio(point, view.x) * 100);
    const y = (list) => list.map((point) => read(point, quality));
    const hover = (list) => list.map((point) => [
      point.step, safe(point.change), quantity(read(point, view.x), unit(view.x)), quantity(read(point, quality), ""),
    ]);
    const template = "<b>step %{customdata[0]}</b><br>%{customdata[1]}<br>" +
      safe(label(view.x)) + " %{customdata[2]} (%{x:.1f} %)<br>" + safe(label(quality)) + " %{customdata[3]}<extra></extra>";
    const common = { xaxis: "x" + axis, yaxis: "y", type: "scatter" };
    const list = [{
      ...common, x: x(points), y: y(points), mode: "lines", hoverinfo: "skip", showlegend: false,
      line: { color: color("soft"), width: 1.5 }, opacity: 0.45,
    }];
    for (const [kind, title] of KINDS) {
      const some = points.filter((point) => point.kind === kind);
      if (!some.length) continue;
      list.push({
        ...common, x: x(some), y: y(some), customdata: hover(some), hovertemplate: template, mode: "markers",
        name: title, legendgroup: kind, showlegend: axis === "", marker: { size: 8, color: color(kind) },
      });
    }
    const marks = [[original, "original", "circle-open", 13], [points[chosen], "shown below", "circle-open", 19]];
    const result = points.find((point) => point.step === data.result);
    if (result) marks.splice(1, 0, [result, "this model", "star", 17]);
    for (const [point, title, symbol, size] of marks) {
      list.push({
        ...common, x: x([point]), y: y([point]), customdata: hover([point]), hovertemplate: template, mode: "markers",
        name: title, legendgroup: title, showlegend: axis === "", marker: { symbol, size, color: color("ink"), line: { width: 2 } },
      });
    }
    return list;
  }

  function limits(view, axis) {
    const bounds = data.limits.filter((limit) => limit.name === view.x);
    const place = (limit) => 100 * (limit.share === null ? limit.value / read(original, view.x) : limit.share);
    return bounds.map((limit) => ({
      type: "line", xref: "x" + axis, yref: "paper", y0: 0, y1: 1, x0: place(limit), x1: place(limit),
      line: { color: color("bad"), width: 1.5, dash: "dash" },
      label: {
        text: safe(limit.term), textposition: "start", textangle: 0, yanchor: "bottom", xanchor: "right",
        font: { size: 11.5, color: color("bad") },
      },
    }));
  }

  function layout() {
    const values = points.map((point) => read(point, quality));
    const low = Math.min(...values), high = Math.max(...values);
    const wide = low > 0 && high / low > 4; // a collapse at the far end must not flatten the part that matters
    const axis = (view, domain) => ({
      domain, title: { text: safe(label(view.x)) + " (% of the original)", font: { size: 13 } }, ticksuffix: " %",
      autorange: ratio(points[points.length - 1], view.x) < 1 ? "reversed" : true, // the original always stands left
      gridcolor: color("line"), zeroline: false, linecolor: color("line"),
    });
    const yaxis = {
      title: { text: safe(label(quality)), font: { size: 13 } }, gridcolor: color("line"), zeroline: false,
      type: wide ? "log" : "linear",
    };
    if (wide) {
      const ticks = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
        for (const digit of [1, 1.5, 2, 3, 5, 7]) ticks.push(digit * 10 ** power);
      }
      yaxis.tickvals = ticks;
      yaxis.ticktext = ticks.map((value) => String(Number(value.toPrecision(2))));
    }
    return {
      ...looks(), xaxis: axis(views[0], [0, 0.485]), xaxis2: axis(views[1], [0.515, 1]), yaxis,
      shapes: [...limits(views[0], ""), ...limits(views[1], "2")],
    };
  }

  function draw() {
    Plotly.react("chart", [...traces(views[0], ""), ...traces(views[1], "2")], layout(), {
      displayModeBar: false, responsive: true,
    });
  }

  function figures(point) {
    const table = $("figures");
    table.replaceChildren();
    const head = element("tr");
    for (const text of ["", "this step", "of the original"]) head.append(element("th", text));
    table.append(head);
    for (const name of [...Object.keys(point.figures), ...Object.keys(point.quality)]) {
      const value = read(point, name), before = read(original, name);
      if (!Number.isFinite(value)) continue;
      const row = element("tr");
      row.append(element("td", label(name)), element("td", quantity(value, unit(name))));
      row.append(element("td", Number.isFinite(before) && before ? percent(value / before) : "–"));
      table.append(row);
    }
  }

  function share(cut, root, parts) {
    const full = data.full;
    if (!(root in full)) return null;
    const value = (name) => (name in cut ? cut[name] : full[name]);
    if (!value(root)) return 0;
    return parts.reduce((left, part) => {
      const name = root + "." + part;
      return name in full ? (left * value(name)) / full[name] : left;
    }, 1);
  }

  function layers(point) {
    const strip = $("layers");
    strip.replaceChildren();
    for (let index = 0; index < data.blocks; index += 1) {
      const column = element("div", undefined, "layer");
      for (const [kind, parts] of [["attention", ["groups", "queries"]], ["mlp", ["width"]]]) {
        const root = "layers." + index + "." + kind;
        const left = share(point.cut, root, parts);
        if (left === null) continue;
        const slot = element("div", undefined, "slot " + kind + (left ? "" : " gone"));
        slot.title = "layer " + index + ", " + kind + ": " + (left ? percent(left) + " kept" : "removed");
        if (point.change.startsWith(root + ".") || point.change.startsWith(root + " ")) slot.classList.add("last");
        const bar = element("i");
        bar.style.height = left * 100 + "%";
        slot.append(bar);
        column.append(slot);
      }
      strip.append(column);
    }
  }

  function show(index) {
    chosen = Math.min(Math.max(index, 0), points.length - 1);
    const point = points[chosen];
    $("step").value = chosen;
    $("title").textContent = "Step " + point.step + (point.step === data.result ? " (this model)" : "") + ": " + point.change;
    $("copy").textContent = "Copy";
    $("extract").textContent = data.extract.join(point.step);
    figures(point);
    layers(point);
    draw();
  }

  fill($("left"), sizes, views[0].x);
  fill($("right"), sizes, views[1].x);
  fill($("quality"), qualities, quality);
  $("left").addEventListener("change", (event) => { views[0].x = event.target.value; draw(); });
  $("right").addEventListener("change", (event) => { views[1].x = event.target.value; draw(); });
  $("quality").addEventListener("change", (event) => { quality = event.target.value; draw(); });
  $("step").max = points.length - 1;
  $("step").addEventListener("input", (event) => show(Number(event.target.value)));
  copyable();
  show(chosen);
  $("chart").on("plotly_click", (event) => {
    const step = event.points[0].customdata && event.points[0].customdata[0];
    const index = points.findIndex((point) => point.step === step);
    if (index >= 0) show(index);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
