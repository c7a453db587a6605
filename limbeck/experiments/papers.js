(() => {
  const find = document.getElementById("find"), family = document.getElementById("family");
  const verdict = document.getElementById("verdict"), count = document.getElementById("count");
  const rows = [...document.querySelectorAll("table.papers tbody tr")];
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = words.every((word) => row.dataset.words.includes(word))
        && (!family.value || row.dataset.family === family.value) && (!verdict.value || row.dataset.verdict === verdict.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} shown`;
  };
  for (const control of [find, family, verdict]) control.addEventListener("input", filter);
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
