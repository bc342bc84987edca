'use strict';
// Shows the cards that have all words of the search, those named like it first. The search and the
// chosen section live in the address, #q=WORDS&in=SECTION, so that they can be linked to.
(() => {
  const box = document.getElementById('search');
  const count = document.getElementById('count');
  const nothing = document.getElementById('nothing');
  const chips = [...document.querySelectorAll('.chip')];
  const sections = [...document.querySelectorAll('section[data-section]')].map(
    (element) => ({element, cards: [...element.querySelectorAll('.card')]}));
  const total = sections.reduce((sum, section) => sum + section.cards.length, 0);
  let chosen = '';

  const rank = (name, query) => {
    const lower = name.toLowerCase();
    if (lower === query) return 0;
    if (lower.startsWith(query)) return 1;
    return lower.includes(query) ? 2 : 3;
  };

  const show = () => {
    const query = box.value.trim().toLowerCase();
    const words = query.split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const {element, cards} of sections) {
      const open = !chosen || chosen === element.dataset.section;
      let here = 0;
      for (const card of cards) {
        const hit = open && words.every((word) => card.dataset.words.includes(word));
        card.hidden = !hit;
        card.style.order = query ? rank(card.dataset.name, query) : '';
        here += hit;
      }
      element.hidden = !here;
      shown += here;
    }
    for (const chip of chips) {
      chip.setAttribute('aria-pressed', String(chip.dataset.section === chosen));
    }
    count.textContent = `${shown} of ${total}`;
    nothing.hidden = shown > 0;
  };

  const read = () => {
    const address = new URLSearchParams(location.hash.slice(1).replace(/\+/g, '%2B'));
    box.value = address.get('q') || '';
    chosen = address.get('in') || '';
    show();
  };

  const write = () => {
    const parts = [];
    if (box.value.trim()) parts.push(`q=${encodeURIComponent(box.value.trim())}`);
    if (chosen) parts.push(`in=${encodeURIComponent(chosen)}`);
    history.replaceState(null, '', `#${parts.join('&')}`);
    show();
  };

  box.addEventListener('input', write);
  for (const chip of chips) {
    chip.addEventListener('click', () => {
      chosen = chosen === chip.dataset.section ? '' : chip.dataset.section;
      write();
    });
  }
  window.addEventListener('hashchange', () => {
    read();
    window.scrollTo(0, 0);
  });
  read();
})();
