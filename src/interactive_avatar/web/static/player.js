// SPDX-License-Identifier: Apache-2.0
// Shows pictures at the moment at which the sound that belongs to them is heard.
//
// With sound on, the sound is the clock: the worklet reports which stamp it plays, and the
// picture drawn is the latest whose stamp has been reached. With sound off (browsers keep it off
// until the user has clicked something), the machine's own clock takes its place.

const SOUND_HZ = 16000;
const FIRST_DELAY_MS = 240;
const LATEST_DELAY_MS = 600;
const MAX_PICTURES = 100;
// A report older than this no longer tells where the sound is.
const REPORT_AGE_MS = 500;
const KIND_MEDIA = 1;

export class Player {
  constructor(canvas) {
    this.canvas = canvas;
    this.drawing = canvas.getContext('2d', {alpha: false});
    this.pictures = [];
    this.context = null;
    this.node = null;
    this.report = null;
    this.offsetMs = null;
    this.shownMs = null;
    this.order = 0;
    this.onpicture = () => {};
    this.stats = {
      received: 0, shown: 0, late: 0, soundBlocks: 0, offsetMs: null, underruns: 0, skipped: 0,
      waitingMs: 0, clock: 'none', shownStampMs: null, mediaMs: null,
    };
    const draw = () => {
      this.draw();
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
  }

  get soundOn() {
    return this.context !== null && this.context.state === 'running' && this.node !== null;
  }

  // Needs a click or a key press before it; browsers refuse otherwise.
  async startSound() {
    if (this.context === null) {
      this.context = new AudioContext({sampleRate: SOUND_HZ, latencyHint: 'interactive'});
    }
    if (this.context.state !== 'running') await this.context.resume();
    if (this.node === null && !this.loading) {
      this.loading = true;
      try {
        await this.context.audioWorklet.addModule('/static/player-worklet.js');
        const node = new AudioWorkletNode(this.context, 'player',
          {numberOfInputs: 0, outputChannelCount: [1]});
        node.port.onmessage = (event) => {
          this.report = {...event.data, atMs: performance.now()};
          this.stats.underruns = event.data.underruns;
          this.stats.skipped = event.data.skipped;
          this.stats.waitingMs = event.data.waitingMs;
        };
        node.connect(this.context.destination);
        this.node = node;
      } finally {
        this.loading = false;
      }
    }
  }

  async stopSound() {
    if (this.node) this.node.disconnect();
    const context = this.context;
    this.node = this.context = this.report = null;
    this.offsetMs = null;
    if (context) await context.close();
  }

  // One binary message of the server: see protocol.py.
  take(buffer) {
    const view = new DataView(buffer);
    if (view.getUint8(0) !== KIND_MEDIA) return;
    const count = view.getUint8(1);
    const stampMs = view.getFloat64(4, true);
    const samples = view.getUint32(12, true);
    let at = 16;
    const index = [];
    for (let i = 0; i < count; i++, at += 8) {
      index.push({bytes: view.getUint32(at, true), afterMs: view.getFloat32(at + 4, true)});
    }
    if (samples) {
      const sound = new Float32Array(samples);
      for (let i = 0; i < samples; i++) sound[i] = view.getInt16(at + 2 * i, true) / 32768;
      at += 2 * samples;
      this.stats.soundBlocks += 1;
      if (this.soundOn) this.node.port.postMessage({stampMs, samples: sound}, [sound.buffer]);
    }
    for (const {bytes, afterMs} of index) {
      this.addPicture(stampMs + afterMs, new Uint8Array(buffer, at, bytes));
      at += bytes;
    }
  }

  async addPicture(stampMs, bytes) {
    this.stats.received += 1;
    let bitmap;
    try {
      bitmap = await createImageBitmap(new Blob([bytes], {type: 'image/jpeg'}));
    } catch {
      return;  // a damaged picture; the next one is 40 ms away
    }
    const last = this.pictures.length ? this.pictures[this.pictures.length - 1].stampMs : 0;
    // Another source, or one that started again: what is left of the old one is of no use.
    if (this.pictures.length && Math.abs(stampMs - last) > 10000) this.clear();
    this.pictures.push({stampMs, bitmap});
    this.pictures.sort((a, b) => a.stampMs - b.stampMs);
    while (this.pictures.length > MAX_PICTURES) this.pictures.shift().bitmap.close();
  }

  clear() {
    for (const picture of this.pictures) picture.bitmap.close();
    this.pictures = [];
    this.offsetMs = null;
    this.shownMs = null;
  }

  // The stamp that is being heard now, or null while that is unknown.
  soundMs(nowMs) {
    const report = this.report;
    if (!this.soundOn || !report || nowMs - report.atMs > REPORT_AGE_MS) return null;
    if (report.stampMs === null) return null;
    let heardS = null;
    if (this.context.getOutputTimestamp) {
      const {contextTime, performanceTime} = this.context.getOutputTimestamp();
      const estimate = contextTime + (nowMs - performanceTime) / 1000;
      // Some outputs report nonsense until they have settled.
      if (contextTime > 0 && Math.abs(estimate - this.context.currentTime) < 1) heardS = estimate;
    }
    if (heardS === null) {
      heardS = this.context.currentTime - (this.context.outputLatency || 0);
    }
    return report.stampMs + (heardS - report.timeS) * 1000;
  }

  // The stamp that is due now by the machine's clock, some delay behind what has come.
  wallMs(nowMs) {
    if (!this.pictures.length) return this.offsetMs === null ? null : nowMs - this.offsetMs;
    const newestMs = this.pictures[this.pictures.length - 1].stampMs;
    const aheadMs = this.offsetMs === null ? null : newestMs - (nowMs - this.offsetMs);
    if (aheadMs === null || aheadMs < -FIRST_DELAY_MS || aheadMs > LATEST_DELAY_MS) {
      this.offsetMs = nowMs - newestMs + FIRST_DELAY_MS;
    }
    return nowMs - this.offsetMs;
  }

  draw() {
    const nowMs = performance.now();
    let mediaMs = this.soundMs(nowMs);
    this.stats.clock = mediaMs === null ? 'machine' : 'sound';
    if (mediaMs === null) {
      // The worklet is filling its buffer: wait with it, but not for ever.
      const filling = this.soundOn && this.report && !this.report.playing
        && this.report.waitingMs > 0 && nowMs - this.report.atMs < REPORT_AGE_MS;
      if (filling && this.shownMs !== null) return;
      mediaMs = this.wallMs(nowMs);
      if (mediaMs === null) return;
    } else {
      this.offsetMs = null;
    }
    this.stats.mediaMs = mediaMs;
    let due = null;
    while (this.pictures.length && this.pictures[0].stampMs <= mediaMs) {
      if (due) {
        due.bitmap.close();
        this.stats.late += 1;
      }
      due = this.pictures.shift();
    }
    if (!due) return;
    const {bitmap, stampMs} = due;
    if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
    }
    this.drawing.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.shownMs = stampMs;
    this.stats.shown += 1;
    this.stats.shownStampMs = stampMs;
    this.stats.offsetMs = mediaMs - stampMs;
    this.onpicture();
  }
}
