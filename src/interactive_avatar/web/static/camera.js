// SPDX-License-Identifier: Apache-2.0
// The user's camera: small JPEG pictures, eight a second, to whoever asked for them.

const WIDTH = 320;
const HEIGHT = 240;
const PERIOD_MS = 125;
const QUALITY = 0.75;

const HELP = {
  NotAllowedError: 'The camera is blocked for this page. Click the icon at the left of the '
    + 'address, allow the camera, then press the button again. The avatar works without it.',
  NotFoundError: 'No camera was found. Plug one in and press the button again. The avatar works '
    + 'without it.',
  NotReadableError: 'The camera is in use by another program, or its driver fails. Close that '
    + 'program and press the button again.',
};

const LOST = 'The camera was unplugged or taken away. Press the button to try again.';

export class Camera {
  // video: element that shows the user what is sent.
  constructor(video) {
    this.onpicture = () => {};
    this.onend = () => {};
    this.video = video;
    this.stream = null;
    this.timer = 0;
    // The promise of a start that is under way.
    this.starting = null;
    this.canvas = document.createElement('canvas');
  }

  get on() {
    return this.stream !== null;
  }

  // Throws an Error whose message tells the user what to do. The browser may be asking the user
  // meanwhile: who starts it once more waits for the same camera.
  start() {
    return this.starting ??= this.open().finally(() => { this.starting = null; });
  }

  async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error('The browser gives the camera only to pages on localhost or https. '
        + 'Open this page as http://localhost… on the avatar\'s machine.');
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: {
        width: {ideal: WIDTH}, height: {ideal: HEIGHT}, frameRate: {ideal: 15},
        facingMode: 'user',
      }});
    } catch (error) {
      throw new Error(HELP[error.name] ?? `The camera cannot be opened: ${error.message}`);
    }
    const [track] = stream.getVideoTracks();
    track.addEventListener('ended', () => {
      if (this.stream !== stream) return;
      this.stop();
      this.onend(LOST);
    });
    try {
      this.video.srcObject = stream;
      await this.video.play();
      if (track.readyState === 'ended') throw new Error(LOST);
    } catch (error) {
      // The device must not stay on behind a button that says off.
      for (const opened of stream.getTracks()) opened.stop();
      this.video.srcObject = null;
      throw error;
    }
    this.stream = stream;
    this.timer = setInterval(() => this.take(), PERIOD_MS);
  }

  // Take a picture and hand it on.
  take() {
    const {videoWidth, videoHeight} = this.video;
    if (!videoWidth || document.hidden) return;
    // Cameras give what they have: it is made small, and keeps its shape.
    const scale = Math.min(1, WIDTH / videoWidth, HEIGHT / videoHeight);
    this.canvas.width = Math.round(videoWidth * scale);
    this.canvas.height = Math.round(videoHeight * scale);
    this.canvas.getContext('2d').drawImage(this.video, 0, 0, this.canvas.width,
      this.canvas.height);
    // Not toBlob, which waits until the browser is idle: seconds, beside the avatar's pictures.
    const text = atob(this.canvas.toDataURL('image/jpeg', QUALITY).split(',')[1]);
    this.onpicture(Uint8Array.from(text, (char) => char.charCodeAt(0)));
  }

  stop() {
    clearInterval(this.timer);
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
    this.stream = null;
  }
}
