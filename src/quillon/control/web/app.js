"use strict";
// The page `Now` follows the server's events; without a word for ten seconds it says that it is stale.
const state = document.getElementById("stream");
if (state) {
  const points = [[], [], []];
  const holder = document.getElementById("rates");
  let last = null, heard = Date.now(), plot = null;

  const tell = (name, text) => { if (state.dataset.state !== name || state.textContent !== text) { state.dataset.state = name; state.textContent = text; } };

  const draw = () => {
    if (!plot) {
      const ink = getComputedStyle(document.body).color;
      const axis = { stroke: ink, grid: { stroke: "#8884" }, ticks: { stroke: "#8884" } };
      plot = new uPlot({
        width: holder.clientWidth, height: 180, axes: [axis, axis],
        series: [{}, { label: "received/s", stroke: "#1a73e8", width: 2 }, { label: "delivered/s", stroke: "#188038", width: 2, dash: [6, 3] }],
      }, points, holder);
      addEventListener("resize", () => plot.setSize({ width: holder.clientWidth, height: 180 }));
    } else {
      plot.setData(points);
    }
  };

  const source = new EventSource("/events");
  source.onmessage = (event) => {
    const now = JSON.parse(event.data), time = Date.now() / 1000;
    heard = Date.now();
    for (const [name, value] of Object.entries(now)) {
      const place = document.getElementById("figure-" + name);
      if (place) place.textContent = value;
    }
    if (last) {
      const seconds = Math.max(time - last.time, 0.001);
      points[0].push(time);
      points[1].push(Math.max(now.received - last.received, 0) / seconds);
      points[2].push(Math.max(now.delivered - last.delivered, 0) / seconds);
      if (points[0].length > 900) points.forEach((line) => line.shift());
      draw();
    }
    last = { time, received: now.received, delivered: now.delivered };
    tell("live", "live");
  };
  source.addEventListener("trouble", (event) => { heard = Date.now(); tell("stale", JSON.parse(event.data)); });
  setInterval(() => { if (Date.now() - heard > 10000) tell("stale", "stale: the server has not spoken for " + Math.round((Date.now() - heard) / 1000) + " s"); }, 1000);
}
// The page of a partner has sessions a day.
const days = document.getElementById("days");
if (days) {
  const points = JSON.parse(days.dataset.points);
  const ink = getComputedStyle(document.body).color;
  const axis = { stroke: ink, grid: { stroke: "#8884" }, ticks: { stroke: "#8884" } };
  const size = () => ({ width: days.clientWidth, height: 220 });
  const plot = new uPlot({
    ...size(), axes: [axis, axis],
    series: [{}, { label: "TLS 1.3", stroke: "#188038", width: 2 }, { label: "older TLS", stroke: "#1a73e8", width: 2, dash: [6, 3] },
      { label: "in clear", stroke: "#b06000", width: 2, dash: [2, 3] }, { label: "failed", stroke: "#c5221f", width: 2 }],
  }, points, days);
  addEventListener("resize", () => plot.setSize(size()));
}
