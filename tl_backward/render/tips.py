"""Values on hover, for a pointer, a finger and the keyboard: a browser shows titles to a mouse alone, and late."""

TIPS_STYLE = """
.tlb-tip { position: fixed; z-index: 9; max-width: min(42ch, 90vw); padding: 4px 8px; border-radius: 4px;
  background: #1a1a1a; color: #ffffff; font: 13px/1.4 system-ui, sans-serif; white-space: pre-wrap;
  overflow-wrap: anywhere; pointer-events: none; box-shadow: 0 0 0 1px #888888; }
@media print { .tlb-tip { display: none; } }
"""

# A picture is one stop of the tab key; arrow keys go through what is in it. The texts become text nodes, nothing else.
TIPS = """(function () {
  var box = null, owner = null, known = "[title], [data-tlb-tip], .tlb-hits > rect, .tlb-picture line";
  function words(element) {
    if (element.dataset.tlbTip === undefined) {
      var own = element.querySelector(":scope > title");
      element.dataset.tlbTip = own ? own.textContent : element.getAttribute("title") || "";
      if (own) { own.remove(); element.setAttribute("aria-label", element.dataset.tlbTip); }
      else { element.removeAttribute("title"); element.setAttribute("aria-description", element.dataset.tlbTip); }
    }
    return element.dataset.tlbTip;
  }
  function hide() {
    if (box) { box.remove(); box = null; }
    if (owner) { owner.classList.remove("tlb-on"); owner = null; }
  }
  function show(element, x, y) {
    var text = words(element);
    hide();
    if (!text) { return; }
    owner = element;
    owner.classList.add("tlb-on");
    box = document.createElement("div");
    box.className = "tlb-tip";
    box.setAttribute("role", "status");
    box.textContent = text;
    document.body.appendChild(box);
    var size = box.getBoundingClientRect();
    box.style.left = Math.max(4, Math.min(x + 12, innerWidth - size.width - 4)) + "px";
    box.style.top = (y + 16 + size.height > innerHeight ? Math.max(4, y - size.height - 12) : y + 16) + "px";
  }
  function middle(element) {
    var at = element.getBoundingClientRect();
    return [at.left + at.width / 2, at.top + at.height / 2];
  }
  document.addEventListener("pointerover", function (event) {
    var element = event.target.closest && event.target.closest(known);
    if (element) { show(element, event.clientX, event.clientY); }
    else if (event.pointerType !== "touch" || event.isPrimary) { hide(); }
  });
  document.addEventListener("pointerout", function (event) {
    if (event.pointerType !== "touch" && !event.relatedTarget) { hide(); }
  });
  document.addEventListener("scroll", hide, true);
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") { hide(); return; }
    var step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    var picture = event.target.closest && event.target.closest(".tlb-picture");
    if (!step || !picture) { return; }
    event.preventDefault();
    var hits = Array.from(picture.querySelectorAll(".tlb-hits > rect"));
    var now = owner && picture.contains(owner) ? owner : null, best = now ? null : hits[0], least = Infinity;
    var from = now && middle(now);
    hits.forEach(function (hit) {
      if (!now || hit === now) { return; }
      var to = middle(hit), dx = to[0] - from[0], dy = to[1] - from[1];
      var ahead = dx * step[0] + dy * step[1], aside = Math.abs(dx * step[1]) + Math.abs(dy * step[0]);
      if (ahead > 0.5 && ahead + 4 * aside < least) { least = ahead + 4 * aside; best = hit; }
    });
    if (best) { show.apply(null, [best].concat(middle(best))); }
  });
})();"""
