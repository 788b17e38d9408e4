// Wide figures and tables scroll inside their box: let the keyboard reach it.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".r2d-figure, .r2d-scroll, .cell_output .text_html")) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
    }
  }
});
