// Sorts a table by the column whose button is pressed, and hides rows without the words that are typed.
for (const table of document.querySelectorAll("table.board")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  [...body.rows].forEach((row, place) => (row.cells[0].dataset.value = place)); // the order of groups
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.first ?? "ascending"; // the best first
      const again = head.getAttribute("aria-sort") === first;
      const up = (first === "ascending") !== again;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what has no number comes last
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      });
      body.append(...rows);
      table.classList.toggle("sorted", column !== 0 || !up);
    });
  });
  const input = document.createElement("input"), label = document.createElement("label");
  input.type = "search";
  label.append("Show rows with ", input);
  label.className = "filter";
  table.closest(".scroll").before(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) row.hidden = !words.every((word) => row.dataset.words.toLowerCase().includes(word));
  });
}
