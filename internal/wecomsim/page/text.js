// What the page says, in English and Chinese, and how it shows what applications send. Nothing
// from outside ever becomes markup: it goes into text nodes, links are checked.

const words = {
  en: {
    title: 'WeCom simulator', members: 'Members', otherUser: 'Another userid', addUser: 'Chat as this user', help: 'Help', clear: 'Clear all',
    app: 'Application', as: 'You are {user}', verify: 'Verify URL', conversation: 'Conversation', emptyTitle: 'Nothing said yet',
    emptyText: 'Type below. Your message goes to the callback URL, signed and encrypted, as WeCom would send it.',
    menu: 'Application menu', editMenu: 'Edit the menu', more: 'Send something else', message: 'Message', placeholder: 'Message {app} as {user}', send: 'Send',
    latest: 'New messages ↓', menuText: 'Each button sends a click event with its key.', addButton: 'Add a button', cancel: 'Cancel', save: 'Save', close: 'Close',
    label: 'Label', key: 'Key', remove: 'Remove', live: 'Live', connecting: 'Connecting', lost: 'Connection lost, trying again',
    sending: 'delivering', attempt: 'attempt {n}', reply: 'reply after {t}', noReply: 'no reply yet', after: 'answered in {t}', same: 'same event as the one before',
    details: 'Details', hide: 'Hide', copy: 'Copy event id', copied: 'Copied', plaintext: 'Plaintext', attempts: 'Callback attempts', request: 'Request body', answers: 'Answers',
    failedAll: 'Given up: {reason}', duplicate: 'not delivered: duplicate', member_limit: 'not delivered: over the member’s limit', guessed: 'matched by time',
    verified: 'URL verified in {t}', notVerified: 'The console would refuse this URL: {reason}', cleared: 'Inbox, history, tokens and faults are gone', badUser: 'A userid has 1 to 64 of letters, digits, _ - @ . and begins with a letter or digit',
    unreachable: 'The simulator does not answer', open: 'Open', again: 'Send again', clearAsk: 'Forget all messages, tokens and faults?',
    Status: 'Status', Restart: 'Restart job', Help: 'Help',
    enter_agent: 'Open the app', subscribe: 'Join the app', image: 'Picture', voice: 'Voice', video: 'Video', location: 'Location', link: 'Link', view: 'Menu link', enter_chat: 'Open the chat',
    click: 'Menu', unsubscribe: 'Leave the app', LOCATION: 'Position', template_card_event: 'Card button',
    helpTitle: 'What this is', helpText: 'A WeCom to develop against. What you type is delivered to the application’s callback URL as WeCom would do it, with a 5 s limit and three retries. What the application sends with message/send appears here.',
    helpMagic: 'Recipients that play trouble', helpFaults: 'Trouble for everybody',
  },
  zh: {
    title: '企业微信模拟器', members: '成员', otherUser: '其他 userid', addUser: '以此成员聊天', help: '帮助', clear: '清空',
    app: '应用', as: '当前成员 {user}', verify: '验证 URL', conversation: '会话', emptyTitle: '还没有消息',
    emptyText: '在下方输入。消息会像企业微信那样签名、加密后送到回调 URL。',
    menu: '应用菜单', editMenu: '编辑菜单', more: '发送其他内容', message: '消息', placeholder: '以 {user} 的身份发给 {app}', send: '发送',
    latest: '有新消息 ↓', menuText: '每个按钮发送一个带 key 的点击事件。', addButton: '添加按钮', cancel: '取消', save: '保存', close: '关闭',
    label: '名称', key: 'Key', remove: '删除', live: '已连接', connecting: '连接中', lost: '连接断开，正在重试',
    sending: '投递中', attempt: '第 {n} 次', reply: '{t} 后回复', noReply: '尚无回复', after: '{t} 内回复', same: '与上一条是同一事件',
    details: '详情', hide: '收起', copy: '复制事件 id', copied: '已复制', plaintext: '明文', attempts: '回调尝试', request: '请求体', answers: '回复',
    failedAll: '已放弃：{reason}', duplicate: '未送达：重复消息', member_limit: '未送达：超过成员限额', guessed: '按时间匹配',
    verified: 'URL 验证通过，用时 {t}', notVerified: '管理后台会拒绝此 URL：{reason}', cleared: '收件箱、记录、令牌和故障已清除', badUser: 'userid 由 1 到 64 个字母、数字、_ - @ . 组成，首字符为字母或数字',
    unreachable: '模拟器没有应答', open: '打开', again: '重新发送', clearAsk: '清除所有消息、令牌和故障？',
    Status: '状态', Restart: '重启任务', Help: '帮助',
    enter_agent: '进入应用', subscribe: '加入应用', image: '图片', voice: '语音', video: '视频', location: '位置', link: '链接', view: '菜单链接', enter_chat: '进入会话',
    click: '菜单', unsubscribe: '离开应用', LOCATION: '上报位置', template_card_event: '卡片按钮',
    helpTitle: '这是什么', helpText: '供开发使用的企业微信。你输入的内容会按企业微信的方式送到应用的回调 URL：5 秒超时，重试三次。应用用 message/send 发送的内容显示在这里。',
    helpMagic: '制造故障的接收人', helpFaults: '对所有人生效的故障',
  },
};

export const lang = (navigator.language || 'en').toLowerCase().startsWith('zh') ? 'zh' : 'en';

export const magic = {
  en: [['errcode-45009', 'ends with that errcode'], ['timeout', 'not delivered, no answer'], ['timeout-after', 'delivered, no answer'], ['http-502', 'that HTTP status, as a page'],
    ['reset', 'not delivered, connection cut'], ['reset-after', 'delivered, connection cut'], ['garbled', 'delivered, unreadable answer'], ['slow-1500', 'answered after 1,500 ms'],
    ['not-found', 'listed in invaliduser'], ['unlicensed', 'listed in unlicenseduser']],
  zh: [['errcode-45009', '返回该错误码'], ['timeout', '不送达，不应答'], ['timeout-after', '送达，不应答'], ['http-502', '返回该 HTTP 状态页'],
    ['reset', '不送达，断开连接'], ['reset-after', '送达后断开连接'], ['garbled', '送达，应答无法解析'], ['slow-1500', '1500 毫秒后应答'],
    ['not-found', '列入 invaliduser'], ['unlicensed', '列入 unlicenseduser']],
}[lang];

export function t(key, values = {}) {
  const text = words[lang][key] ?? words.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');
}

// el builds an element: properties by name, attributes when they hold a dash, children as nodes or text.
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes('-')) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== ''));
  return node;
}

export function translate(root) {
  document.documentElement.lang = lang === 'zh' ? 'zh-CN' : 'en';
  document.title = t('title');
  for (const n of root.querySelectorAll('[data-t]')) n.textContent = t(n.dataset.t);
  for (const n of root.querySelectorAll('[data-t-label]')) n.setAttribute('aria-label', t(n.dataset.tLabel));
  for (const n of root.querySelectorAll('[data-t-placeholder]')) n.placeholder = t(n.dataset.tPlaceholder);
}

export function duration(ms) {
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 100) return `${ms.toFixed(1)} ms`;
  if (ms < 10000) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(1)} s`;
}

// link returns an anchor for an http address, and the bare text for anything else.
export function link(href, text) {
  let url;
  try { url = new URL(href); } catch { return document.createTextNode(text); }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') return document.createTextNode(text);
  return el('a', { href: url.href, target: '_blank', rel: 'noopener noreferrer' }, text);
}

// plain shows a text message: <a href> as WeCom allows it, and addresses.
export function plain(text) {
  const out = document.createDocumentFragment();
  const pattern = /<a\s+href\s*=\s*(?:"([^"]*)"|'([^']*)')[^>]*>([\s\S]*?)<\/a>|https?:\/\/[^\s<>"'，。；、）】]+/gi;
  let from = 0;
  for (const m of text.matchAll(pattern)) {
    out.append(text.slice(from, m.index));
    if (m[3] !== undefined) out.append(link(m[1] ?? m[2], m[3]));
    else {
      // A full stop behind an address belongs to the sentence.
      const address = m[0].replace(/[.,!?;:)\]}*！？：]+$/, '');
      out.append(link(address, address), m[0].slice(address.length));
    }
    from = m.index + m[0].length;
  }
  out.append(text.slice(from));
  return out;
}

// inline shows the marks that markdown of an application may have within a line.
function inline(text) {
  const out = document.createDocumentFragment();
  const pattern = /\*\*(.+?)\*\*|`([^`]+)`|\[([^\]]*)\]\(([^)\s]+)\)|<font\s+color\s*=\s*"(info|comment|warning)"\s*>([\s\S]*?)<\/font>/g;
  let from = 0;
  for (const m of text.matchAll(pattern)) {
    out.append(text.slice(from, m.index));
    if (m[1] !== undefined) out.append(el('strong', {}, inline(m[1])));
    else if (m[2] !== undefined) out.append(el('code', {}, m[2]));
    else if (m[3] !== undefined) out.append(link(m[4], m[3]));
    else out.append(el('span', { className: m[5] }, inline(m[6])));
    from = m.index + m[0].length;
  }
  out.append(text.slice(from));
  return out;
}

function markdown(text) {
  const root = el('div', { className: 'md' });
  for (const line of text.split('\n')) {
    const head = /^#{1,6} (.*)$/.exec(line);
    const quote = /^>\s?(.*)$/.exec(line);
    if (head) root.append(el('h5', {}, inline(head[1])));
    else if (quote) root.append(el('blockquote', {}, inline(quote[1])));
    else root.append(el('div', {}, line ? inline(line) : el('br')));
  }
  return root;
}

const str = (v) => (typeof v === 'string' ? v : '');
const arr = (v) => (Array.isArray(v) ? v : []);
const obj = (v) => (v && typeof v === 'object' && !Array.isArray(v) ? v : {});

// textcard descriptions may hold <br> and coloured divs; only their text is shown.
const bare = (html) => html.replace(/<br\s*\/?>/gi, '\n').replace(/<\/div>/gi, '\n').replace(/<[^>]*>/g, '').trim();

function articles(list) {
  return el('div', { className: 'card' }, ...arr(list).map((a) => el('div', { className: 'article' },
    el('h5', {}, str(a.title)), el('div', { className: 'soft pre' }, str(a.description) || str(a.digest)),
    str(a.url) ? el('div', { className: 'open' }, link(str(a.url), t('open'))) : '')));
}

function templateCard(c, press) {
  const root = el('div', { className: 'card' });
  const add = (cls, text) => { if (text) root.append(el('div', { className: cls }, text)); };
  const title = obj(c.main_title);
  add('source', str(obj(c.source).desc));
  if (title.title) root.append(el('h5', {}, str(title.title)));
  add('soft pre', str(title.desc));
  add('big', str(obj(c.emphasis_content).title));
  add('soft', str(obj(c.emphasis_content).desc));
  add('soft pre', str(c.sub_title_text));
  for (const v of arr(c.vertical_content_list)) {
    add('', str(v.title));
    add('soft', str(v.desc));
  }
  if (arr(c.horizontal_content_list).length) {
    root.append(el('dl', {}, ...arr(c.horizontal_content_list).flatMap((h) => [
      el('dt', {}, str(h.keyname)), el('dd', {}, h.url ? link(str(h.url), str(h.value) || str(h.url)) : str(h.value) || str(h.userid))])));
  }
  const options = [...arr(obj(c.checkbox).option_list), ...arr(c.select_list).flatMap((s) => arr(s.option_list)), ...arr(obj(c.button_selection).option_list)];
  add('soft', options.map((o) => str(o.text)).join(' · '));
  const buttons = [...arr(c.button_list), ...(c.submit_button ? [c.submit_button] : []), ...arr(obj(c.action_menu).action_list)];
  if (buttons.length) {
    root.append(el('div', { className: 'actions' }, ...buttons.map((b) => {
      if (b.type === 1) return link(str(b.url), str(b.text));
      const button = el('button', { type: 'button', className: 'pill' }, str(b.text));
      button.addEventListener('click', () => press({ key: str(b.key), task_id: str(c.task_id), card_type: str(c.card_type) }));
      return button;
    })));
  }
  for (const j of arr(c.jump_list)) if (j.url) root.append(el('div', {}, link(str(j.url), str(j.title))));
  if (obj(c.card_action).url) root.append(el('div', { className: 'open' }, link(str(c.card_action.url), t('open'))));
  return root;
}

// received shows one message of an application. press is called when a card's button is.
export function received(m, press) {
  const body = obj(m.body);
  switch (m.msgtype) {
    case 'text': return plain(m.content);
    case 'markdown': return markdown(m.content);
    case 'textcard': {
      const c = obj(body.textcard);
      return el('div', { className: 'card' }, el('h5', {}, str(c.title)), el('div', { className: 'soft pre' }, bare(str(c.description))),
        el('div', { className: 'open' }, link(str(c.url), str(c.btntxt) || t('open'))));
    }
    case 'news': return articles(obj(body.news).articles);
    case 'mpnews': return articles(obj(body.mpnews).articles);
    case 'template_card': return templateCard(obj(body.template_card), press);
    default: {
      const id = str(obj(body[m.msgtype]).media_id);
      return el('div', { className: 'card' }, el('div', { className: 'pre' }, m.content), id ? el('div', { className: 'soft' }, el('code', {}, id)) : '');
    }
  }
}
