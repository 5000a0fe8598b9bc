/**
 * The client of the live protocol (docs/protocol.md): one WebSocket, its reconnections, requests and their answers.
 *
 * Events, each with the message as `detail`: `welcome`, `session`, `status`, `stats`, `frame` (a parsed Frame),
 * `problem` (an error that answers no request of ours) and `state` (see ConnectionState).
 */

import { parseFrame } from "./frame.js";

const VERSION = 1;
const BACK_OFF_MS = [250, 500, 1000, 2000, 4000, 8000];
const PING_EVERY_MS = 5000;
const MOST_MISSED = 3; // pings without any word from the server, after which it is taken for gone
const OPENING_MS = 10000;
const PATIENCE = 3; // of a server that says that it is full: so many of the pauses are skipped
const CLOSE_REPLACED = 4001;
const CLOSE_IDLE = 4002;
const UPLOAD_HEADER_BYTES = 8;

export const UPLOAD_MASK = 1;
export const UPLOAD_SESSION = 2;

/** Codes of refusals that another time may not bring. */
export const PASSING = new Set(["limit", "rate", "memory"]);

/**
 * @typedef {object} ConnectionState
 * @property {"closed" | "connecting" | "open" | "waiting" | "refused"} state  `waiting`: for the next attempt;
 *     `refused`: no further attempts, see `code` and `message`
 * @property {number} attempts  failed ones in a row
 * @property {number} [retryAt]  performance.now() of the next attempt
 * @property {string} [code]  of the error that ended it, if the server said one; "replaced" if another viewer took the
 *     session over, "idle" if nothing had been asked for for a long time
 * @property {string} [message]
 */

/** An `error` message of the server, or of the way to it (code "gone"). */
export class ServerError extends Error {
  /** @param {string} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.name = "ServerError";
    this.code = code;
  }
}

export class Connection extends EventTarget {
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {Map<number, {resolve: (value: object) => void, reject: (error: ServerError) => void}>} */
  #waiting = new Map();
  #nextId = 1;
  #pieceBytes = 65536; // of an upload at most, in one message; the server says
  #attempts = 0;
  #retry = 0;
  #ping = 0;
  #opening = 0;
  #heard = 0;
  #pinged = 0;
  #missed = 0;
  #uploadBytes = Infinity;
  /** @type {ServerError | null} */ #refusal = null;
  /** @type {ConnectionState} */ #state = { state: "closed", attempts: 0 };

  /**
   * @param {string} base  URL of the server's root, ending in "/"
   * @param {string} token  "" if none
   * @param {string} session  id of a session to resume, "" if none
   */
  constructor(base, token = "", session = "") {
    super();
    this.base = base;
    this.token = token;
    this.session = session;
    this.roundTrip = NaN; // milliseconds, of the last ping
  }

  get state() {
    return this.#state;
  }

  get isOpen() {
    return this.#state.state === "open";
  }

  connect() {
    this.#drop();
    this.#refusal = null;
    this.#setState({ state: "connecting", attempts: this.#attempts });
    const url = new URL("ws", this.base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    const current = (/** @type {(event: any) => void} */ handle) => (/** @type {Event} */ event) => {
      if (socket === this.#socket) handle(event); // not the leavings of an earlier socket
    };
    socket.onopen = current(() => this.#post(this.#hello()));
    socket.onmessage = current((event) => this.#receive(event.data));
    socket.onclose = current((event) => this.#closed(event));
    // A server that accepts and then says nothing is as good as none.
    this.#opening = window.setTimeout(() => this.#closed(null), OPENING_MS);
  }

  /** Ends the connection; the server keeps the session for a while. */
  close() {
    this.#drop();
    this.#failWaiting(new ServerError("gone", "The connection was closed."));
    this.#setState({ state: "closed", attempts: 0 });
  }

  /**
   * Sends a message and waits for its `ok`.
   * @param {string} type @param {object} fields
   * @returns {Promise<object>} rejected with a ServerError
   */
  request(type, fields = {}) {
    return this.#ask((id) => this.#post({ type, id, ...fields }));
  }

  /** Sends a message that is not answered; dropped while there is no connection. @param {string} type */
  send(type, fields = {}) {
    if (this.isOpen) this.#post({ type, ...fields });
  }

  /**
   * @param {number} kind  UPLOAD_MASK or UPLOAD_SESSION
   * @param {Blob} file
   * @returns {Promise<object>} rejected with a ServerError, code "value" for a file larger than the server takes
   */
  async upload(kind, file) {
    // A server closes the connection on whoever sends more than it takes.
    if (file.size > this.#uploadBytes) {
      const sizes = [file.size, this.#uploadBytes].map((bytes) => `${(bytes / 1e6).toFixed(1)} MB`);
      throw new ServerError("value", `The file has ${sizes[0]}; this server takes ${sizes[1]}.`);
    }
    const bytes = new Uint8Array(await file.arrayBuffer());
    return this.#ask((id) => {
      const pieces = Math.max(Math.ceil(bytes.length / this.#pieceBytes), 1);
      for (let index = 0; index < pieces; index += 1) {
        const piece = bytes.subarray(index * this.#pieceBytes, (index + 1) * this.#pieceBytes);
        const message = new Uint8Array(UPLOAD_HEADER_BYTES + piece.length);
        const header = new DataView(message.buffer);
        message.set([VERSION, kind]);
        header.setUint16(2, pieces - 1 - index, true);
        header.setUint32(4, id, true);
        message.set(piece, UPLOAD_HEADER_BYTES);
        /** @type {WebSocket} */ (this.#socket).send(message);
      }
    });
  }

  /** Opens a saved session in place of the present picture. @param {Blob} file */
  openSession(file) {
    return this.upload(UPLOAD_SESSION, file);
  }

  /**
   * A file of the server, with the token.
   * @param {string} path  relative to the server's root
   * @param {AbortSignal} [signal]
   * @returns {Promise<Blob>} rejected with a ServerError, or as fetch does when aborted
   */
  async fetch(path, signal) {
    /** @type {Response} */ let response;
    try {
      response = await fetch(new URL(path, this.base), { headers: this.#authorization(), signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ServerError("gone", "The server does not answer.");
    }
    if (response.ok) return response.blob();
    throw new ServerError(response.status === 401 ? "unauthorised" : "http", await reason(response));
  }

  /** @returns {Record<string, string>} */
  #authorization() {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }

  #hello() {
    return {
      type: "hello",
      version: VERSION,
      ...(this.token && { token: this.token }),
      ...(this.session && { resume: this.session }),
    };
  }

  /** @param {(id: number) => void} post */
  #ask(post) {
    if (!this.isOpen) return Promise.reject(new ServerError("gone", "There is no connection to the server."));
    const id = this.#nextId;
    this.#nextId = (this.#nextId % 0xffffffff) + 1;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      post(id);
    });
  }

  /** @param {object} message */
  #post(message) {
    this.#socket?.send(JSON.stringify(message));
  }

  /** @param {string | ArrayBuffer} data */
  #receive(data) {
    this.#heard = performance.now();
    if (typeof data !== "string") {
      const frame = this.#parsed(data);
      if (frame) this.#tell("frame", { ...frame, received: this.#heard });
      return;
    }
    const message = JSON.parse(data);
    switch (message.type) {
      case "welcome":
        return this.#welcomed(message);
      case "ok":
        return this.#answer(message.id)?.resolve(message);
      case "error":
        return this.#failed(message);
      case "pong":
        if (message.stamp) this.roundTrip = this.#heard - this.#pinged;
        return undefined;
      case "session":
        this.session = message.session;
        return this.#tell("session", message);
      default:
        return this.#tell(message.type, message);
    }
  }

  /** @param {ArrayBuffer} data */
  #parsed(data) {
    try {
      return parseFrame(data);
    } catch (error) {
      this.#tell("problem", new ServerError("protocol", /** @type {Error} */ (error).message));
      return null;
    }
  }

  /** @param {any} message */
  #welcomed(message) {
    window.clearTimeout(this.#opening);
    this.#missed = this.#pinged = 0;
    this.#uploadBytes = message.limits.upload_bytes;
    this.#pieceBytes = message.limits.piece_bytes;
    this.#ping = window.setInterval(() => this.#checkAlive(), PING_EVERY_MS);
    this.#setState({ state: "open", attempts: 0 });
    this.#tell("welcome", message);
  }

  /** @param {any} message */
  #failed(message) {
    const error = new ServerError(message.code, message.message);
    const request = this.#answer(message.id);
    if (request) request.reject(error);
    else if (this.isOpen) this.#tell("problem", error);
    else this.#refusal = error; // the answer to hello: the server closes next
  }

  /** Counts pings, not time: in a page out of sight timers hardly run. */
  #checkAlive() {
    this.#attempts = 0; // subtle: not with the welcome, or a server that breaks right after it is never left in peace
    this.#missed = this.#pinged > this.#heard ? this.#missed + 1 : 0;
    if (this.#missed >= MOST_MISSED) return this.#closed(null);
    this.#pinged = performance.now();
    return this.#post({ type: "ping", stamp: 1 });
  }

  /** @param {CloseEvent | null} event  null: given up by us */
  #closed(event) {
    this.#drop();
    this.#failWaiting(new ServerError("gone", "The connection to the server was lost."));
    if (event?.code === CLOSE_REPLACED) {
      this.#refusal = new ServerError("replaced", "This picture was opened in another window.");
    }
    if (event?.code === CLOSE_IDLE) {
      this.#refusal = new ServerError("idle", "Nothing has happened here for a long time, so the connection was closed.");
    }
    const why = this.#refusal && { code: this.#refusal.code, message: this.#refusal.message };
    if (why && !PASSING.has(why.code)) {
      this.#setState({ state: "refused", attempts: this.#attempts, ...why });
      return;
    }
    const base = BACK_OFF_MS[Math.min(this.#attempts + (why ? PATIENCE : 0), BACK_OFF_MS.length - 1)];
    const delay = base * (0.75 + Math.random() / 2); // so that many pages do not all come back at once
    this.#attempts += 1;
    this.#retry = window.setTimeout(() => this.connect(), delay);
    this.#setState({ state: "waiting", attempts: this.#attempts, retryAt: performance.now() + delay, ...why });
  }

  #drop() {
    window.clearTimeout(this.#retry);
    window.clearTimeout(this.#opening);
    window.clearInterval(this.#ping);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  /** @param {number | undefined} id */
  #answer(id) {
    const request = id === undefined ? undefined : this.#waiting.get(id);
    if (request) this.#waiting.delete(/** @type {number} */ (id));
    return request;
  }

  /** @param {ServerError} error */
  #failWaiting(error) {
    const requests = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const request of requests) request.reject(error);
  }

  /** @param {ConnectionState} state */
  #setState(state) {
    this.#state = state;
    this.#tell("state", state);
  }

  /** @param {string} type @param {unknown} detail */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** What the server says about a request that it refused. @param {Response} response */
async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error || `The server answered ${response.status}.`;
  } catch {
    return `The server answered ${response.status}.`;
  }
}
