// The pictures that this browser keeps, with all that made them: IndexedDB, or memory without it.

const DATABASE = "aura-serve";
const STORE = "pictures";

export class Gallery {
  // Opens the gallery. `isKept` says whether it outlives the page.
  static async open() {
    try {
      return new Gallery(await openDatabase());
    } catch {
      return new Gallery(null);
    }
  }

  constructor(database) {
    this.isKept = database !== null;
    this.database = database;
    this.memory = new Map();
  }

  // A picture is {id, created, blob, width, height, route, request, meta, base, draft, full}. `base`
  // is the id of the picture that it was refined from, and `full` the request that a draft becomes.
  async all() {
    const found = this.isKept
      ? await answer(this.#store("readonly").getAll())
      : [...this.memory.values()];
    return found.sort((a, b) => b.created - a.created || (a.id < b.id ? 1 : -1));
  }

  async put(picture) {
    if (this.isKept) {
      await answer(this.#store("readwrite").put(picture));
    } else {
      this.memory.set(picture.id, picture);
    }
  }

  async delete(id) {
    if (this.isKept) {
      await answer(this.#store("readwrite").delete(id));
    } else {
      this.memory.delete(id);
    }
  }

  #store(mode) {
    return this.database.transaction(STORE, mode).objectStore(STORE);
  }
}

async function openDatabase() {
  const opening = indexedDB.open(DATABASE, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
  return answer(opening);
}

function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked by another tab"));
  });
}
