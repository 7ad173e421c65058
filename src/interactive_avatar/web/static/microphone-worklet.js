// SPDX-License-Identifier: Apache-2.0
// Turns the microphone's sound, at whatever rate it comes, into 16 kHz int16 blocks of 20 ms.
// Windowed-sinc resampling, so that what lies above 8 kHz does not fold back into the speech.

const OUT_HZ = 16000;
const BLOCK = 320;
const CROSSINGS = 16;
const PASS_SHARE = 0.9;
// Phases of the kernel: positions are rounded to 1/256 sample, which is below the microphone's
// own noise.
const PHASES = 256;

class MicrophoneProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / OUT_HZ;
    const cutoff = Math.min(1, 1 / this.step) * PASS_SHARE;
    this.half = Math.ceil(CROSSINGS * Math.max(1, this.step));
    this.kernel = [];
    for (let phase = 0; phase <= PHASES; phase++) {
      const taps = new Float32Array(2 * this.half);
      let sum = 0;
      for (let k = 0; k < taps.length; k++) {
        const distance = k - this.half + 1 - phase / PHASES;
        const x = Math.PI * cutoff * distance;
        const ratio = distance / this.half;
        const hann = Math.abs(ratio) < 1 ? 0.5 + 0.5 * Math.cos(Math.PI * ratio) : 0;
        taps[k] = (x === 0 ? 1 : Math.sin(x) / x) * hann;
        sum += taps[k];
      }
      for (let k = 0; k < taps.length; k++) taps[k] /= sum;
      this.kernel.push(taps);
    }
    this.input = new Float32Array(2 * this.half + 4096);
    this.filled = this.half;
    this.position = this.half;
    this.block = new Int16Array(BLOCK);
    this.count = 0;
    this.peak = 0;
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    const length = channels[0].length;
    for (let i = 0; i < length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.input[this.filled + i] = sum / channels.length;
    }
    this.filled += length;
    while (this.position + this.half + 1 < this.filled) {
      const base = Math.floor(this.position);
      const taps = this.kernel[Math.round((this.position - base) * PHASES)];
      let value = 0;
      for (let k = 0; k < taps.length; k++) value += taps[k] * this.input[base - this.half + 1 + k];
      this.emit(value);
      this.position += this.step;
    }
    // Keep what the next outputs still need.
    const drop = Math.floor(this.position) - this.half;
    if (drop > 0) {
      this.input.copyWithin(0, drop, this.filled);
      this.filled -= drop;
      this.position -= drop;
    }
    return true;
  }

  emit(value) {
    const level = Math.max(-1, Math.min(1, value));
    this.block[this.count++] = Math.round(level * 32767);
    this.peak = Math.max(this.peak, Math.abs(level));
    if (this.count === BLOCK) {
      const samples = this.block;
      this.port.postMessage({samples, peak: this.peak}, [samples.buffer]);
      this.block = new Int16Array(BLOCK);
      this.count = 0;
      this.peak = 0;
    }
  }
}

registerProcessor('microphone', MicrophoneProcessor);
