// Lays the cells out on slides: whatever does not fit on one goes on to the next, so nothing is
// clipped and nothing scrolls. Then starts reveal.js. Keys: S speaker view, D dark, O overview.
(async () => {
  const ROOM = 604;        // pixels for a slide's content, of 720
  const LEAST = 0.8;       // a single block is cut in pieces when it would have to be made smaller than this
  const WORDS = 75;        // of prose on a page, unless a single paragraph has more
  const SMALLEST = 0.7;    // and several never share a slide at a smaller size
  const root = document.documentElement, query = new URLSearchParams(location.search);
  root.dataset.theme = query.has("dark") ? "dark" : "light";

  await document.fonts.load("26px 'Deck Sans'"); await document.fonts.load("19px 'Deck Mono'");
  await document.fonts.ready;
  await MathJax.startup.promise;
  const cells = document.getElementById("cells"), slides = document.querySelector(".slides");
  await Promise.all([...cells.querySelectorAll("img")].map((img) => img.decode().catch(() => {})));

  const element = (tag, name, ...children) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...children);
    return made;
  };

  // What a cell consists of: blocks of text, its code, each of its outputs.
  function partsOf(cell) {
    const parts = [];
    const text = cell.querySelector(".jp-MarkdownCell .jp-RenderedMarkdown");
    if (text) {
      text.querySelectorAll(".anchor-link").forEach((link) => link.remove());
      text.querySelectorAll("h2").forEach((h) => { h.innerHTML = h.innerHTML.replace(/^(\d+\.\d+) /, '<span class="number">$1</span> '); });
      for (const node of [...text.children]) {
        const mark = node.matches("p") && !node.textContent.trim() && node.querySelector("a[id]");
        if (mark) cell.dataset.anchor = mark.id;
        else parts.push({ node, kind: node.matches("h1, h2, h3") ? "heading" : "text" });
      }
      return parts;
    }
    const code = cell.querySelector(".jp-Cell-inputWrapper .highlight");
    if (code) parts.push({ node: code, kind: "code" });
    for (const output of cell.querySelectorAll(".jp-Cell-outputWrapper .jp-OutputArea-output")) {
      parts.push({ node: element("div", "out", ...output.childNodes), kind: "output" });
    }
    return parts;
  }

  // The slides that the author meant: a list of sections, each a list of slides.
  const sections = [];
  let group = 0;
  for (const cell of [...cells.children]) {
    const type = cell.dataset.slide, parts = partsOf(cell);
    if (type === "notes") {
      sections.at(-1).at(-1).notes.push(cell.querySelector(".jp-RenderedMarkdown").innerHTML);
      continue;
    }
    if (type === "text") { // the whole text of the cell before, for the notes of the page on which it ends
      sections.at(-1).at(-1).parts.at(-1).note = cell.querySelector(".jp-RenderedMarkdown").innerHTML;
      continue;
    }
    if (type === "slide" || !sections.length) sections.push([]);
    if (type === "slide" || type === "subslide") sections.at(-1).push({ parts: [], notes: [], anchor: cell.dataset.anchor });
    if (type === "fragment") group += 1;
    else if (type !== "-") group = 0;
    parts.forEach((part) => sections.at(-1).at(-1).parts.push({ ...part, cell, step: group ? `${sections.length}.${group}` : "" }));
  }

  const body = element("div", "body");
  const page = element("section", "page", body);
  const measure = element("div", "reveal measure", element("div", "slides", page));
  document.body.append(measure);
  function height(parts) {
    body.replaceChildren(...parts.map((part) => part.node));
    return body.offsetHeight;
  }

  // A part taller than a slide, cut into pieces: code and text output by lines, tables by rows, lists by items.
  function cut(part) {
    const { node } = part, whole = height([part]);
    const rows = node.querySelector("table") ? [...node.querySelectorAll("tr")].filter((row) => row.querySelector("td")) : [];
    const pre = node.matches("pre") ? node : node.querySelector("pre");
    const items = node.matches("ul, ol") ? [...node.children] : [];
    const pieces = Math.ceil(whole / ROOM);
    const share = (list, i) => list.slice(Math.ceil((i * list.length) / pieces), Math.ceil(((i + 1) * list.length) / pieces));
    const copies = (change) => Array.from({ length: pieces }, (_, i) => {
      const copy = node.cloneNode(true);
      change(copy, i);
      return { ...part, node: copy, note: i === pieces - 1 ? part.note : null };
    });
    if (rows.length > 1) {
      return copies((copy, i) => {
        const mine = new Set(share(rows.map((_, k) => k), i));
        [...copy.querySelectorAll("tr")].filter((row) => row.querySelector("td")).forEach((row, k) => mine.has(k) || row.remove());
      });
    }
    if (pre && pre.innerHTML.trim().split("\n").length > 1) {
      const lines = pre.innerHTML.replace(/\n$/, "").split("\n");
      return copies((copy, i) => { (copy.matches("pre") ? copy : copy.querySelector("pre")).innerHTML = share(lines, i).join("\n"); });
    }
    if (items.length > 1) {
      return copies((copy, i) => {
        const mine = new Set(share(items.map((_, k) => k), i));
        [...copy.children].forEach((item, k) => mine.has(k) || item.remove());
        if (copy.matches("ol")) copy.start = [...mine][0] + (node.start || 1);
      });
    }
    return [part];
  }

  // What it costs to turn the page after a part: little between thoughts, much where two belong together.
  function tear(part, next) {
    if (!next) return 0;
    if (part.kind === "heading") return 10;
    if (part.kind === "code" && next.kind === "output") return 0.35;
    if (part.kind === "text" && (next.kind === "code" || /:\s*$/.test(part.node.textContent))) return 0.35;
    return part.cell === next.cell ? 0.2 : 0;
  }

  // Breaks a slide's parts into pages: as few as fit without becoming small, none nearly empty (least total cost).
  function paginate(parts) {
    parts = parts.flatMap((part) => (height([part]) > ROOM / LEAST ? cut(part) : [part]));
    height(parts);
    const prose = parts.map(({ node, kind }) => (kind === "text" && !node.matches("table, .highlight, pre") ? node.textContent.trim().split(/\s+/).length : 0));
    const boxes = parts.map(({ node }) => node.getBoundingClientRect());
    const best = [{ cost: 0 }];
    for (let end = 1; end <= parts.length; end += 1) {
      best[end] = { cost: Infinity };
      let words = 0;
      for (let start = end - 1; start >= 0; start -= 1) {
        words += prose[start];
        if (words > WORDS && words > prose[start] && prose[start]) break;
        const full = (boxes[end - 1].bottom - boxes[start].top) / ROOM;
        if (full > 1 / SMALLEST && end - start > 1) break;
        const cost = best[start].cost + 1 + (full > 1 ? (5 * (1 - 1 / full)) ** 2 : Math.max(0, 0.4 - full)) +
          tear(parts[end - 1], parts[end]);
        if (cost < best[end].cost) best[end] = { cost, start };
      }
    }
    const pages = [];
    for (let end = parts.length; end > 0; end = best[end].start) pages.unshift(parts.slice(best[end].start, end));
    return pages;
  }

  // A page as a section: steps become fragments, what is too tall is made smaller, a lone figure larger.
  function compose(parts, running) {
    const tall = height(parts), made = element("div", "body");
    let step = null, holder = made;
    for (const part of parts) {
      if (part.step !== step) {
        step = part.step;
        holder = step && made.children.length ? made.appendChild(element("div", "fragment")) : made;
      }
      holder.append(part.node);
    }
    const figures = made.querySelectorAll("img");
    if (tall > ROOM) {
      body.replaceChildren(made);
      let zoom = 1;
      while (zoom > 0.3 && made.getBoundingClientRect().height > ROOM) { zoom -= 0.01; made.style.zoom = zoom.toFixed(2); }
      if (zoom < 0.995) made.dataset.zoom = zoom.toFixed(2);
    } else if (figures.length === 1) {
      const img = figures[0], factor = Math.min(1.35, (img.naturalHeight + ROOM - tall) / img.naturalHeight, 1152 / img.naturalWidth);
      if (factor > 1) { img.style.maxHeight = "none"; img.style.width = `${Math.floor(img.naturalWidth * factor)}px`; }
    }
    const section = element("section", "page");
    if (running) section.append(element("p", "running", running));
    section.append(made);
    return section;
  }

  sections.forEach((list) => {
    const stack = element("section");
    const heading = list[0].parts.find((part) => part.node.matches("h2"));
    const name = heading ? heading.node.textContent : "";
    list.forEach((slide) => {
      paginate(slide.parts).forEach((parts, p) => {
        const section = compose(parts, parts.some((part) => part.node.matches("h1, h2")) ? "" : name);
        if (p === 0 && slide.anchor) section.id = slide.anchor;
        if (parts.some((part) => part.node.matches("h1"))) section.classList.add("title");
        const notes = [...(p === 0 ? slide.notes : []), ...new Set(parts.map((part) => part.note).filter(Boolean))];
        if (notes.length) { const aside = element("aside", "notes"); aside.innerHTML = notes.join(""); section.append(aside); }
        stack.append(section);
      });
    });
    slides.append(stack);
  });
  measure.remove();
  cells.remove();
  const title = slides.querySelector(".title");
  title.parentNode.querySelectorAll("h3").forEach((h) => { h.ariaLevel = "2"; }); // no jump from 1 to 3 for who listens
  const keys = element("p", "keys");
  keys.innerHTML = "<kbd>→</kbd> next &nbsp; <kbd>S</kbd> speaker view &nbsp; <kbd>O</kbd> overview &nbsp; <kbd>D</kbd> dark";
  title.append(keys);

  await Reveal.initialize({
    hash: true, slideNumber: "c/t", width: 1280, height: 720, margin: 0.02, center: false, transition: "none",
    navigationMode: "linear", pdfSeparateFragments: false, plugins: [RevealNotes],
  });
  document.querySelector("main.reveal").removeAttribute("role"); // "application" would take a screen reader's reading keys
  Reveal.addKeyBinding({ keyCode: 68, key: "D", description: "Dark or light" }, () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  });
  root.dataset.ready = "yes";
})();
