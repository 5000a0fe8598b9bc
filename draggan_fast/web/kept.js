/**
 * What outlives the page: a word for as long as the tab (sessionStorage), a saved session for some days (IndexedDB).
 *
 * Both are conveniences that a browser may refuse, in private windows or frames of others: then nothing is kept, and
 * that is no error.
 */

const DATABASE = "drag-canvas";
const STORE = "copies";
const MOST = 16; // copies: of as many tabs
const MOST_BYTES = 64 << 20; // of all together
const LATE_MS = 10000;
const MOST_MS = 14 * 24 * 3600 * 1000; // a tab that a browser brings back after longer begins anew

/** @param {string} key @returns {string} "" if there is none */
export function word(key) {
  try {
    return sessionStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} key @param {string} value */
export function keepWord(key, value) {
  try {
    sessionStorage.setItem(key, value);
  } catch {
    // no storage here: it is known as long as the page
  }
}

/** @typedef {{key: string, file: Blob, at: number}} Kept  at: Date.now() */

/** The copy of this name. @param {string} key @returns {Promise<Blob | null>} */
export function copyOf(key) {
  return inStore("readwrite", (store, done) => {
    const found = store.get(key);
    found.onsuccess = () => done(fresh(found.result) ? found.result.file : null);
    tidy(store);
  });
}

/**
 * Keeps a copy, in place of an earlier one; then the oldest go, if they are too many or too large.
 * @param {string} key @param {Blob} file
 * @param {string} [instead]  the name of another one that goes with the same stroke
 */
export function keepCopy(key, file, instead) {
  return inStore("readwrite", (store) => {
    if (instead) store.delete(instead);
    store.put({ key, file, at: Date.now() });
    tidy(store);
  });
}

/** What is old goes, and the oldest of what is too much. @param {IDBObjectStore} store */
function tidy(store) {
  let count = 0;
  let bytes = 0;
  const newestFirst = store.index("at").openCursor(null, "prev");
  newestFirst.onsuccess = () => {
    const cursor = newestFirst.result;
    if (!cursor) return;
    count += 1;
    bytes += cursor.value.file.size;
    if (count > MOST || bytes > MOST_BYTES || !fresh(cursor.value)) cursor.delete();
    cursor.continue();
  };
}

/** @param {string} key */
export function dropCopy(key) {
  return inStore("readwrite", (store) => store.delete(key));
}

/** @param {Kept | undefined} kept */
function fresh(kept) {
  return kept !== undefined && Date.now() - kept.at < MOST_MS;
}

/** Things happen in the order in which they are asked for. @type {Promise<unknown>} */ let last = Promise.resolve();

/**
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore, done: (value: any) => void) => void} act
 * @returns {Promise<any>} what was done with, else null; once it is on its way to the disk
 */
function inStore(mode, act) {
  const run = async () => {
    const database = await opened();
    try {
      return await new Promise((resolve, reject) => {
        let value = null;
        const transaction = database.transaction(STORE, mode);
        transaction.oncomplete = () => resolve(value);
        transaction.onabort = () => reject(transaction.error);
        act(transaction.objectStore(STORE), (found) => {
          value = found;
        });
      });
    } finally {
      database.close(); // subtle: not held, so that no tab stands in the way of a newer page's database
    }
  };
  const outcome = last.then(() => Promise.race([run(), tooLate()])).catch(() => null);
  last = outcome;
  return outcome;
}

/** A browser that never answers must not hold up what comes after. @returns {Promise<null>} */
function tooLate() {
  return new Promise((resolve) => {
    window.setTimeout(() => resolve(null), LATE_MS);
  });
}

/** @returns {Promise<IDBDatabase>} */
function opened() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open(DATABASE, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(STORE, { keyPath: "key" }).createIndex("at", "at");
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
    asked.onblocked = () => reject(new Error("Another tab holds the database."));
  });
}
