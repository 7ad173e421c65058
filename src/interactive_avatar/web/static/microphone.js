// SPDX-License-Identifier: Apache-2.0
// The user's microphone: 16 kHz mono blocks of 20 ms to whoever asked for them.

const HELP = {
  NotAllowedError: 'The microphone is blocked for this page. Click the icon at the left of the '
    + 'address, allow the microphone, then press the button again. You can type meanwhile.',
  NotFoundError: 'No microphone was found. Plug one in and press the button again, or type.',
  NotReadableError: 'The microphone is in use by another program, or its driver fails. Close '
    + 'that program and press the button again, or type.',
};

export class Microphone {
  constructor() {
    this.onblock = () => {};
    this.onend = () => {};
    this.stream = null;
    this.context = null;
  }

  get on() {
    return this.context !== null;
  }

  // Throws an Error whose message tells the user what to do.
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error('The browser gives the microphone only to pages on localhost or https. '
        + 'Open this page as http://localhost… on the avatar\'s machine, or type.');
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({audio: {
        channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true,
      }});
    } catch (error) {
      throw new Error(HELP[error.name] ?? `The microphone cannot be opened: ${error.message}`);
    }
    this.stream.getAudioTracks()[0].addEventListener('ended', () => {
      this.stop();
      this.onend('The microphone was unplugged or taken away. Press the button to try again.');
    });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule('/static/microphone-worklet.js');
    const source = this.context.createMediaStreamSource(this.stream);
    const node = new AudioWorkletNode(this.context, 'microphone', {numberOfOutputs: 0});
    node.port.onmessage = ({data}) => this.onblock(data.samples, data.peak);
    source.connect(node);
    await this.context.resume();
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context?.close();
    this.stream = this.context = null;
  }
}
