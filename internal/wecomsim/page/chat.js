// The chat page: what a user says goes to /sim/say, everything that is shown comes back by
// /sim/events, so that several pages, curl and tests see the same conversation.

import { duration, el, lang, magic, plain, received, t, translate } from './text.js';

const $ = (id) => document.getElementById(id);
const store = {
  get(key, fallback) { try { return JSON.parse(localStorage.getItem(key)) ?? fallback; } catch { return fallback; } },
  set(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* private mode */ } },
};

const known = { alice: 'Alice', bob: 'Bob', zhangsan: '张三' };
const validUser = /^[0-9A-Za-z][0-9A-Za-z_\-@.]{0,63}$/;
const maxShown = 400; // items of one conversation in the page

let apps = [];
let items = new Map(); // deliveries and messages by id; ids grow with time
let user = 'alice';
let app = '';
let extra = store.get('sim.users', []).filter((u) => validUser.test(u));
let menu = store.get('sim.menu', null) ?? [{ label: t('Status'), key: 'STATUS' }, { label: t('Restart'), key: 'RESTART_JOB' }, { label: t('Help'), key: 'HELP' }];
const unread = new Map();

translate(document);

// ---- names and avatars

const nameOf = (id) => known[id.toLowerCase()] ?? id;
function hue(text) {
  let h = 7;
  for (const c of text) h = (h * 31 + c.codePointAt(0)) % 360;
  return h;
}
function avatar(node, text, seed) {
  node.textContent = [...text][0] ?? '?';
  node.style.setProperty('--hue', hue(seed));
  return node;
}

// ---- what belongs where

const isDelivery = (it) => it.state !== undefined;
const same = (a, b) => a.toLowerCase() === b.toLowerCase();
function concerns(it, who, which) {
  if (it.app !== which) return false;
  return isDelivery(it) ? same(it.user, who) : it.to.some((u) => u === '@all' || same(u, who));
}

function people() {
  const ids = new Map();
  for (const id of [...Object.keys(known), ...extra, user]) ids.set(id.toLowerCase(), id);
  for (const it of items.values()) {
    for (const u of isDelivery(it) ? [it.user] : it.to) {
      if (u && u !== '@all' && !ids.has(u.toLowerCase()) && ids.size < 200) ids.set(u.toLowerCase(), u);
    }
  }
  return [...ids.values()];
}

// ---- drawing, at most once a frame

const dirty = { people: true, all: true, ids: new Set() };
let frame = 0, peopleTimer = 0;
function draw() {
  if (!frame) frame = requestAnimationFrame(() => { frame = 0; render(); });
}

function render() {
  if (dirty.people && !peopleTimer) {
    renderPeople();
    // Often enough for the eye, also while a load test runs.
    peopleTimer = setTimeout(() => { peopleTimer = 0; if (dirty.people) draw(); }, 200);
    dirty.people = false;
  }
  if (dirty.all) renderAll();
  else if (dirty.ids.size) renderSome([...dirty.ids].sort((a, b) => a - b));
  dirty.all = false;
  dirty.ids.clear();
}

// lastByUser maps each member to the last item of the conversation with the current application.
function lastByUser() {
  const last = new Map();
  for (const it of items.values()) {
    if (it.app !== app) continue;
    for (const u of isDelivery(it) ? [it.user] : it.to) {
      const id = u.toLowerCase();
      if (!(last.get(id)?.id > it.id)) last.set(id, it);
    }
  }
  return last;
}

function renderPeople() {
  const list = $('people');
  const focused = document.activeElement?.dataset?.user;
  const lasts = lastByUser();
  list.replaceChildren(...people().map((id) => {
    const last = [lasts.get(id.toLowerCase()), lasts.get('@all')].filter(Boolean).sort((a, b) => b.id - a.id)[0];
    const n = unread.get(id.toLowerCase()) ?? 0;
    const button = el('button', { type: 'button', className: 'person', title: id },
      avatar(el('span', { className: 'avatar', 'aria-hidden': 'true' }), nameOf(id), id.toLowerCase()),
      el('span', {}, el('b', {}, nameOf(id)), el('small', {}, last ? oneLine(last) : id)),
      n ? el('span', { className: 'unread' }, String(n)) : '');
    button.dataset.user = id;
    if (same(id, user)) button.setAttribute('aria-current', 'true');
    button.addEventListener('click', () => choose(id, app));
    return el('li', {}, button);
  }));
  if (focused) list.querySelector(`[data-user="${CSS.escape(focused)}"]`)?.focus();
}

function oneLine(it) {
  if (isDelivery(it) && it.msgtype !== 'text') return [t(it.msgtype), it.content].filter(Boolean).join(' · ');
  return it.content.replace(/<[^>]*>/g, '').split('\n')[0] || it.msgtype;
}

function renderAll() {
  const shown = [...items.values()].filter((it) => concerns(it, user, app)).sort((a, b) => a.id - b.id).slice(-maxShown);
  $('items').replaceChildren(...shown.map(renderItem));
  $('empty').hidden = shown.length > 0;
  toEnd();
}

function renderSome(ids) {
  const list = $('items');
  const atEnd = isAtEnd();
  let mine = false, grown = false;
  for (const id of ids) {
    const it = items.get(id);
    if (!it || !concerns(it, user, app)) continue;
    const node = renderItem(it);
    const old = $(`item-${id}`);
    if (old) {
      const open = old.querySelector('.more');
      if (open) toggleDetails(node, it);
      if (old.contains(document.activeElement)) {
        const label = document.activeElement.dataset.part;
        old.replaceWith(node);
        if (label) node.querySelector(`[data-part="${label}"]`)?.focus();
      } else {
        old.replaceWith(node);
      }
      continue;
    }
    node.classList.add('fresh');
    let after = list.lastElementChild;
    while (after && Number(after.dataset.id) > id) after = after.previousElementSibling;
    if (after) after.after(node); else list.prepend(node);
    grown = true;
    mine ||= isDelivery(it);
  }
  while (list.childElementCount > maxShown) list.firstElementChild.remove();
  $('empty').hidden = list.childElementCount > 0;
  if (atEnd || mine) toEnd();
  else if (grown) $('latest').hidden = false;
}

const isAtEnd = () => { const l = $('log'); return l.scrollHeight - l.scrollTop - l.clientHeight < 80; };
function toEnd() {
  $('log').scrollTop = $('log').scrollHeight;
  $('latest').hidden = true;
}

const icons = {
  click: 'M4 6h12M4 10h12M4 14h7', location: 'M10 18s6-5.3 6-10a6 6 0 1 0-12 0c0 4.700 6 10 6 10zM10 9.500v-3', image: 'M3 5h14v10H3zM3 13l4-4 4 4 2-2 4 4', voice: 'M10 3v8M7 6v3a3 3 0 0 0 6 0V6M5 10a5 5 0 0 0 10 0M10 15v2',
  link: 'M8.500 11.500a3 3 0 0 0 4.200 0l3-3a3 3 0 0 0-4.200-4.200l-1 1M11.500 8.500a3 3 0 0 0-4.200 0l-3 3a3 3 0 0 0 4.200 4.200l1-1', other: 'M4 10h12M11 5l5 5-5 5',
};
function icon(kind) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', icons[kind] ?? icons.other);
  svg.append(path);
  return svg;
}

function renderItem(it) {
  const node = isDelivery(it) ? renderDelivery(it) : renderMessage(it);
  node.id = `item-${it.id}`;
  node.dataset.id = it.id;
  return node;
}

function renderDelivery(d) {
  const bubble = el('div', { className: 'bubble' });
  if (d.msgtype === 'text') {
    bubble.append(plain(d.content));
  } else {
    const menuLabel = d.msgtype === 'click' ? menu.find((m) => m.key === d.content)?.label : '';
    bubble.classList.add('event');
    bubble.append(icon(d.msgtype), el('span', {}, t(d.msgtype), menuLabel ? ` · ${menuLabel}` : '', d.content ? el('span', { className: 'kind' }, d.content) : ''));
  }
  const life = el('div', { className: 'life' });
  const last = d.attempts.at(-1);
  const word = (text, cls = '') => life.append(el('span', { className: cls }, text));
  if (d.state === 'sending') word(last ? `${t('attempt', { n: d.attempts.length + 1 })} · ${last.error}` : t('sending'), 'wait');
  else if (d.state === 'ok') word(`${last.status} · ${duration(last.took_us / 1000)}${d.attempts.length > 1 ? ` · ${t('attempt', { n: d.attempts.length })}` : ''}`, 'ok');
  else word(t('failedAll', { reason: last?.error ?? '' }), 'bad');
  if (repeated(d)) word(t('same'));
  if (d.reply_ms) word(t('reply', { t: duration(d.reply_ms) }));
  const node = el('li', { className: `item out ${d.state}` }, bubble, life);
  life.append(tools(node, d, copyButton(d.event)));
  return node;
}

// Two identical events within a second have one id: the bridge takes them for one.
function repeated(d) {
  for (const it of items.values()) if (isDelivery(it) && it.id < d.id && it.event === d.event) return true;
  return false;
}

function renderMessage(m) {
  const bubble = el('div', { className: 'bubble' });
  const question = items.get(m.answers);
  if (question && !isLatestBefore(question, m)) bubble.append(el('span', { className: 'quoted' }, oneLine(question)));
  bubble.append(received(m, (card) => say({ msgtype: 'template_card_event', ...card })));
  const life = el('div', { className: 'life' });
  if (m.dropped) life.append(el('span', { className: 'bad' }, t(m.dropped)));
  if (m.answers) life.append(el('span', { title: m.guessed ? t('guessed') : '' }, t('after', { t: duration(m.reply_ms) })));
  const node = el('li', { className: `item in${m.dropped ? ' dropped' : ''}` }, bubble, life);
  life.append(tools(node, m, el('time', { dateTime: m.time }, m.msgtype === 'text' ? clock(m.time) : `${m.msgtype} · ${clock(m.time)}`)));
  return node;
}

function isLatestBefore(question, m) {
  for (const it of items.values()) if (isDelivery(it) && it.id > question.id && it.id < m.id && concerns(it, question.user, m.app)) return false;
  return true;
}

const clock = (time) => new Date(time).toLocaleTimeString(lang === 'zh' ? 'zh-CN' : undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });

function copyButton(id) {
  const short = id.length > 17 ? `${id.slice(0, 6)}…${id.slice(-6)}` : id;
  const button = el('button', { type: 'button', className: 'id', title: id, 'aria-label': `${t('copy')} ${id}` }, short);
  button.dataset.part = 'id';
  button.addEventListener('click', async () => {
    try { await navigator.clipboard.writeText(id); button.textContent = t('copied'); } catch { button.textContent = id; }
    setTimeout(() => { button.textContent = short; }, 1500);
  });
  return button;
}

function tools(node, it, first) {
  const button = el('button', { type: 'button', 'aria-expanded': 'false' }, t('details'));
  button.dataset.part = 'details';
  button.addEventListener('click', () => toggleDetails(node, it));
  const box = el('span', { className: 'tools' }, first, button);
  if (it.state === 'failed' && it.msgtype === 'text') {
    const again = el('button', { type: 'button' }, t('again'));
    again.dataset.part = 'again';
    again.addEventListener('click', () => say({ msgtype: 'text', content: it.content }));
    box.append(again);
  }
  return box;
}

function toggleDetails(node, it) {
  const button = node.querySelector('[data-part=details]');
  const open = node.querySelector('.more');
  button.setAttribute('aria-expanded', String(!open));
  button.textContent = open ? t('details') : t('hide');
  if (open) { open.remove(); return; }
  const box = el('div', { className: 'more' });
  const part = (title, content) => box.append(el('h4', {}, title), content);
  if (isDelivery(it)) {
    part(t('attempts'), el('table', {}, el('tbody', {}, ...it.attempts.map((a, i) => el('tr', {},
      el('td', {}, String(i + 1)), el('td', {}, a.status ? String(a.status) : '—'), el('td', {}, duration(a.took_us / 1000)), el('td', {}, a.error ? `${a.error} · ${a.url}` : a.url))))));
    part(t('plaintext'), el('pre', { tabIndex: 0 }, it.plain));
  } else {
    const question = items.get(it.answers);
    if (question) part(t('answers'), el('pre', {}, question.event + (it.guessed ? ` (${t('guessed')})` : '')));
    part('msgid', el('pre', {}, it.msgid));
    part(`${t('request')} · ${it.api}`, el('pre', { tabIndex: 0 }, JSON.stringify(it.body, null, 2)));
  }
  node.append(box);
  box.scrollIntoView({ block: 'nearest' });
}

// ---- who talks to what

function choose(nextUser, nextApp) {
  user = nextUser;
  app = nextApp;
  unread.delete(user.toLowerCase());
  const hash = `#${encodeURIComponent(app)}/${encodeURIComponent(user)}`;
  if (location.hash !== hash) history.replaceState(null, '', hash);
  renderHead();
  dirty.people = dirty.all = true;
  draw();
}

function renderHead() {
  const select = $('app');
  select.replaceChildren(...apps.map((a) => el('option', { value: a.name, selected: a.name === app, title: a.agentid }, a.name)));
  select.classList.toggle('single', apps.length < 2);
  avatar($('app-avatar'), app || '?', `app ${app}`);
  $('as').textContent = t('as', { user: nameOf(user) === user ? user : `${nameOf(user)} (${user})` });
  $('text').placeholder = t('placeholder', { app, user: nameOf(user) });
  renderTiles();
}

function fromHash() {
  const [a, u] = location.hash.slice(1).split('/').map((part) => { try { return decodeURIComponent(part); } catch { return ''; } });
  const nextApp = apps.some((x) => x.name === a) ? a : apps.some((x) => x.name === app) ? app : apps[0]?.name ?? '';
  choose(u && validUser.test(u) ? u : user, nextApp);
}

// ---- talking

let noticeTimer = 0;
function notice(text, bad = false) {
  const box = $('notice');
  box.textContent = text;
  box.classList.toggle('bad', bad);
  box.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { box.hidden = true; }, bad ? 10000 : 4000);
}

async function call(method, path, body) {
  let res, answer = {};
  try {
    res = await fetch(path, { method, headers: body ? { 'Content-Type': 'application/json' } : {}, body: body && JSON.stringify(body) });
    if (res.status !== 204) answer = await res.json();
  } catch {
    throw new Error(t('unreachable'));
  }
  if (!res.ok) throw new Error(answer.error ?? String(res.status));
  return answer;
}

async function say(what) {
  try {
    await call('POST', 'sim/say', { app, user, ...what });
    return true;
  } catch (err) {
    notice(err.message, true);
    return false;
  }
}

const text = $('text');
function fit() {
  text.style.height = 'auto';
  text.style.height = `${Math.min(text.scrollHeight, 168)}px`;
  $('send').disabled = text.value.trim() === '';
}
text.addEventListener('input', fit);
text.addEventListener('keydown', (e) => {
  // While an input method composes, Enter belongs to it; Safari tells only by the key code.
  if (e.key !== 'Enter' || e.shiftKey || e.isComposing || e.keyCode === 229) return;
  e.preventDefault();
  $('say').requestSubmit();
});
// Automation sends the character apart from the key, so preventing the key alone is not enough.
text.addEventListener('keypress', (e) => { if (e.key === 'Enter' && !e.shiftKey) e.preventDefault(); });
$('say').addEventListener('submit', async (e) => {
  e.preventDefault();
  const content = text.value;
  if (content.trim() === '') return;
  text.value = '';
  fit();
  text.focus();
  if (!(await say({ msgtype: 'text', content })) && text.value === '') {
    text.value = content; // nothing typed is lost
    fit();
  }
});

function renderMenu() {
  $('menu').replaceChildren(...menu.map((m) => {
    const b = el('button', { type: 'button', className: 'pill', title: m.key }, m.label);
    b.addEventListener('click', () => say({ msgtype: 'click', key: m.key }));
    return b;
  }));
}

const samples = {
  enter_agent: {}, subscribe: {}, image: { pic_url: 'https://pic.example.org/p/1.jpg' }, voice: {}, video: {},
  location: { latitude: 31.2304, longitude: 121.4737, label: '上海市人民广场' },
  link: { title: 'Notes', description: 'Weekly notes', url: 'https://www.example.org/notes' }, view: { key: 'https://www.example.org/menu' },
};
const botSamples = { enter_chat: {}, image: { url: 'https://pic.example.org/p/1.jpg' }, voice: { content: 'hello' } };
function renderTiles() {
  const kind = apps.find((a) => a.name === app)?.kind;
  $('tiles').replaceChildren(...Object.entries(kind === 'aibot' ? botSamples : samples).map(([msgtype, fields]) => {
    const b = el('button', { type: 'button', className: 'pill' }, t(msgtype));
    b.addEventListener('click', () => say({ msgtype, ...fields }));
    return b;
  }));
}
$('more').addEventListener('click', () => {
  const open = $('tiles').hidden;
  $('tiles').hidden = !open;
  $('more').setAttribute('aria-expanded', String(open));
});

// ---- the rest of the controls

$('app').addEventListener('change', () => choose(user, $('app').value));
$('latest').addEventListener('click', toEnd);
$('log').addEventListener('scroll', () => { if (isAtEnd()) $('latest').hidden = true; });
window.addEventListener('hashchange', fromHash);

$('add-user').addEventListener('submit', (e) => {
  e.preventDefault();
  const id = $('new-user').value.trim();
  if (!validUser.test(id)) { notice(t('badUser'), true); return; }
  $('new-user').value = '';
  if (!people().some((p) => same(p, id))) {
    extra = [...extra, id].slice(-20);
    store.set('sim.users', extra);
  }
  choose(id, app);
  text.focus();
});

$('verify').addEventListener('click', async () => {
  $('verify').disabled = true;
  try {
    const res = await call('POST', 'sim/verify', { app });
    notice(res.ok ? t('verified', { t: duration(res.took_us / 1000) }) : t('notVerified', { reason: res.reason }), !res.ok);
  } catch (err) {
    notice(err.message, true);
  }
  $('verify').disabled = false;
});

$('clear').addEventListener('click', async () => {
  if (!window.confirm(t('clearAsk'))) return;
  try { await call('DELETE', 'sim/state'); notice(t('cleared')); } catch (err) { notice(err.message, true); }
});

for (const b of document.querySelectorAll('[data-close]')) b.addEventListener('click', () => b.closest('dialog').close());
$('magic').replaceChildren(...magic.flatMap(([id, text]) => [el('dt', {}, id), el('dd', {}, text)]));
$('faults-example').textContent = `curl -X PUT ${location.origin}/sim/faults -d '{"api":{\n  "message/send":{"errcode":45009,"rate":0.1,"count":3}}}'`;
$('show-help').addEventListener('click', () => $('help').showModal());

function menuRow(m) {
  const row = el('div', { className: 'row' },
    el('input', { type: 'text', value: m.label, maxLength: 40, 'aria-label': t('label'), placeholder: t('label') }),
    el('input', { type: 'text', value: m.key, maxLength: 128, className: 'key', spellcheck: false, 'aria-label': t('key'), placeholder: t('key') }));
  const remove = el('button', { type: 'button', className: 'quiet' }, t('remove'));
  remove.addEventListener('click', () => row.remove());
  row.append(remove);
  return row;
}
$('edit-menu').addEventListener('click', () => {
  $('menu-rows').replaceChildren(...menu.map(menuRow));
  $('menu-dialog').showModal();
});
$('menu-add').addEventListener('click', () => {
  if ($('menu-rows').childElementCount >= 12) return;
  const row = menuRow({ label: '', key: '' });
  $('menu-rows').append(row);
  row.querySelector('input').focus();
});
$('menu-form').addEventListener('submit', (e) => {
  e.preventDefault();
  menu = [...$('menu-rows').children].map((row) => {
    const [label, key] = [...row.querySelectorAll('input')].map((i) => i.value.trim());
    return { label: label || key, key };
  }).filter((m) => m.key);
  store.set('sim.menu', menu);
  renderMenu();
  $('menu-dialog').close();
});

// ---- what happens

function connection(state) {
  $('connection').dataset.state = state;
  $('connection-text').textContent = t(state);
}

function upsert(it) {
  const fresh = !items.has(it.id);
  items.set(it.id, it);
  if (items.size > 6000) for (const id of [...items.keys()].slice(0, 1000)) items.delete(id);
  dirty.ids.add(it.id);
  if (isDelivery(it)) for (const other of items.values()) if (other.answers === it.id) dirty.ids.add(other.id);
  dirty.people = true;
  if (fresh && !isDelivery(it) && !it.dropped) {
    for (const u of it.to) if (u !== '@all' && !same(u, user)) unread.set(u, (unread.get(u) ?? 0) + 1);
  }
  draw();
}

function listen() {
  const source = new EventSource('sim/events');
  source.onopen = () => connection('live');
  source.onerror = () => {
    connection('lost');
    // The browser comes back by itself, but not from an answer that was no stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
  source.addEventListener('snapshot', (e) => {
    const snap = JSON.parse(e.data);
    apps = snap.apps;
    items = new Map([...snap.deliveries, ...snap.messages].sort((a, b) => a.id - b.id).map((it) => [it.id, it]));
    fromHash();
  });
  source.addEventListener('delivery', (e) => upsert(JSON.parse(e.data)));
  source.addEventListener('message', (e) => upsert(JSON.parse(e.data)));
  source.addEventListener('reset', () => {
    items.clear();
    unread.clear();
    dirty.all = dirty.people = true;
    draw();
  });
}

connection('connecting');
renderMenu();
fit();
listen();
