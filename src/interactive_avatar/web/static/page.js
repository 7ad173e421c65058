// SPDX-License-Identifier: Apache-2.0
// The page: connection, captions, state, buttons for microphone and camera, text box.

import {Camera} from './camera.js';
import {Microphone} from './microphone.js';
import {Player} from './player.js';

const KIND_MICROPHONE = 2;
const KIND_CAMERA = 3;
const RETRY_MS = [500, 1000, 2000, 4000];
// What the network cannot take is dropped here, not saved up: late words help nobody.
const MAX_UNSENT_BYTES = 64000;
const SUBTITLE_MS = 5000;
const STALLED_MS = 3000;
const MAX_CAPTIONS = 60;
const ACTIVITIES = ['idle', 'listening', 'thinking', 'speaking', 'gesturing'];

const at = (id) => document.getElementById(id);
const player = new Player(at('face'));
const microphone = new Microphone();
const camera = new Camera(at('self'));
let socket = null;
let retries = 0;
let lastPictureMs = 0;
let everSeen = false;
let subtitleTimer = 0;
let soundWanted = true;

function veil(text) {
  at('veil').classList.toggle('gone', !text);
  if (text) at('veil-text').textContent = text;
}

function notice(text) {
  at('notice').hidden = !text;
  at('notice').textContent = text;
}

function link(text, kind) {
  at('link').textContent = text;
  at('link').className = `link ${kind}`;
}

function connect() {
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  socket = new WebSocket(`${scheme}://${location.host}/ws`);
  socket.binaryType = 'arraybuffer';
  socket.onopen = () => {
    retries = 0;
    link('connected', 'up');
    // The server repeats what is worth keeping; what is shown may be from before a restart.
    for (const item of at('captions').querySelectorAll('li:not(.hint)')) item.remove();
    if (everSeen) veil('Waiting for the avatar\'s picture…');
  };
  socket.onmessage = ({data}) => {
    if (typeof data === 'string') read(JSON.parse(data));
    else player.take(data);
  };
  socket.onclose = () => {
    link('connection lost', 'down');
    veil('The connection is lost. Trying again… Is the avatar still running?');
    player.clear();
    setTimeout(connect, RETRY_MS[Math.min(retries++, RETRY_MS.length - 1)]);
  };
}

function send(data) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  if (socket.bufferedAmount > MAX_UNSENT_BYTES) return false;
  socket.send(data);
  return true;
}

// What is too short to burden the network, and must not be missed; a page that is not connected
// has nothing to tell.
function tell(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function read(message) {
  switch (message.type) {
    case 'state': return showState(message);
    case 'intent': return showIntent(message);
    case 'caption': return showCaption(message);
    case 'notice': return notice(message.text);
    case 'microphone':
      if (message.taken && microphone.on) {
        stopMicrophone();
        notice('Another page has taken over the microphone.');
      }
      return undefined;
    case 'camera':
      if (message.taken && camera.on) {
        stopCamera();
        notice('Another page has taken over the camera.');
      }
      return undefined;
    default: return undefined;
  }
}

function showState(state) {
  const name = typeof state.activity === 'number' ? ACTIVITIES[state.activity]
    : String(state.activity ?? 'idle').toLowerCase();
  document.body.dataset.activity = ACTIVITIES.includes(name) ? name : 'idle';
  at('activity').textContent = name ? name[0].toUpperCase() + name.slice(1) : 'Idle';
  at('state').title = [state.phase, state.reason].filter(Boolean).join(' · ');
  if (state.mode) showMode(state.mode);
  if (state.prompt !== undefined) at('prompt').textContent = state.prompt;
}

// An operator speaks through the avatar: actions to press instead of things to say to it.
function showMode(mode) {
  const remote = mode === 'telepresence';
  if (document.body.dataset.mode === mode) return;
  document.body.dataset.mode = mode;
  at('actions').hidden = !remote;
  if (remote) at('hint')?.remove();
  document.querySelector('aside h1').textContent = remote ? 'You speak through the avatar'
    : 'Conversation';
  showMicrophone();
}

function showIntent(intent) {
  at('understood').hidden = false;
  const slots = Object.values(intent.slots ?? {}).filter(Boolean).join(', ');
  const name = String(intent.intent ?? '').replaceAll('_', ' ');
  at('intent').textContent = slots ? `${name}: ${slots}` : name;
  const share = Math.max(0, Math.min(1, Number(intent.confidence) || 0));
  at('confidence').style.width = `${Math.round(share * 100)}%`;
  at('percent').textContent = `${Math.round(share * 100)} %`;
}

function showCaption({id, who, text, final}) {
  const list = at('captions');
  const stay = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  let item = list.querySelector(`[data-id="${CSS.escape(id)}"]`);
  if (!text) {
    item?.remove();
    return;
  }
  at('hint')?.remove();
  if (!item) {
    item = document.createElement('li');
    item.dataset.id = id;
    list.append(item);
    while (list.children.length > MAX_CAPTIONS) list.firstElementChild.remove();
  }
  item.className = who + (final ? '' : ' open');
  item.textContent = text;
  if (stay) list.scrollTop = list.scrollHeight;
  if (who === 'avatar') {
    at('subtitle').textContent = text;
    at('subtitle').classList.remove('gone');
    clearTimeout(subtitleTimer);
    // Long sentences stay longer: about 15 characters are read in a second.
    subtitleTimer = setTimeout(() => at('subtitle').classList.add('gone'),
      SUBTITLE_MS + text.length * 66);
  }
}

async function startSound() {
  if (!soundWanted) return;
  try {
    await player.startSound();
  } catch (error) {
    notice(`Sound cannot be played: ${error.message}. Check the output device, then click the `
      + 'loudspeaker.');
  }
  showSound();
}

function showSound() {
  at('sound').setAttribute('aria-pressed', String(player.soundOn));
  at('sound-text').textContent = soundWanted ? 'Click for sound' : 'Sound is off';
}

at('sound').addEventListener('click', async (event) => {
  event.stopPropagation();
  soundWanted = !player.soundOn;
  if (soundWanted) await startSound();
  else await player.stopSound();
  showSound();
});
// Any first touch of the page lets the browser play sound.
for (const kind of ['pointerdown', 'keydown']) {
  document.addEventListener(kind, (event) => {
    if (!player.soundOn && !event.target.closest?.('#sound')) startSound();
  }, {capture: true});
}

function packed(kind, bytes) {
  const message = new Uint8Array(4 + bytes.byteLength);
  message[0] = kind;
  message.set(bytes, 4);
  return message;
}

microphone.onblock = (samples, peak) => {
  at('microphone').style.setProperty('--level', Math.min(1, peak * 2.5).toFixed(2));
  send(packed(KIND_MICROPHONE, new Uint8Array(samples.buffer)));
};
microphone.onend = (why) => {
  showMicrophone();
  notice(why);
};

function showMicrophone() {
  const button = at('microphone');
  button.setAttribute('aria-pressed', String(microphone.on));
  button.setAttribute('aria-label', `Turn the microphone ${microphone.on ? 'off' : 'on'}`);
  if (document.body.dataset.mode === 'telepresence') {
    at('text').placeholder = microphone.on ? 'You are heard… or type an action'
      : 'Turn the microphone on, or type an action';
    return;
  }
  at('text').placeholder = microphone.on ? 'Listening… or type here'
    : 'Talk or type';
}

function stopMicrophone() {
  microphone.stop();
  tell({type: 'microphone', on: false});
  showMicrophone();
}

at('microphone').addEventListener('click', async () => {
  // A second click while it starts is the first one's impatience, not a wish for the opposite.
  if (microphone.starting) return;
  if (microphone.on) {
    stopMicrophone();
    return;
  }
  try {
    await microphone.start();
    tell({type: 'microphone', on: true});
    notice('');
  } catch (error) {
    microphone.stop();
    notice(error.message);
  }
  showMicrophone();
});

camera.onpicture = (jpeg) => send(packed(KIND_CAMERA, jpeg));
camera.onend = (why) => {
  showCamera();
  notice(why);
};

function showCamera() {
  const button = at('camera');
  button.setAttribute('aria-pressed', String(camera.on));
  button.setAttribute('aria-label', `Turn the camera ${camera.on ? 'off' : 'on'}`);
  at('self').hidden = !camera.on;
}

function stopCamera() {
  camera.stop();
  tell({type: 'camera', on: false});
  showCamera();
}

at('camera').addEventListener('click', async () => {
  if (camera.starting) return;
  if (camera.on) {
    stopCamera();
    return;
  }
  try {
    await camera.start();
    tell({type: 'camera', on: true});
    notice('');
  } catch (error) {
    camera.stop();
    notice(error.message);
  }
  showCamera();
});

function say(text) {
  const line = text.trim();
  if (!line) return;
  if (send(JSON.stringify({type: 'text', text: line}))) {
    at('text').value = '';
    notice('');
  } else {
    notice('Not sent: the avatar is not connected. It is tried again by itself; then press '
      + 'Enter once more.');
  }
}

at('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  say(at('text').value);
});
for (const buttons of ['examples', 'actions']) {
  at(buttons).addEventListener('click', (event) => {
    if (event.target.matches('button')) say(event.target.textContent);
  });
}

player.onpicture = () => {
  lastPictureMs = performance.now();
  if (!everSeen || !at('veil').classList.contains('gone')) veil('');
  everSeen = true;
};

let shownBefore = 0;
setInterval(() => {
  const {shown, waitingMs, underruns} = player.stats;
  const parts = [`${shown - shownBefore} pictures/s`];
  shownBefore = shown;
  if (player.soundOn) {
    parts.push(`${Math.round(waitingMs)} ms buffered`);
    // Not "interruptions": that is what a user does to an avatar that speaks.
    if (underruns) parts.push(`${underruns} ${underruns === 1 ? 'gap' : 'gaps'} in the sound`);
  }
  at('figures').textContent = everSeen ? parts.join('  ·  ') : '';
  const open = socket?.readyState === WebSocket.OPEN;
  if (everSeen && open && performance.now() - lastPictureMs > STALLED_MS && !document.hidden) {
    veil('The avatar sends no picture at the moment…');
  }
  showSound();
}, 1000);

new ResizeObserver(() => { at('captions').scrollTop = at('captions').scrollHeight; })
  .observe(at('captions'));

// For tests and for the curious: the figures behind the page.
window.avatar = {player, microphone, camera};
connect();
