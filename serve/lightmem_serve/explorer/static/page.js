// "/" goes to the search field; "Escape" leaves it. Without scripts all pages work the same.
document.addEventListener("keydown", (event) => {
  const field = document.querySelector("input[type=search]");
  if (!field || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    field.focus();
    field.select();
  } else if (event.key === "Escape" && event.target === field) {
    field.blur();
  }
});
