(() => {
  const { data, $, color, safe, quantity, percent, fill, looks } = page;
  const { rounds, measures, shares } = data;
  const view = { across: "round", up: measures[0] };
  const paints = ["accent", "mlp", "attention", "groups", "queries", "other"];
  const shown = (value) => shares.includes(view.up) ? percent(value) : String(Number(value.toPrecision(4)));
  const places = () => rounds.map((one) => view.across === "round" ? one.number : one.bytes);
  const axis = (title) => ({
    title: { text: safe(title), font: { size: 13 } }, gridcolor: color("line"), zeroline: false, linecolor: color("line"),
  });
  const upright = (title) => ({ ...axis(title), tickformat: shares.includes(view.up) ? ".0%" : "" });
  const draw = (id, traces, layout) => Plotly.react(id, traces, { ...looks(), ...layout }, { displayModeBar: false, responsive: true });

  function curves() {
    const names = [...new Set(rounds.flatMap((one) => Object.keys(one.values[view.up] || {})))];
    const across = places();
    const traces = names.map((name, index) => {
      const values = rounds.map((one) => (one.values[view.up] || {})[name]);
      const held = rounds.map((_, at) => at).filter((at) => Number.isFinite(values[at]));
      return {
        type: "scatter", mode: held.length > 40 ? "lines" : "lines+markers", name: safe(name),
        x: held.map((at) => across[at]), y: held.map((at) => values[at]),
        line: { color: color(paints[index % paints.length]), width: 2 }, marker: { size: 6 },
        customdata: held.map((at) => [rounds[at].number, shown(values[at]), quantity(rounds[at].bytes, "bytes")]),
        hovertemplate: "<b>round %{customdata[0]}</b><br>" + safe(name) + " %{customdata[1]}<br>%{customdata[2]} so far<extra></extra>",
      };
    });
    const below = { ...axis(data.labels[view.across]), ...(view.across === "round" ? { tickformat: "d" } : { tickformat: "~s", ticksuffix: "B" }) };
    draw("chart", traces, { xaxis: below, yaxis: upright(view.up), showlegend: true });
  }

  function traffic() {
    const traces = [["down", "accent"], ["up", "mlp"]].map(([way, paint]) => ({
      type: "bar", name: way, x: rounds.map((one) => one.number), y: rounds.map((one) => one[way]),
      marker: { color: color(paint) }, customdata: rounds.map((one) => quantity(one[way], "bytes")),
      hovertemplate: "<b>round %{x}</b><br>" + way + " %{customdata}<extra></extra>",
    }));
    draw("traffic", traces, {
      barmode: "stack", xaxis: { ...axis("round"), tickformat: "d" },
      yaxis: { ...axis(""), tickformat: "~s", ticksuffix: "B" }, showlegend: true,
    });
  }

  function clients() {
    const held = data.clients.filter((one) => Number.isFinite(one.scores[view.up]));
    const ordered = held.sort((a, b) => a.scores[view.up] - b.scores[view.up]);
    $("clients").parentElement.hidden = !ordered.length;
    if (!ordered.length) return;
    const values = ordered.map((one) => one.scores[view.up]);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const trace = {
      type: "bar", x: values.map((_, at) => at + 1), y: values, marker: { color: color("accent") }, showlegend: false,
      customdata: ordered.map((one, at) => [safe(one.name), shown(values[at])]),
      hovertemplate: "<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
    };
    const line = {
      type: "line", x0: 0, x1: 1, xref: "paper", y0: mean, y1: mean, line: { color: color("ink"), width: 1.5, dash: "dash" },
      label: { text: "mean " + shown(mean), textposition: "start", font: { size: 11.5, color: color("ink") } },
    };
    draw("clients", [trace], {
      xaxis: { ...axis("clients, in order of their " + view.up), showticklabels: false }, yaxis: upright(view.up), shapes: [line],
    });
  }

  function all() {
    curves();
    traffic();
    clients();
  }

  fill($("across"), ["round", "bytes"], view.across);
  fill($("up"), measures, view.up);
  $("across").addEventListener("change", (event) => { view.across = event.target.value; curves(); });
  $("up").addEventListener("change", (event) => { view.up = event.target.value; curves(); clients(); });
  all();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
})();
