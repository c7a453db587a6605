"use strict";
(() => {
  const tip = document.getElementById("tip");

  const show = (words, x, y) => {
    tip.textContent = words;
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), gap = 14;
    const left = x + gap + box.width > innerWidth - 8 ? x - gap - box.width : x + gap;
    const top = y + gap + box.height > innerHeight - 8 ? y - gap - box.height : y + gap;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  };
  const hide = () => { tip.hidden = true; };

  for (const item of document.querySelectorAll("[data-tip]")) {
    const words = item.getAttribute("data-tip");
    item.addEventListener("pointerenter", (event) => show(words, event.clientX, event.clientY));
    item.addEventListener("pointermove", (event) => show(words, event.clientX, event.clientY));
    item.addEventListener("pointerleave", hide);
    item.addEventListener("focus", () => {
      const box = item.getBoundingClientRect();
      show(words, box.left + box.width / 2, box.top + box.height / 2);
    });
    item.addEventListener("blur", hide);
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true });

  for (const mark of document.querySelectorAll("[data-readout]")) {
    const chart = mark.closest("svg"), cursor = chart.querySelector(".cursor");
    const rows = JSON.parse(mark.getAttribute("data-readout"));
    let at = -1;
    const move = (index, y) => {
      at = Math.max(0, Math.min(index, rows.length - 1));
      const [x, words] = rows[at], box = chart.getBoundingClientRect();
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.classList.add("on");
      show(words, box.left + (x * box.width) / chart.viewBox.baseVal.width, y ?? box.top + box.height / 3);
    };
    const leave = () => { cursor.classList.remove("on"); hide(); };
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) * chart.viewBox.baseVal.width) / box.width;
      let near = 0;
      rows.forEach((row, index) => { if (Math.abs(row[0] - x) < Math.abs(rows[near][0] - x)) near = index; });
      move(near, event.clientY);
    });
    chart.addEventListener("pointerleave", leave);
    chart.addEventListener("blur", leave);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) { event.preventDefault(); move(at + step); }
    });
  }

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const state = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? state : "none"));
      const sign = state === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].getAttribute("data-sort");
      const rows = [...body.rows].sort((a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return sign * (Number(key(a)) - Number(key(b)));
      });
      body.append(...rows);
    }));
  }

  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.getAttribute("data-copy"));
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
