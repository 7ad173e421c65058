// SPDX-License-Identifier: Apache-2.0
// The user's microphone: 16 kHz mono blocks of 20 ms to whoever asked for them.

const HELP = {
  NotAllowedError: 'The microphone is blocked for this page. Click the icon at the left of the '
    + 'address, allow the microphone, then press the button again. You can type meanwhile.',
  NotFoundError: 'No microphone was found. Plug one in and press the button again, or type.',
  NotReadableError: 'The microphone is in use by another program, or its driver fails. Close '
    + 'that program and press the button again, or type.',
};

const LOST = 'The microphone was unplugged or taken away. Press the button to try again.';

export class Microphone {
  constructor() {
    this.onblock = () => {};
    this.onend = () => {};
    this.stream = null;
    this.context = null;
    // The promise of a start that is under way.
    this.starting = null;
  }

  get on() {
    return this.context !== null;
  }

  // Throws an Error whose message tells the user what to do. The browser may be asking the user
  // meanwhile: who starts it once more waits for the same microphone.
  start() {
    return this.starting ??= this.open().finally(() => { this.starting = null; });
  }

  async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error('The browser gives the microphone only to pages on localhost or https. '
        + 'Open this page as http://localhost… on the avatar\'s machine, or type.');
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({audio: {
        channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true,
      }});
    } catch (error) {
      throw new Error(HELP[error.name] ?? `The microphone cannot be opened: ${error.message}`);
    }
    const [track] = stream.getAudioTracks();
    track.addEventListener('ended', () => {
      if (this.stream !== stream) return;
      this.stop();
      this.onend(LOST);
    });
    let context = null;
    try {
      context = new AudioContext();
      await context.audioWorklet.addModule('/static/microphone-worklet.js');
      const source = context.createMediaStreamSource(stream);
      const node = new AudioWorkletNode(context, 'microphone', {numberOfOutputs: 0});
      node.port.onmessage = ({data}) => this.onblock(data.samples, data.peak);
      await context.resume();
      if (track.readyState === 'ended') throw new Error(LOST);
      source.connect(node);
    } catch (error) {
      // The device must not stay on behind a button that says off.
      for (const opened of stream.getTracks()) opened.stop();
      context?.close();
      throw error;
    }
    this.stream = stream;
    this.context = context;
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context?.close();
    this.stream = this.context = null;
  }
}
