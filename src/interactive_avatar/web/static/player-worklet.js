// SPDX-License-Identifier: Apache-2.0
// Plays the avatar's sound and is the page's clock: it knows which sample is being heard.
//
// Sound waits here for `target` before it starts, so that an uneven network is not heard; each
// time that it runs out nevertheless, the wait grows a little. What gathers beyond it is taken off
// again by leaving out silent blocks, never parts of words; only beyond LIMIT_S does speech go,
// since by then the answer is too old to be of use.

const FIRST_TARGET_S = 0.24;
const TARGET_STEP_S = 0.08;
const MAX_TARGET_S = 0.8;
const EXTRA_S = 0.24;
const LIMIT_S = 2.5;
const QUIET_PEAK = 200 / 32768;
const REPORT_EVERY = 8;

class PlayerProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.blocks = [];
    this.offset = 0;
    this.waiting = 0;
    this.targetS = FIRST_TARGET_S;
    this.playing = false;
    this.underruns = 0;
    this.skipped = 0;
    this.calls = 0;
    this.port.onmessage = (event) => this.add(event.data);
  }

  add({stampMs, samples}) {
    let peak = 0;
    for (let i = 0; i < samples.length; i++) {
      const level = Math.abs(samples[i]);
      if (level > peak) peak = level;
    }
    this.blocks.push({stampMs, samples, quiet: peak < QUIET_PEAK});
    this.waiting += samples.length;
    if (this.waiting > (this.targetS + EXTRA_S) * sampleRate) this.drop((block) => block.quiet);
    if (this.waiting > LIMIT_S * sampleRate) this.drop(() => true);
  }

  // Leave out waiting blocks, oldest first, until what is left is about the target long. The
  // first is being heard and stays.
  drop(allowed) {
    const target = this.targetS * sampleRate;
    for (let i = 1; i < this.blocks.length && this.waiting > target;) {
      if (allowed(this.blocks[i])) {
        this.waiting -= this.blocks[i].samples.length;
        this.blocks.splice(i, 1);
        this.skipped += 1;
      } else {
        i += 1;
      }
    }
  }

  process(_inputs, outputs) {
    const out = outputs[0][0];
    if (!this.playing && this.waiting >= this.targetS * sampleRate) this.playing = true;
    let firstStampMs = null;
    let filled = 0;
    while (this.playing && filled < out.length && this.blocks.length) {
      const block = this.blocks[0];
      if (firstStampMs === null) {
        // Stamp of sample 0 of this quantum, had the block begun there.
        firstStampMs = block.stampMs + (this.offset - filled) * 1000 / sampleRate;
      }
      const count = Math.min(out.length - filled, block.samples.length - this.offset);
      out.set(block.samples.subarray(this.offset, this.offset + count), filled);
      filled += count;
      this.offset += count;
      this.waiting -= count;
      if (this.offset === block.samples.length) {
        this.blocks.shift();
        this.offset = 0;
      }
    }
    if (this.playing && filled < out.length) {
      this.playing = false;
      this.underruns += 1;
      this.targetS = Math.min(MAX_TARGET_S, this.targetS + TARGET_STEP_S);
    }
    for (let channel = 1; channel < outputs[0].length; channel++) outputs[0][channel].set(out);
    if (this.calls++ % REPORT_EVERY === 0) {
      this.port.postMessage({
        stampMs: firstStampMs, timeS: currentTime, playing: this.playing,
        waitingMs: this.waiting * 1000 / sampleRate, underruns: this.underruns,
        skipped: this.skipped,
      });
    }
    return true;
  }
}

registerProcessor('player', PlayerProcessor);
